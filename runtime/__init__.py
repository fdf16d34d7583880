"""Opens a bundle and generates text from it, with its own KV cache, tokenizer and streaming generator.

Imports numpy, tokenizers, jinja2 and an engine only; never torch, transformers, nncf, optimum or onnx.
"""
