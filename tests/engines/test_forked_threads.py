"""Test that another thread of a forked child can write: the fork's own locks are released there too."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

import hutch

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.usefixtures("unmeasured"),
]


@pytest.mark.parametrize("engine", ["memory", "lmdb", "sqlite"])
def test_a_thread_of_a_forked_child_writes_at_once(engine: str, tmp_path: Path) -> None:
    url = {"memory": "memory://", "lmdb": f"lmdb://{tmp_path}/s", "sqlite": f"sqlite://{tmp_path}/kv.db"}[engine]
    with hutch.connect(url) as store, store.open("core") as core:
        core["k"] = 1
        child = os.fork()
        if child == 0:
            thread = threading.Thread(target=core.__setitem__, args=("k", 2), daemon=True)
            thread.start()
            thread.join(20)
            os._exit(thread.is_alive() or core["k"] != 2)
        assert os.waitpid(child, 0)[1] == 0
        core["k"] = 3
