"""`edge serve`: a bundle over HTTP."""
