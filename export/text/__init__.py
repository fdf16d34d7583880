"""Text to calibrate and to measure with: documents, the corpora that come with Python, windows of tokens, overlap."""
