"""A model written in other numbers, so that a device which computes in float16 can hold them."""
