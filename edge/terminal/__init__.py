"""Conversations in a terminal: lines read, commands understood, answers shown, conversations kept in files."""
