"""Defaults of the command line's options, from a user's file and from a bundle's."""
