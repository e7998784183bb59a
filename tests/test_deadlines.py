"""Test deadlines beyond the conformance kit: transfers, layers, config, integrity, asyncio and the memory engine."""

from __future__ import annotations

import asyncio
import io
import json
import math
import uuid
from collections.abc import Callable
from typing import Any

import pytest

import hutch
import hutch.aio
from hutch import transfer
from hutch.codec import frame
from tests.clock import Clock, stop_clock


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return stop_clock(monkeypatch, 1_700_000_000_000)


def memory(**more: Any) -> dict[str, Any]:
    return {"STORAGE": f"memory://{uuid.uuid4().hex}", **more}


def fill(store: hutch.Store) -> None:
    """Set two keys that live, with and without a deadline, and one that the next move of the clock expires."""
    with store.open("core") as core:
        core.set("long", {"n": (1, 2)}, ttl_s=1000)
        core["plain"] = {"n": (1, 2)}
        core.set("gone", "gone", ttl_s=1)


def state(store: hutch.Store) -> dict[str, tuple[Any, float | None]]:
    with store.open("core") as core:
        return {key: (value, core.ttl_s(key)) for key, value in sorted(core.items())}


LIVE = {"long": ({"n": (1, 2)}, 990.0), "plain": ({"n": (1, 2)}, None)}

targets = pytest.mark.parametrize(
    "options",
    [{}, {"LAYERS": ["metrics"]}, {"TTL_S": 5}, {"CODEC": {"name": "pickle", "prefer": "msgpack"}}],
    ids=["frames", "a layer", "a default", "another codec"],
)


# --- transfers ---


@targets
def test_copy_and_verify_keep_deadlines(clock: Clock, options: dict[str, Any]) -> None:
    with hutch.connect(memory()) as source, hutch.connect(memory(**options)) as target:
        fill(source)
        clock.move(10)
        assert transfer.copy(source, target).written == 2
        assert state(target) == LIVE
        assert transfer.verify(source, target).equal == 2
        again = transfer.copy(source, target)
        assert (again.written, again.unchanged) == (0, 2)
        with target.open("core") as core:
            core.touch("long", 5)
        found = transfer.verify(source, target)
        assert (found.equal, found.different, found.ok) == (1, 1, False)
        assert transfer.copy(source, target).written == 1
        assert state(target) == LIVE


@targets
def test_dump_and_load_keep_deadlines(clock: Clock, options: dict[str, Any]) -> None:
    out = io.BytesIO()
    with hutch.connect(memory()) as source, hutch.connect(memory(**options)) as target:
        fill(source)
        clock.move(10)
        assert transfer.dump(source, out).written == 2
        lines = [json.loads(line) for line in out.getvalue().splitlines()]
        assert [line.get("deadline") for line in lines[1:-1]] == [1_700_001_000_000, None]
        assert transfer.load(target, out.getvalue().splitlines()).written == 2
        assert state(target) == LIVE


def test_a_frame_that_cannot_be_decoded_keeps_its_deadline_in_a_dump(clock: Clock, tmp_path: Any) -> None:
    unknown = frame.seal(frame.seal(b"\x92\xc7\x03\x11\x92\xa1x\x01\xce")[:-4])
    out = io.BytesIO()
    with hutch.connect(memory()) as source, hutch.connect(memory()) as target:
        with source.open("core") as core:
            storage: Any = core._store
            data = frame.set_deadline(unknown, clock.ms + 1000)
            storage.write_until("k", data, clock.ms + 1000)
            with pytest.raises(hutch.CorruptValueError):
                core["k"]
        transfer.dump(source, out)
        assert b'"frame"' in out.getvalue()
        transfer.load(target, out.getvalue().splitlines())
        with target.open("core") as core:
            assert core._store.read("k") == data  # type: ignore[attr-defined]
            assert core.ttl_s("k") == 1
            clock.move(1)
            assert "k" not in core
        assert transfer.dump(source, io.BytesIO()).written == 0


def test_a_dump_holds_no_pickle_behind_a_deadline(clock: Clock) -> None:
    data = frame.set_deadline(frame.seal(b"P\x80\x05N."), clock.ms + 1000)
    line = {"namespace": "core", "key": "k", "frame": __import__("base64").b64encode(data).decode()}
    lines = [b'{"hutch_dump":1}', json.dumps(line).encode(), b'{"count":1}']
    with hutch.connect(memory()) as store:
        with pytest.raises(hutch.CorruptValueError, match="its frame is a pickle"):
            transfer.load(store, lines)
        with store.open("core") as core:
            core._store.write_until("k", data, clock.ms + 1000)  # type: ignore[attr-defined]
        with pytest.raises(hutch.CorruptValueError, match="pickle"):
            transfer.dump(store, io.BytesIO())


