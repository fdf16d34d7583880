"""The protocol of OpenAI: JSON of its requests and answers, to and from the types of the runtime."""
