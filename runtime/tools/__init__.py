"""The tools of a request and the formats in which models call them."""
