"""The architectures we map, one file a family: what a config says, and where each canonical weight is."""
