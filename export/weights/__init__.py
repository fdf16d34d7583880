"""Weights by one canonical set of names: read, merged with an adapter, rotated, stored."""
