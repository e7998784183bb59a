"""Damaged data: the error says where the damage is, and other data stays usable."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from contextlib import closing
from typing import Any

import pytest

import hutch

from .kit import Promises, encoded, listing

# The CRC-32 of a key and its intact frame (docs/format.md). Engines whose values have it notice every change.
_RESIDUE = 0x2144DF1C

READS: dict[str, Callable[[hutch.Namespace], Any]] = {
    "[]": lambda ns: ns["bad"],
    "get": lambda ns: ns.get("bad"),
    "pop": lambda ns: ns.pop("bad"),
    "items": lambda ns: list(ns.items()),
    "values": lambda ns: list(ns.values()),
    "scan": lambda ns: list(ns.scan()),
    "get_many": lambda ns: ns.get_many(["bad", "good"]),
    "modify": lambda ns: ns.modify("bad", lambda v: v),
    "mutable": lambda ns: ns.mutable("bad").__enter__(),
    "compare_and_set": lambda ns: ns.compare_and_set("bad", 1, 2),
    "setdefault": lambda ns: ns.setdefault("bad", 1),
}


class Corruption(Promises):
    def corrupt(self, config: Any, namespace: str, key: str) -> None:
        """Damage the stored bytes of `key`. Override it for an engine of bytes that is not a `hutch.EncodedStorage`."""
        with hutch.connect(config) as store, closing(encoded(store, namespace)) as storage:
            stored = storage.read(key)
            assert stored is not None
            storage.write(key, b"\xc1" + stored[1:-1])

    def test_damaged_data_is_an_error_that_says_where(self, config: Any) -> None:
        """Every way to read a damaged value raises CorruptValueError with plugin, namespace and key, but no value."""
        with hutch.connect(config) as store, store.open("core") as ns:
            ns["bad"] = "this is secret"
            ns["good"] = "intact"
        self.corrupt(config, "core", "bad")
        with hutch.connect(config) as store, store.open("core") as ns:
            for way, read in READS.items():
                with pytest.raises(hutch.CorruptValueError) as raised:
                    read(ns)
                    pytest.fail(f"{way} returned a damaged value")
                text = str(raised.value)
                assert all(part in text for part in (store.name, "'core'", "'bad'")), f"{way}: {text}"
                assert "secret" not in text

    def test_verify_reports_the_damage_and_nothing_else(self, config: Any) -> None:
        """`verify` finds nothing in a sound store, and names the namespace and key of a damaged value."""
        with hutch.connect(config) as store:
            listing(store)
            with store.open("core") as ns, store.open("other") as other:
                ns.update(bad="this is secret", good=[1], large=bytes(100_000))
                other.update({"ä": 1, "b": None})
                del ns["good"]
            assert list(store.verify()) == []
            assert list(store.verify(repair=True)) == []
        self.corrupt(config, "core", "bad")
        with hutch.connect(config) as store:
            [finding] = store.verify()
            place = (finding.kind, finding.namespace, finding.key, finding.repaired)
            assert place == ("value", "core", "bad", False)
            assert "secret" not in finding.message

    def test_damage_stays_where_it_is(self, config: Any) -> None:
        """A damaged value affects nothing else: other keys, len and keys work; it can be set anew and removed."""
        with hutch.connect(config) as store, store.open("core") as ns:
            ns.update(bad=1, good=2, worse=3)
        self.corrupt(config, "core", "bad")
        self.corrupt(config, "core", "worse")
        with hutch.connect(config) as store, store.open("core") as ns:
            assert (ns["good"], len(ns), sorted(ns), "bad" in ns) == (2, 3, ["bad", "good", "worse"], True)
            assert list(ns.scan_keys()) == ["bad", "good", "worse"]
            ns["good"] = 4
            ns["bad"] = 5
            del ns["worse"]
            assert dict(ns) == {"bad": 5, "good": 4}

    def test_bytes_that_are_no_value_are_never_taken_for_one(self, store: hutch.Store) -> None:
        """Foreign, cut and empty bytes are a CorruptValueError, never a value (engines that encode)."""
        with closing(encoded(store, "core")) as storage:
            storage.set("k", {"some": ["value"], "n": 5})
            intact = storage.read("k")
            assert intact is not None
            foreign = (b"", b"\0", b"\xc1" * 40, b"plain text of another program")
            for planted in (*foreign, intact[:-1], intact[: len(intact) // 2]):
                storage.write("k", planted)
                with pytest.raises(hutch.CorruptValueError):
                    storage.get("k")
                    pytest.fail(f"{planted!r} was taken for a value")
            storage.write("k", intact)
            assert storage.get("k") == {"some": ["value"], "n": 5}

    def test_a_flipped_bit_anywhere_in_a_value_is_noticed(self, store: hutch.Store) -> None:
        """Any single flipped bit of the stored bytes is a CorruptValueError (engines that store hutch's own frames)."""
        with closing(encoded(store, "core")) as storage:
            storage.set("k", {"some": ["value"]})
            intact = storage.read("k")
            assert intact is not None
            if zlib.crc32(intact, zlib.crc32(b"k") if storage.checksum_covers_key else 0) != _RESIDUE:
                pytest.skip(f"the {store.name} engine stores values in a format without a checksum")
            for position in range(len(intact) * 8):
                flipped = bytearray(intact)
                flipped[position // 8] ^= 1 << position % 8
                storage.write("k", bytes(flipped))
                with pytest.raises(hutch.CorruptValueError):
                    storage.get("k")
                    pytest.fail(f"bit {position} of {len(intact) * 8} was flipped unnoticed")

    def test_a_value_under_a_key_that_is_not_its_own_is_noticed(self, store: hutch.Store) -> None:
        """Bytes stored under another key are a CorruptValueError, if the engine's `checksum_covers_key` is true."""
        with closing(encoded(store, "core")) as storage:
            storage.set_many({"a": 1, "b": 2})
            moved = storage.read("a")
            assert moved is not None
            if zlib.crc32(moved, zlib.crc32(b"a")) != _RESIDUE:
                pytest.skip(f"the {store.name} engine stores values that are bound to no key")
            storage.write("b", moved)
            for read in (lambda: storage.get("b"), lambda: storage.get_many(["a", "b"]), lambda: list(storage.items())):
                with pytest.raises(hutch.CorruptValueError, match="'b'"):
                    read()
            assert storage.get("a") == 1

    @pytest.mark.parametrize("kind", ["past the year 9999", "within another", "truncated", "of no value"])
    def test_a_forged_deadline_is_noticed(self, store: hutch.Store, kind: str) -> None:
        """A deadline that hutch never writes is a CorruptValueError that names the key, and no other key suffers."""
        with closing(encoded(store, "core")) as storage:
            storage.set_many({"bad": 1, "good": 2})
            inner = storage.read("bad")
            assert inner is not None
            later = (1 << 47).to_bytes(8, "big")
            content = {
                "past the year 9999": b"T" + b"\xff" * 8 + inner[:-4],
                "within another": b"T" + later + b"T" + later + inner[:-4],
                "truncated": b"T" + later[:4],
                "of no value": b"T" + later,
            }[kind]
            crc = zlib.crc32(content, storage.key_crc_of("bad"))
            storage.write("bad", content + crc.to_bytes(4, "little"))
            reads: list[Callable[[], object]] = [
                lambda: storage.get("bad"),
                lambda: storage.get_many(["good", "bad"]),
                lambda: list(storage.items()),
                lambda: storage.get_for_update("bad"),
            ]
            for read in reads:
                with pytest.raises(hutch.CorruptValueError, match="'bad'"):
                    read()
            assert (storage.get("good"), storage.contains("bad")) == (2, True)
            storage.set("bad", 3)
            assert storage.get("bad") == 3
