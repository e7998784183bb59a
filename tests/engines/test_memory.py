"""Test what the memory engine promises beyond the contract: who shares its data, and how long it lives."""

from __future__ import annotations

import os
import uuid

import pytest

import hutch

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")


def test_without_a_name_each_store_has_data_of_its_own() -> None:
    with hutch.connect("memory://") as one, hutch.connect("memory://") as other:
        with one.open("core") as first, other.open("core") as second:
            first["k"] = 1
            assert dict(second) == {}
        assert (one.namespaces(), other.namespaces()) == (["core"], [])
        with one.open("core") as again:
            assert dict(again) == {"k": 1}, "it lives as long as the store"
    with hutch.connect("memory://") as third, third.open("core") as space:
        assert dict(space) == {}


def test_a_name_is_shared_by_all_stores_of_the_process_for_as_long_as_it_lives() -> None:
    name = uuid.uuid4().hex
    with hutch.connect(f"memory://{name}") as store, store.open("core") as space:
        space["k"] = [1]
    forms = [f"memory://{name}", {"STORAGE": "memory", "STORAGE_CONFIG": {"name": name}}]
    for form in forms:
        with hutch.connect(form) as store, store.open("core") as space:
            assert dict(space) == {"k": [1]}
    with hutch.connect(f"memory://{name}2") as other:
        assert other.namespaces() == []


def test_a_stored_value_is_independent_of_the_caller_s_object() -> None:
    with hutch.connect("memory://") as store, store.open("core") as space:
        mine = {"a": [1]}
        space["k"] = mine
        mine["a"].append(2)
        space["k"]["a"].append(3)
        for value in space.values():
            value["a"].append(4)
        assert space["k"] == {"a": [1]}


def test_a_drop_elsewhere_empties_an_open_handle_in_place() -> None:
    name = uuid.uuid4().hex
    with hutch.connect(f"memory://{name}") as one, hutch.connect(f"memory://{name}") as other:
        with one.open("core") as space:
            space["k"] = 1
            other.drop("core")
            assert dict(space) == {}
            space["k"] = 2
            with other.open("core") as seen:
                assert dict(seen) == {"k": 2}
        other.drop("never there")


def test_bad_options_are_refused_by_name() -> None:
    with pytest.raises(hutch.ConfigError, match=r"the memory engine has no option 'nmae'. Did you mean 'name'\?"):
        hutch.connect({"STORAGE": "memory", "STORAGE_CONFIG": {"nmae": "x"}})


@pytest.mark.usefixtures("unmeasured")
@needs_fork
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_child_has_a_copy_of_the_data_and_changes_only_that() -> None:
    with hutch.connect("memory://") as store, store.open("core") as space:
        space["k"] = 1
        pid = os.fork()
        if not pid:
            space["k"] = space["k"] + 1
            space.update(a=1)
            os._exit(0 if dict(space) == {"k": 2, "a": 1} else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        assert dict(space) == {"k": 1}