@pytest.mark.parametrize("deadline", [-1, frame.MAX_DEADLINE_MS + 1, 1.5, "1", None, True])
def test_a_wrong_deadline_in_a_dump_is_refused(deadline: Any) -> None:
    line = {"namespace": "core", "key": "k", "value": 1, "deadline": deadline}
    lines = [b'{"hutch_dump":1}', json.dumps(line).encode(), b'{"count":1}']
    with hutch.connect(memory()) as store:
        with pytest.raises(hutch.CorruptValueError, match="line 2 of the dump: its deadline is not a number"):
            transfer.load(store, lines)
        assert store.namespaces() == []


def test_values_with_a_deadline_are_not_copied_to_where_nothing_expires(clock: Clock, tmp_path: Any) -> None:
    with hutch.connect(memory()) as source, hutch.connect({"STORAGE": "Six", **six_verbs(tmp_path)}) as target:
        fill(source)
        with pytest.raises(hutch.CapabilityError, match="ttl"):
            transfer.copy(source, target)
        with source.open("core") as core:
            core.touch("long", math.inf)
            del core["gone"]
        assert transfer.copy(source, target).written == 2


def six_verbs(folder: Any) -> dict[str, Any]:
    (folder / "six.plug").write_text("[Core]\nName = Six\nModule = six\nClass = SixPlugin\n")
    (folder / "six.py").write_text(
        "from hutch import StorageBase, StoragePluginBase\n"
        "class SixPlugin(StoragePluginBase):\n"
        "    def __init__(self, config=None):\n"
        "        super().__init__(config); self.data = {}\n"
        "    def open(self, namespace): return Six(self.data.setdefault(namespace, {}))\n"
        "    def namespaces(self): return list(self.data)\n"
        "class Six(StorageBase):\n"
        "    def __init__(self, data): self.data = data\n"
        "    def set(self, key, value): self.data[key] = value\n"
        "    def get(self, key): return self.data[key]\n"
        "    def remove(self, key): del self.data[key]\n"
        "    def len(self): return len(self.data)\n"
        "    def keys(self): return list(self.data)\n"
        "    def close(self): pass\n"
    )
    return {"EXTRA_PLUGIN_DIRS": [str(folder)]}


# --- the default of a config ---


@pytest.mark.parametrize("layers", [[], ["metrics"], ["cache"]])
def test_the_default_of_a_config_holds_for_each_write_without_ttl_s(clock: Clock, layers: list[str]) -> None:
    rules = {"x*": {"TTL_S": 9}, "never": {"TTL_S": math.inf}}
    with hutch.connect(memory(TTL_S=4, NAMESPACES=rules, LAYERS=layers)) as store:
        for name, expected in (("core", 4), ("xy", 9), ("never", None)):
            with store.open(name) as ns:
                ns["set"] = 1
                ns.update(update=1)
                ns.setdefault("setdefault", 1)
                ns.modify("modify", lambda value: value, default=1)
                ns.compare_and_set("compare_and_set", hutch.MISSING, 1)
                with ns.mutable("mutable", default=[]) as value:
                    value.append(1)
                assert {key: ns.ttl_s(key) for key in ns} == dict.fromkeys(sorted(ns), expected)
                assert len(ns) == 6
                clock.move(1)
                ns.modify("modify", lambda value: value + 1)
                with ns.mutable("mutable") as value:
                    value.append(2)
                left_s = None if expected is None else expected - 1
                assert (ns.ttl_s("modify"), ns.ttl_s("mutable")) == (left_s, left_s)
                ns.set("set", 1, ttl_s=100)
                ns.compare_and_set("update", 1, 2, ttl_s=math.inf)
                assert (ns.ttl_s("set"), ns.ttl_s("update")) == (100, None)


def test_a_default_where_nothing_expires_is_refused_when_opened(tmp_path: Any) -> None:
    with (
        hutch.connect({"STORAGE": "Six", "TTL_S": 5, **six_verbs(tmp_path)}) as store,
        pytest.raises(hutch.CapabilityError, match="ttl"),
    ):
        store.open("core")
    with pytest.raises(hutch.ConfigError, match="TTL_S"):
        hutch.load_plugin("memory", {"STORAGE": "memory", "TTL_S": 5})


# --- layers ---


def test_a_cached_value_never_outlives_its_deadline(clock: Clock) -> None:
    url = memory()["STORAGE"]
    cached = {"STORAGE": url, "LAYERS": [{"name": "cache", "ttl_s": math.inf}]}
    with hutch.connect(cached) as store, store.open("core") as core:
        core.set("k", [1], ttl_s=10)
        assert (core["k"], core["k"], "k" in core) == ([1], [1], True)
        clock.move(9)
        assert (core["k"], core.ttl_s("k")) == ([1], 1)
        core.touch("k", 5)
        assert core["k"] == [1]
        clock.move(4)
        assert core["k"] == [1]
        clock.move(1)
        assert (core.get("k"), "k" in core, core.get_many(["k"]), len(core)) == (None, False, {}, 0)
        with pytest.raises(KeyError):
            core["k"]


