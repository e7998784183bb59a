"""Fixtures for the tests of faults."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def no_coverage_in_processes(unmeasured_processes: None) -> None:
    """Most are killed, and could not tell what they ran."""
