"""Measures what a compression setting costs and what it buys."""
