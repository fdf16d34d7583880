"""The protocols of OpenAI and Anthropic: JSON of requests and answers, to and from the types of the runtime."""
