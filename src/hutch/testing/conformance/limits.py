"""The portable limits: what every engine accepts, and what it refuses before anything is written."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

import hutch

from .kit import Promises, encoded

#: Keys that every engine accepts: all sizes, and whatever could be special in a file name, a query or a protocol.
KEYS = [
    *("k", "k" * 1024, "é" * 512, "\U0001f430" * 256, "\U0010ffff" * 256, "€" * 341, "\0", "\0" * 1024, "a\0", "a\0b"),
    *("\n", "a\r\nb", "\t", " ", "  ", " k", "k ", "/", "a/b", "/etc/passwd", "..", ".", "../../x", "\\", "C:\\x"),
    *("a:b", ":", "::", "%", "%00", "%2F", "*", "?", "[", "'", '"', ";", "'; DROP TABLE kv; --", "{k}", "${HOME}"),
    *("$(id)", "#", "\x7f", "\x80", "\ufeff", "\ufffd", "\uffff", "\U00010000", "é", "e\u0301", "K", "\u212a", "ſ"),
    *("s", "ß", "İ", "i", "\u202eabc", "👩‍👩‍👧", "None", "null", "0", "-1", "CON", "nul.txt", "__len__", "__class__"),
    *("len", "keys", "k.", "-k", "@k"),
]

#: Names of namespaces that every engine accepts.
NAMESPACES = [
    *("a", "A", "a:b", "a/b", "a\\b", "a.b", "a b", "a ", " a", "a.", ".a", ".", "..", "../a", "../../etc/passwd"),
    *("/etc/passwd", "/", "//", "\\", "C:\\a", "C:", ":", "::", "%", "%2F", "a%2Fb", "a%", "~", "~root", "-", "--help"),
    *("*", "?", "[a]", "{a}", "{}", "'", '"', "`id`", "$HOME", "$(id)", ";", "'; DROP TABLE kv; --", "|", "&", "<a>"),
    *("CON", "con", "nul", "AUX.txt", "COM1", "lock", "a.db", "a.db.db", "data.mdb", "a.lock", "__init__", "_", "@"),
    *("\n", "a\nb", "\t", "\r\n", "\x01", "\x1b[31m", "\x7f", "\x80", "\ufeff", "\u202e", "\u2028", "é", "e\u0301"),
    *("ß", "SS", "K", "\u212a", "İ", "\ue000", "\uffff", "\U00010000", "\U0010ffff", "🐇", "n" * 255, "N" * 255),
    *("é" * 127, "🐇" * 63, "." * 255, "/" * 255, ":" * 255, "n" * 254 + "o", "名前", "0", "None", "main", "core:meta"),
]

BAD_KEYS: list[tuple[Any, type[Exception]]] = [
    *((wrong, hutch.KeyLimitError) for wrong in ("", "k" * 1025, "é" * 513, "\U0001f430" * 257, "\ud800", "a\udfffb")),
    *((wrong, hutch.KeyTypeError) for wrong in (None, 7, 1.5, b"k", ("k",), True)),
]

BAD_NAMESPACES: list[Any] = ["", "n" * 256, "é" * 128, "a\0b", "\0", "\ud800", None, 7, b"core", ["core"]]


class Limits(Promises):
    def test_any_key_within_the_limits_works(self, ns: hutch.Namespace) -> None:
        """Keys of 1 to 1,024 bytes, with any character, can be set, read, counted, listed, scanned and removed."""
        for number, key in enumerate(KEYS):
            ns[key] = number
        assert len(ns) == len(KEYS)
        assert sorted(ns) == sorted(KEYS)
        assert dict(ns.scan()) == {key: number for number, key in enumerate(KEYS)}
        assert list(ns.scan_keys()) == sorted(KEYS)
        for number, key in enumerate(KEYS):
            assert key in ns
            assert ns[key] == number, ascii(key)
            assert ns.modify(key, lambda n: n + 1) == number + 1
            del ns[key]
            assert key not in ns, ascii(key)
        assert len(ns) == 0

    def test_a_batch_takes_any_key_within_the_limits(self, ns: hutch.Namespace) -> None:
        """Batches take any key of 1 to 1,024 bytes, with any character."""
        ns.update({key: [key] for key in KEYS})
        assert ns.get_many(KEYS) == {key: [key] for key in KEYS}
        assert ns.remove_many(KEYS) == len(KEYS)
        assert list(ns) == []

    @pytest.mark.parametrize(("bad", "error"), BAD_KEYS, ids=[ascii(bad)[:12] for bad, _ in BAD_KEYS])
    def test_a_key_outside_the_limits_is_refused_by_every_verb(
        self, ns: hutch.Namespace, bad: Any, error: type[Exception]
    ) -> None:
        """A key that is empty, too long, not a str or has lone surrogates is refused by every verb, with no effect."""
        ns["k"] = 1
        refused: list[Callable[[], object]] = [
            *(lambda: ns[bad], lambda: ns.__setitem__(bad, 1), lambda: ns.__delitem__(bad), lambda: bad in ns),
            *(lambda: ns.get(bad), lambda: ns.pop(bad), lambda: ns.pop(bad, None), lambda: ns.setdefault(bad, 1)),
            *(lambda: ns.update({bad: 1}), lambda: ns.get_many([bad]), lambda: ns.remove_many([bad])),
            *(lambda: ns.modify(bad, lambda v: v, default=1), lambda: ns.compare_and_set(bad, hutch.MISSING, 1)),
            lambda: ns.mutable(bad).__enter__(),
        ]
        for call in refused:
            with pytest.raises(error) as raised:
                call()
            assert len(str(raised.value)) < 400
        assert dict(ns) == {"k": 1}

    def test_a_key_that_is_a_subclass_of_str_is_a_key(self, ns: hutch.Namespace) -> None:
        """A key of a subclass of str is taken as its plain text."""

        class Name(str):
            __slots__ = ()

        ns[Name("k")] = 1
        assert ns["k"] == 1
        assert ns[Name("k")] == 1
        assert [type(key) for key in ns] == [str]

    @pytest.mark.parametrize("bad", BAD_NAMESPACES, ids=[ascii(bad)[:12] for bad in BAD_NAMESPACES])
    def test_a_name_outside_the_limits_is_refused(self, store: hutch.Store, bad: Any) -> None:
        """A namespace that is empty, longer than 255 bytes, contains NUL or is not a str raises NamespaceError."""
        for call in (store.open, store.drop):
            with pytest.raises(hutch.NamespaceError):
                call(bad)

    @pytest.mark.parametrize("size", [100, 4096, 65_536, 1_000_003])
    def test_values_of_any_size_come_back(self, ns: hutch.Namespace, size: int) -> None:
        """Values up to 1 MiB come back complete, and can grow and shrink in place."""
        pattern = bytes(range(256)) * (size // 256 + 1)
        ns["k"] = pattern[:size]
        ns["text"] = "é" * (size // 2)
        for part in (size, 1, size - 1, 0, size):
            ns["k"] = pattern[:part]
            assert ns["k"] == pattern[:part]
        assert ns["text"] == "é" * (size // 2)
        assert len(ns) == 2

    def test_a_value_of_16_mib_comes_back(self, ns: hutch.Namespace) -> None:
        """A value of 16 MiB comes back complete from get and scan."""
        value = bytes(range(256)) * (16 * 4096)
        ns["k"] = value
        # Compared outside of `assert`: pytest would need half a minute to show a difference.
        came_back = ns["k"] == value, list(ns.scan()) == [("k", value)]
        assert came_back == (True, True)

    def test_a_value_that_cannot_be_stored_leaves_the_old_one(self, store: hutch.Store) -> None:
        """A refused value is a ValueTypeError, and the value stored before stays (engines that encode)."""
        encoded(store, "core").close()
        with store.open("core") as ns:
            ns["k"] = "old"
            calls: list[Callable[[], object]] = [
                lambda: ns.__setitem__("k", lambda: None),
                lambda: ns.__setitem__("new", [{"deep": iter(())}]),
                lambda: ns.setdefault("new", lambda: None),
                lambda: ns.modify("k", lambda _: lambda: None),
                lambda: ns.compare_and_set("k", "old", lambda: None),
            ]
            for call in calls:
                with pytest.raises(hutch.ValueTypeError):
                    call()
            with pytest.raises(hutch.ValueTypeError), ns.mutable("list", default=[]) as value:
                value.append(lambda: None)
            assert dict(ns) == {"k": "old"}
