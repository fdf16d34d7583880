"""The page of `edge serve`: files for a browser, and nothing for Python but where they are."""
