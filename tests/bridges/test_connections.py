"""Test `hutch.bridges.connections`: one connection per URL and process."""

from __future__ import annotations

import os
import sys
import threading
from pathlib import Path

import pytest

import hutch
from hutch.bridges.connections import close_shared, shared_namespace, shared_store
from tests.bridges.processes import run


def test_all_who_name_a_url_have_one_store_and_one_handle_on_a_namespace(url: str) -> None:
    assert shared_store(url) is shared_store(url)
    assert shared_namespace(url, "core") is shared_namespace(url, "core")
    assert shared_namespace(url, "core") is not shared_namespace(url, "other")
    shared_namespace(url, "core")["k"] = {1}
    assert shared_namespace(url, "core")["k"] == {1}
    assert "k" not in shared_namespace(url, "other")


def test_a_url_within_hutch_s_own_scheme_is_that_url(tmp_path: Path) -> None:
    url = f"sqlite://{(tmp_path / 'x.db').as_posix()}"
    assert shared_store(f"hutch://{url}") is shared_store(url)


def test_a_config_object_is_never_confused_with_another_at_the_same_address(tmp_path: Path) -> None:
    for number in range(20):
        config = {"STORAGE": f"lmdb://{(tmp_path / str(number)).as_posix()}"}
        assert shared_store(config) is shared_store(config)
        shared_namespace(config, "core")["number"] = number
        assert (tmp_path / str(number)).is_dir()


def test_a_config_file_is_named_as_a_url_is(tmp_path: Path) -> None:
    config = tmp_path / "hutch.yaml"
    config.write_text("STORAGE: lmdb\nSTORAGE_CONFIG: {path: state}\n")
    shared_namespace(f"hutch://{config.as_posix()}", "core")["k"] = 1
    assert (tmp_path / "state").is_dir()


@pytest.mark.parametrize("nothing", [None, "", "hutch://"])
def test_without_a_url_it_is_the_store_of_the_environment(
    nothing: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("one", "two"):
        monkeypatch.setenv("HUTCH_STORAGE", f"lmdb://{(tmp_path / name).as_posix()}")
        shared_namespace(nothing, "core")["k"] = name
    assert shared_namespace(f"lmdb://{(tmp_path / 'one').as_posix()}", "core")["k"] == "one"
    assert shared_namespace(nothing, "core")["k"] == "two"


def test_a_variable_in_a_url_is_expanded_so_that_no_framework_records_the_password(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PLACE", tmp_path.as_posix())
    shared_namespace("hutch://lmdb://${PLACE}/${NAME:-state}", "core")["k"] = 1
    assert (tmp_path / "state").is_dir()
    with pytest.raises(hutch.ConfigError, match="variable SECRET_THAT_IS_NOT_SET is not set"):
        shared_store("redis://:${SECRET_THAT_IS_NOT_SET}@localhost")


def test_a_relative_path_is_that_of_the_working_folder_at_the_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        monkeypatch.chdir(tmp_path / name)
        shared_namespace("lmdb://state", "core")["k"] = name
    monkeypatch.chdir(tmp_path / "one")
    assert shared_namespace("lmdb://state", "core")["k"] == "one"


def test_threads_that_ask_at_once_get_one_handle(url: str) -> None:
    together, found = threading.Barrier(8), []

    def ask() -> None:
        together.wait()
        found.append(shared_namespace(url, "core"))

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    assert len(set(map(id, found))) == 1


def test_a_handle_that_was_closed_is_reopened(url: str) -> None:
    shared_namespace(url, "core")["k"] = 1
    shared_namespace(url, "core").close()
    assert shared_namespace(url, "core")["k"] == 1


def test_after_the_end_of_all_connections_a_url_is_connected_anew(lasting_url: str) -> None:
    before = shared_store(lasting_url)
    shared_namespace(lasting_url, "core")["k"] = 1
    shared_namespace(lasting_url, "closed").close()
    close_shared()
    with pytest.raises(hutch.StoreNotOpenError):
        before.namespaces()
    assert shared_namespace(lasting_url, "core")["k"] == 1


def test_a_url_that_fails_leaves_nothing_behind_and_may_work_the_next_time(tmp_path: Path) -> None:
    in_the_way = tmp_path / "state"
    in_the_way.write_text("a file where a folder should be")
    with pytest.raises(hutch.StoreError):
        shared_namespace(f"lmdb://{in_the_way.as_posix()}", "core")["k"] = 1
    close_shared()
    in_the_way.unlink()
    shared_namespace(f"lmdb://{in_the_way.as_posix()}", "core")["k"] = 1


FORGETFUL = """
import sys
from hutch.bridges.connections import shared_namespace
for number in range(20):
    shared_namespace(sys.argv[1], f"part {number % 3}")[str(number)] = number
"""


def test_a_program_that_closes_nothing_ends_silently_and_loses_nothing(lasting_url: str, tmp_path: Path) -> None:
    assert run(FORGETFUL, lasting_url, folder=tmp_path, PYTHONWARNINGS="error") == []
    parts = [dict(shared_namespace(lasting_url, f"part {number}")) for number in range(3)]
    assert {key: value for part in parts for key, value in part.items()} == {str(n): n for n in range(20)}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_a_forked_child_uses_the_connection_that_it_inherits(lasting_url: str, tmp_path: Path) -> None:
    # Python warns of forks among threads; here it is intended.
    message = run(FORKING, lasting_url, folder=tmp_path, PYTHONWARNINGS="ignore::DeprecationWarning")
    assert message == ["child [1, 2]", "parent [1, 2, 3]"]


FORKING = """
import os, sys, threading
from hutch.bridges import connections as shared
core = shared.shared_namespace(sys.argv[1], "core")
core["1"] = 1
held, done = threading.Event(), threading.Event()
def hold():  # a thread that does not exist in the child
    with shared._lock.current:
        held.set()
        done.wait(30)
thread = threading.Thread(target=hold)
thread.start()
held.wait(30)
child = os.fork()
if not child:
    core = shared.shared_namespace(sys.argv[1], "core")
    core["2"] = 2
    print("child", sorted(core.values()), flush=True)
    core["3"] = 3
    os._exit(0)
done.set()
thread.join()
assert os.waitpid(child, 0)[1] == 0
print("parent", sorted(core.values()), flush=True)
"""


def test_bridges_import_no_framework_and_no_other_bridge() -> None:
    script = (
        "import sys, hutch.bridges.connections; print(*sorted(n for n in sys.modules if n.startswith('hutch.bridges')))"
    )
    assert run(script, folder=Path.cwd()) == ["hutch.bridges hutch.bridges.connections"]
    assert "hutch.bridges.connections" in sys.modules
