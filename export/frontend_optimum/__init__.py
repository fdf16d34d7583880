"""The second front end: checkpoints that we do not map go through optimum-intel."""
