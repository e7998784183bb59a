"""The conformance kit: a test suite of every promise in docs/reference, which any plugin author can run.

from hutch.testing import StorageSuite

class TestFiles(StorageSuite):
    @pytest.fixture
    def config(self, tmp_path):
        return {"STORAGE": "Files", "STORAGE_CONFIG": {"path": str(tmp_path)}, "EXTRA_PLUGIN_DIRS": [HERE]}
"""

from __future__ import annotations

try:
    import hypothesis
    import pytest
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        f'hutch.testing needs {error.name}, which is not installed: pip install "hutch[testing]"', name=error.name
    ) from error

# Before the promises are imported, so that a failed assertion shows the compared values.
pytest.register_assert_rewrite("hutch.testing.conformance", "hutch.testing.codec_suite")
del hypothesis, pytest

from .codec_suite import CodecSuite  # noqa: E402
from .suite import StorageSuite  # noqa: E402

__all__ = ["CodecSuite", "StorageSuite"]
