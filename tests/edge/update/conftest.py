"""A shop and a machine for each test."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.edge.update.shop import Machine, Shop


@pytest.fixture
def shop(tiny_bundle: Path, tmp_path: Path) -> Shop:
    return Shop.open(tmp_path / "shop", tiny_bundle)


@pytest.fixture
def machine(shop: Shop, tmp_path: Path) -> Machine:
    return Machine(tmp_path / "machine", shop)
