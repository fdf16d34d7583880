"""Tools that run on this machine, and the loop that lets a model use them."""
