"""Processors and cards that a model can be placed on: what is public about them, and which of them is here."""
