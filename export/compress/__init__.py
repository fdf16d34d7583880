"""Weights in fewer bits: recipes, and the methods they name."""
