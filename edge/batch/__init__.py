"""Many requests from a file, answered into another: OpenAI's batch format, in process and resumable."""
