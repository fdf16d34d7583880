"""The picture tower of an export: its names, weights, stages, proof and graphs."""
