"""Fixtures for the tests of the codecs."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from hutch.codec import registry


@pytest.fixture(autouse=True)
def no_registration_stays() -> Iterator[None]:
    """Registrations belong to the process; give each test a copy."""
    by_type, by_name = dict(registry._by_type), dict(registry._by_name)
    yield
    registry._by_type.clear()
    registry._by_type.update(by_type)
    registry._by_name.clear()
    registry._by_name.update(by_name)
