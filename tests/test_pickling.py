"""Test pickles of stores and namespaces: what they hold, what is refused, and how workers use them."""

from __future__ import annotations

import math
import multiprocessing
import os
import pickle
import subprocess
import sys
import types
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import hutch
from hutch import pickling

from .pages import blocks

ROOT = Path(__file__).parent.parent

METHODS = [method for method in ("spawn", "fork") if method in multiprocessing.get_all_start_methods()]


@pytest.fixture(autouse=True)
def _close() -> Iterator[None]:
    yield
    pickling.close_unpickled()


@pytest.fixture(params=["lmdb", "sqlite"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return {"lmdb": f"lmdb://{tmp_path}/l", "sqlite": f"sqlite://{tmp_path}/k.db"}[request.param]


def write(ns: hutch.Namespace, number: int) -> int:
    ns[f"k{number}"] = number
    with ns:  # the end of the block closes no handle that another job has
        pass
    return int(ns[f"k{number}"])


def open_and_write(store: hutch.Store, number: int) -> int:
    with store.open("core") as ns:
        ns[f"k{number}"] = number
        return int(ns[f"k{number}"])


@pytest.mark.parametrize("method", METHODS)
def test_workers_get_namespaces_and_stores(url: str, method: str) -> None:
    with (
        hutch.connect(url) as store,
        store.open("core") as ns,
        ProcessPoolExecutor(2, mp_context=multiprocessing.get_context(method)) as pool,
    ):
        assert list(pool.map(write, [ns] * 8, range(8), timeout=120)) == list(range(8))
        assert list(pool.map(open_and_write, [store] * 4, range(8, 12), timeout=120)) == list(range(8, 12))
        assert dict(ns) == {f"k{number}": number for number in range(12)}


def test_threads_that_unpickle_share_one_handle_and_no_close_takes_it_from_them(url: str) -> None:
    with hutch.connect(url) as store, store.open("core") as ns:
        data = pickle.dumps(ns)
        with ThreadPoolExecutor(8) as pool:
            handles = list(pool.map(lambda _: pickle.loads(data), range(32)))
            assert len({id(handle) for handle in handles}) == 1
            assert list(pool.map(write, handles, range(32))) == list(range(32))
        assert handles[0] is not ns
        assert len(ns) == 32
        # It goes on from one process to the next.
        assert pickle.loads(pickle.dumps(handles[0])) is handles[0]
        stores = {pickle.loads(pickle.dumps(store)) for _ in range(3)}
        assert len(stores) == 1
        with stores.pop() as other:
            pass
        with other.open("core") as again:
            assert again["k0"] == 0
    assert handles[0]["k1"] == 1
    pickling.close_unpickled()
    assert not handles[0].is_open_storage()
    # Afterwards it is connected anew.
    assert pickle.loads(data)["k2"] == 2


def test_the_config_comes_along(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Relative paths, variables, codecs, layers, times to live and rules."""
    monkeypatch.setenv("HUTCH_TEST_NAME", "k.db")
    monkeypatch.chdir(tmp_path)
    config = {
        "STORAGE": "sqlite",
        "STORAGE_CONFIG": {"path": "${HUTCH_TEST_NAME}", "wait_s": 3},
        "CODEC": {"name": "pickle", "prefer": "msgpack"},
        "LAYERS": ["metrics", {"name": "cache", "ttl_s": 2}],
        "TTL_S": 86400,
        "NAMESPACES": {
            "log:*": {"CODEC": "json", "LAYERS": ["read-only"]},
            "plain": {"LAYERS": []},
            "brief": {"TTL_S": 60},
            "lasting": {"TTL_S": math.inf},
        },
        "EXTRA_PLUGIN_DIRS": ["plugins"],
    }
    with hutch.connect(config) as store, store.open("core") as ns:
        ns["k"] = {1}
        data = pickle.dumps((store, ns))
        monkeypatch.setenv("HUTCH_TEST_NAME", "other.db")
        (tmp_path / "elsewhere").mkdir()
        monkeypatch.chdir(tmp_path / "elsewhere")
        other, handle = pickle.loads(data)
        assert other.config == store.config
        assert handle["k"] == {1}
        assert type(handle._store) is type(ns._store)
        with other.open("log:1") as log, pytest.raises(hutch.CapabilityError):
            log["k"] = 1
        other["brief"]["k"] = other["lasting"]["k"] = 1
        assert 0 < (other["brief"].ttl_s("k") or 0) <= 60
        assert other["lasting"].ttl_s("k") is None
    assert not list((tmp_path / "elsewhere").iterdir())


@pytest.mark.parametrize(
    "config", ["memory://", types.SimpleNamespace(STORAGE="sqlite", STORAGE_CONFIG={"path": "x.db"})], ids=str
)
def test_what_no_other_process_could_connect_to_is_refused(
    config: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with hutch.connect(config) as store, store.open("core") as ns:
        for what, name in ((store, "store"), (ns, "namespace")):
            with pytest.raises(TypeError, match=f"this {name} cannot be pickled: .*(Send|send) "):
                pickle.dumps(what)


def test_what_is_closed_is_not_pickled(url: str) -> None:
    with hutch.connect(url) as store, store.open("core") as ns:
        pass
    with pytest.raises(hutch.StoreNotOpenError):
        pickle.dumps(ns)
    with pytest.raises(hutch.StoreNotOpenError):
        pickle.dumps(store)


@pytest.mark.usefixtures("unmeasured")
@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_forked_child_unpickles_what_its_parent_had_unpickled(url: str) -> None:
    with hutch.connect(url) as store, store.open("core") as ns:
        data = pickle.dumps(ns)
        pickle.loads(data)["k"] = 1
        pid = os.fork()
        if not pid:
            try:
                handle = pickle.loads(data)
                handle["child"] = handle["k"] + 1
            finally:
                sys.stdout.flush()
                os._exit(0 if "child" in handle else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        assert ns["child"] == 2


def test_the_program_on_the_page_works(tmp_path: Path) -> None:
    [block] = [block for block in blocks(ROOT / "docs/howto/host.md") if block.file == "words.py"]
    block.write(tmp_path)
    for expected in ("[1, 1, 2]", "[3, 2, 4]"):
        command = [sys.executable, "words.py"]
        run = subprocess.run(command, check=False, cwd=tmp_path, capture_output=True, text=True, timeout=120)
        assert sorted(run.stdout.strip()[1:-1].split(", ")) == sorted(expected[1:-1].split(", ")), run.stderr
