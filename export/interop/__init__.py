"""What other tools read in a bundle: their settings, tokenizers as OpenVINO models, and whether they work."""
