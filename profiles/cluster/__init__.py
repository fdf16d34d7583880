"""The steps of a sweep on the nodes of a Ray cluster. Ray is imported in `ray_pool.py` and `nodes.py` alone."""
