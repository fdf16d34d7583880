"""Checkpoints: where weights, configuration and tokenizer of a model come from, whichever file format they have."""
