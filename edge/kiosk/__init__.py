"""A kiosk's folder: what a machine needs that answers one visitor after the other, and nothing else."""
