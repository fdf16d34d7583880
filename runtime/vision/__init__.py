"""Pictures: from a file to rows that a text model reads in place of embeddings."""
