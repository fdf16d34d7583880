"""A user who has nothing yet, as for tests of names."""

from tests.edge.models.conftest import home, models, put

__all__ = ["home", "models", "put"]
