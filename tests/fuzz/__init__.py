"""Readers of what others wrote, with inputs that nobody meant.

    python -m tests.fuzz                         all targets, 10,000 inputs each
    python -m tests.fuzz gguf --inputs 1000000   one of them for longer

`targets/` has a file for each reader; `test_fuzz.py` runs a few hundred inputs of each with the other tests.
"""
