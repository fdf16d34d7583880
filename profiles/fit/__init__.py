"""Whether a model runs on a device, how fast, and how far off that may be, told before any weight is read."""
