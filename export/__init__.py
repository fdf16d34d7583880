"""Turns a checkpoint into a bundle.

checkpoint -> names -> graph -> compress -> bundle. Importing anything here imports neither torch nor transformers, and
nncf only when something is compressed.
"""
