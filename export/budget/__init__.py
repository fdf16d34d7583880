"""A precision for every matrix within a budget: what each costs, and the best choice."""
