"""scan and scan_keys compared with sorted lists; keys() in key order, if the engine is `ordered`."""

from __future__ import annotations

from itertools import product

import hutch

from .kit import Promises, needs

#: Keys around every place where the order of bytes, UTF-16 units or a locale differs from code point order.
TRICKY = [
    *("a", "A", "a\0", "a\0b", "aa", "ab", "b", "B", "Z", "_", "~", "\0", "\0\0", "\x01", "\x7f", "\x80", "é"),
    *("e\u0301", "ß", "ss", "\u07ff", "\u0800", "\ud7ff", "\ud7ffa", "\ue000", "\ufffd", "\uffff", "\uffffa"),
    *("\U00010000", "\U00010000a", "\U0001f430", "\U0010fffe", "\U0010ffff", "\U0010ffffa", "\U0010ffff\U0010ffff"),
    *("user:", "user:1", "user:10", "user:2", "user;", "user", "users", "10", "9", "a%", "a%00", "a*", "[a]", "a_"),
    "a?",
]


def model(keys: list[str], prefix: str, start: str | None, stop: str | None, reverse: bool) -> list[str]:
    """Return the keys that a scan must yield, in order."""
    chosen = [
        key
        for key in keys
        if key.startswith(prefix) and (start is None or key >= start) and (stop is None or key < stop)
    ]
    return sorted(chosen, reverse=reverse)


class Scans(Promises):
    def test_scan_gives_all_in_key_order(self, ns: hutch.Namespace) -> None:
        """scan gives every item in the order of code points, backwards with reverse."""
        assert list(ns.scan()) == []
        ns.update({key: [key] for key in TRICKY})
        for reverse in (False, True):
            expected = sorted(TRICKY, reverse=reverse)
            assert list(ns.scan(reverse=reverse)) == [(key, [key]) for key in expected]
            assert list(ns.scan_keys(reverse=reverse)) == expected

    def test_scan_keeps_to_prefix_start_and_stop(self, ns: hutch.Namespace) -> None:
        """Every combination of prefix, start, stop and reverse gives what a sorted dict would give."""
        ns.update(dict.fromkeys(TRICKY, 1))
        prefixes = [
            "",
            "a",
            "user:",
            "\0",
            "\ud7ff",
            "\uffff",
            "\U00010000",
            "\U0010ffff",
            "\U0010ffff\U0010ffff",
            "no",
        ]
        bounds = [
            None,
            "",
            "\0",
            "a",
            "a\0",
            "user:",
            "user:1",
            "\ud7ff",
            "\ue000",
            "\uffff",
            "\U00010000",
            "\U0010ffff",
        ]
        for choice in product(prefixes, bounds, bounds, (False, True)):
            assert list(ns.scan_keys(*choice)) == model(TRICKY, *choice), choice
        for choice in product(prefixes, bounds[::3], bounds[::4], (False, True)):
            assert list(ns.scan(*choice)) == [(key, 1) for key in model(TRICKY, *choice)], choice

    def test_a_prefix_is_text_not_a_pattern(self, ns: hutch.Namespace) -> None:
        """Special characters of SQL, globs and regular expressions in a prefix are matched literally."""
        signs = ["%", "_", "*", "?", "[a]", "\\", ".", "^", "$", "'", '"', "{", "a%", "a_", "a*"]
        ns.update({f"{sign}{tail}": 1 for sign in [*signs, "a", "x"] for tail in ("", "1", "a")})
        for sign in signs:
            assert list(ns.scan_keys(prefix=sign)) == model(list(ns), sign, None, None, False), sign

    def test_scan_crosses_the_chunks_it_reads_in(self, ns: hutch.Namespace) -> None:
        """A scan over some thousand keys misses and repeats none, whatever the engine's chunk size."""
        keys = [f"{n:04}" for n in range(3003)]
        ns.update(dict.fromkeys(reversed(keys), 1))
        assert list(ns.scan_keys()) == keys
        assert [key for key, _ in ns.scan(reverse=True)] == keys[::-1]
        assert list(ns.scan_keys(prefix="1")) == keys[1000:2000]
        assert list(ns.scan_keys(start="0999", stop="2001", reverse=True)) == keys[999:2001][::-1]

    def test_keys_and_items_are_in_key_order_where_ordered(self, store: hutch.Store) -> None:
        """Where ordered is declared, keys, items and values come in key order."""
        needs(store, "ordered")
        with store.open("core") as ns:
            ns.update({key: [key] for key in TRICKY})
            expected = sorted(TRICKY)
            assert list(ns) == expected
            assert list(ns.items()) == [(key, [key]) for key in expected]
            assert list(ns.values()) == [[key] for key in expected]
