"""Mistakes with keys, values and a namespace as a mapping, as a user of dict, shelve or diskcache makes them."""

from __future__ import annotations

from . import Mistake

MISTAKES = [
    Mistake(
        made="ns[7] = 'seven'",
        error="KeyTypeError",
        says=("a key must be a str, not int", "str()"),
        advice="ns[str(7)] = 'seven'",
        then="ns['7'] == 'seven'",
    ),
    Mistake(
        made="ns['ada', 1] = 'x'",
        error="KeyTypeError",
        says=("a key must be a str, not tuple", "json.dumps()"),
        advice="import json; ns[json.dumps(('ada', 1))] = 'x'",
        then="""ns['["ada", 1]'] == 'x'""",
    ),
    Mistake(
        made="ns['https://example.org/' + 'a' * 2000] = 'page'",
        error="KeyLimitError",
        says=("at most 1,024 bytes", "Hash the tail"),
        advice="""
        import hashlib
        ns['https://example.org/' + hashlib.sha256(b'a' * 2000).hexdigest()] = 'page'
        """,
        then="len(ns) == 3",
    ),
    Mistake(
        made="ns['page'] = bytearray(b'x')",
        error="ValueTypeError",
        says=("is a bytearray", "bytes()"),
        advice="ns['page'] = bytes(bytearray(b'x'))",
        then="ns['page'] == b'x'",
    ),
    Mistake(
        made="import copy; other = copy.deepcopy(ns)",
        error="TypeError",
        says=("cannot be copied", "dict(namespace)"),
        advice="other = dict(ns)",
        then="other == {'settings': {'theme': 'dark'}, 'visits': [1]}",
    ),
    Mistake(
        made="again = store.open('core')",
        error="StoreAlreadyOpenError",
        says=("'core'", "close it"),
        advice="ns.close(); ns = store.open('core')",
        then="ns['visits'] == [1]",
    ),
    Mistake(
        before="ns.close()",
        made="ns['visits']",
        error="StoreNotOpenError",
        says=("'core' is closed", "open it again"),
        advice="ns = store.open('core')",
        then="ns['visits'] == [1]",
    ),
]
