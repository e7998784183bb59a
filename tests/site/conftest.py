"""The site in a real browser. `make docs` runs these tests, where mkdocs is installed; elsewhere they are left out."""

from __future__ import annotations

from importlib.util import find_spec

collect_ignore = [] if find_spec("mkdocs") else ["test_pages_in_browser.py"]


def pytest_report_header() -> str:
    return f"left out without mkdocs (`make docs` runs them): {', '.join(collect_ignore) or 'nothing'}"