def test_read_only_refuses_every_write_of_a_deadline(clock: Clock) -> None:
    url = memory()["STORAGE"]
    with hutch.connect(url) as store, store.open("core") as core:
        core.set("k", 1, ttl_s=10)
        with hutch.connect({"STORAGE": url, "LAYERS": ["read-only"], "TTL_S": 5}) as other, other.open("core") as ns:
            writes: list[Callable[[], Any]] = [
                lambda: ns.set("k", 2, ttl_s=5),
                lambda: ns.__setitem__("k", 2),
                lambda: ns.set_many({"k": 2}, ttl_s=5),
                lambda: ns.touch("k", 5),
                ns.expire,
            ]
            for write in writes:
                with pytest.raises(hutch.CapabilityError, match="read-only"):
                    write()
            assert (ns["k"], ns.ttl_s("k")) == (1, 10)


# --- other parts ---


def test_verify_finds_nothing_wrong_with_deadlines_and_finds_forged_ones(clock: Clock) -> None:
    with hutch.connect(memory()) as store:
        fill(store)
        clock.move(10)
        assert list(store.verify()) == []
        with store.open("core") as core:
            storage: Any = core._store
            plain = storage.read("plain")
            for key, ms in (("far", frame.MAX_DEADLINE_MS + 1), ("max", (1 << 64) - 1)):
                storage.write(key, frame.seal(b"T" + ms.to_bytes(8, "big") + plain[:-4]))
                with pytest.raises(hutch.CorruptValueError, match=f"'{key}' in namespace 'core'.*year 9999"):
                    core[key]
                assert key in core
        assert [(finding.kind, finding.key) for finding in store.verify()] == [("value", "far"), ("value", "max")]


def test_asyncio_has_the_same_verbs(clock: Clock) -> None:
    async def main() -> None:
        async with hutch.aio.connect(memory()) as store, store.open("core") as core:
            await core.set("set", 1, ttl_s=10)
            await core.set_many({"many": 1}, ttl_s=10)
            await core.setdefault("setdefault", 1, ttl_s=10)
            await core.compare_and_set("swap", hutch.MISSING, 1, ttl_s=10)
            await core.modify("modify", lambda value: value, default=1, ttl_s=10)
            async with core.mutable("mutable", default=[], ttl_s=10) as value:
                value.append(1)
            assert {await core.ttl_s(key) async for key in core} == {10}
            await core.modify("modify", lambda value: value + 1, ttl_s=99)
            async with core.mutable("mutable", ttl_s=99) as value:
                value.append(2)
            assert (await core.ttl_s("modify"), await core.ttl_s("mutable")) == (10, 10)
            assert await core.touch("set", 20)
            clock.move(10)
            assert [key async for key in core] == ["set"]
            assert await core.expire() == 0
            with pytest.raises(ValueError, match="ttl_s must be above 0"):
                await core.set("set", 2, ttl_s=0)

    asyncio.run(main())


# --- the memory engine ---


def test_each_write_takes_two_expired_keys_and_expire_the_rest(clock: Clock) -> None:
    with hutch.connect(memory()) as store, store.open("core") as core:
        data = core._store._all  # type: ignore[attr-defined]
        core.set_many({f"k{n}": n for n in range(100)}, ttl_s=1)
        clock.move(1)
        writes: list[Callable[[], Any]] = [
            lambda: core.__setitem__("a", 1),
            lambda: core.update(b=1),
            lambda: core.set("c", 1, ttl_s=100),
            lambda: core.set_many({"d": 1}, ttl_s=100),
            lambda: core.compare_and_set("e", hutch.MISSING, 1),
            lambda: core.__delitem__("a"),
        ]
        held = 100
        for write in writes:
            before = len(data.frames)
            write()
            held -= 2
            assert sum(key[0] == "k" for key in data.frames) == held
            assert len(data.frames) <= before
        assert core.expire(10) == 10
        assert core.expire() == held - 10
        assert sorted(core) == ["b", "c", "d", "e"]


def test_a_deadline_that_is_renewed_often_takes_no_more_space(clock: Clock) -> None:
    with hutch.connect(memory()) as store, store.open("core") as core:
        data = core._store._all  # type: ignore[attr-defined]
        core.set_many({f"k{n}": n for n in range(10)}, ttl_s=1000)
        for n in range(2000):
            core.touch(f"k{n % 10}", 1000 + n)
        assert len(data.due) < 200
        clock.move(2988)
        assert len(core) > 0
        clock.move(1000)
        assert (len(core), len(data.frames), core.expire()) == (0, 0, 0)


def test_a_namespace_that_never_had_a_deadline_has_no_index(clock: Clock) -> None:
    with hutch.connect(memory()) as store, store.open("core") as core:
        core.update({str(n): n for n in range(100)})
        core.modify("1", lambda value: value + 1)
        del core["2"]
        assert core._store._all.due == []  # type: ignore[attr-defined]
