"""Engines run the decoder: one file each, one record each in `registry`; `choice` decides which one opens a bundle.

`engine` says what the scheduler needs of one, `limits` what it may take of context and memory.
"""
