"""The HTTP server of `edge serve`: OpenAI's protocol, and a page, for one loaded model."""
