"""KV-cache bookkeeping: which blocks of an engine's pool belong to which sequence."""
