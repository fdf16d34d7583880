"""The server: one model behind OpenAI's protocol, for `edge serve`."""
