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
    # --- keys ---
    Mistake(
        made="ns[b'raw'] = 1",
        error="KeyTypeError",
        says=("a key must be a str, not bytes (b'raw')", "key.decode()"),
        advice="key = b'raw'; ns[key.decode()] = 1",
        then="ns['raw'] == 1",
    ),
    Mistake(
        made="part = ns['a':'t']",
        error="KeyTypeError",
        says=("not slice", "scan(start=..., stop=...)"),
        advice="part = dict(ns.scan(start='a', stop='t'))",
        then="part == {'settings': {'theme': 'dark'}}",
    ),
    Mistake(
        made="ns.update({'good': 1, 7: 'seven'})",
        error="KeyTypeError",
        says=("not int (7)", "str()"),
        advice="ns.update({'good': 1, str(7): 'seven'})",
        then="ns['7'] == 'seven'",
    ),
    Mistake(
        made="7 in ns",
        error="KeyTypeError",
        says=("not int (7)", "str()"),
        advice="there = str(7) in ns",
        then="there is False",
    ),
    Mistake(
        made="found = ns.get_many('visits')",
        error="KeyTypeError",
        says=("as a list, not as a str", "write [key]"),
        advice="key = 'visits'; found = ns.get_many([key])",
        then="found == {'visits': [1]}",
    ),
    Mistake(
        before="ns.update({'v': 1, 's': 2})",
        made="ns.remove_many('visits')",
        error="KeyTypeError",
        says=("as a list, not as a str", "write [key]"),
        advice="key = 'visits'; ns.remove_many([key])",
        then="set(ns) == {'settings', 'v', 's'}",
    ),
    Mistake(
        made="other = store.open(7)",
        error="NamespaceError",
        says=("a namespace must be a str, not int (7)", "str()"),
        advice="with store.open(str(7)) as other: other['k'] = 1",
        then="store.namespaces() == ['7', 'core']",
    ),
    # --- values and batches ---
    Mistake(
        made="ns['page'] = memoryview(b'x')",
        error="ValueTypeError",
        says=("'page'", "is a memoryview", "bytes()"),
        advice="ns['page'] = bytes(memoryview(b'x'))",
        then="ns['page'] == b'x'",
    ),
    Mistake(
        made="ns.update({'good': 1, 'raw': bytearray(b'x')})",
        error="ValueTypeError",
        says=("'raw'", "is a bytearray", "bytes()"),
        advice="ns.update({'good': 1, 'raw': bytes(bytearray(b'x'))})",
        then="(ns['good'], ns['raw']) == (1, b'x')",
    ),
    Mistake(
        made="ns.update('visits')",
        error="TypeError",
        says=("a mapping or pairs of key and value, not a str", "namespace[key] = value"),
        advice="ns['visits'] = [2]",
        then="ns['visits'] == [2]",
    ),
    Mistake(
        made="ns.set_many(5)",
        error="TypeError",
        says=("a mapping or pairs of key and value, not an int",),
        advice="ns.set_many({'five': 5})",
        then="ns['five'] == 5",
    ),
    Mistake(
        made="more = ns | {'new': 1}",
        error="TypeError",
        says=("a namespace has no `|`", "`dict(namespace) | other`", "`namespace |= other`"),
        advice="more = dict(ns) | {'new': 1}; ns |= {'stored': 2}",
        then="set(more) == {'settings', 'visits', 'new'} and set(ns) == {'settings', 'visits', 'stored'}",
    ),
    Mistake(
        made="more = {'new': 1} | ns",
        error="TypeError",
        says=("a namespace has no `|`", "`other | dict(namespace)`"),
        advice="more = {'new': 1} | dict(ns)",
        then="set(more) == {'settings', 'visits', 'new'}",
    ),
    # --- changing a value in place ---
    Mistake(
        made="ns.modify('visits', lambda visits: visits.append(2))",
        error="TypeError",
        says=("key 'visits'", "returned None", "`return`", "allow_none=True"),
        advice="""
        def visit(visits):
            visits.append(2)
            return visits
        ns.modify('visits', visit)
        """,
        then="ns['visits'] == [1, 2]",
    ),
    Mistake(
        made="ns.modify('visits', print)",
        error="TypeError",
        says=("returned None", "hutch.MISSING", "to remove the key"),
        advice="ns.modify('visits', lambda _: hutch.MISSING)",
        then="'visits' not in ns",
    ),
    Mistake(
        before="import hutch.aio",
        made="""
        async with hutch.aio.connect('memory://') as other, other.open('core') as core:
            await core.set('visits', [1])
            await core.modify('visits', lambda visits: visits.append(2))
        """,
        error="TypeError",
        says=("key 'visits'", "returned None", "allow_none=True"),
        advice="""
        async with hutch.aio.connect('memory://') as other, other.open('core') as core:
            await core.set('visits', [1])
            stored = await core.modify('visits', lambda visits: None, allow_none=True)
        """,
        then="stored is None",
    ),
    Mistake(
        made="ns.modify('count', ns.get('count', 0) + 1)",
        error="TypeError",
        says=("modify() of key 'count' takes a function", "not an int", "lambda value: ..."),
        advice="ns.modify('count', lambda value: value + 1, default=0)",
        then="ns['count'] == 1",
    ),
    Mistake(
        made="""
        with ns.mutable('log') as log:
            log.append('started')
        """,
        error="KeyError",
        says=("'log'",),
        advice="""
        with ns.mutable('log', default=[]) as log:
            log.append('started')
        """,
        then="ns['log'] == ['started']",
    ),
    Mistake(
        before="import hutch.aio",
        made="""
        async with hutch.aio.connect('memory://') as other, other.open('core') as core:
            async with core.mutable('log') as log:
                log.append('started')
        """,
        error="KeyError",
        says=("'log'",),
        advice="""
        async with hutch.aio.connect('memory://') as other, other.open('core') as core:
            async with core.mutable('log', default=[]) as log:
                log.append('started')
            stored = await core['log']
        """,
        then="stored == ['started']",
    ),
    Mistake(
        made="ns.mutable('visits').append(2)",
        error="AttributeError",
        says=("key 'visits'", "no attribute 'append'", "`with namespace.mutable(key) as value:`"),
        advice="""
        with ns.mutable('visits') as value:
            value.append(2)
        """,
        then="ns['visits'] == [1, 2]",
    ),
    Mistake(
        made="ns.mutable('settings')['theme'] = 'light'",
        error="TypeError",
        says=("key 'settings'", "`with namespace.mutable(key) as value:`"),
        advice="""
        with ns.mutable('settings') as value:
            value['theme'] = 'light'
        """,
        then="ns['settings'] == {'theme': 'light'}",
    ),
    # --- scans ---
    Mistake(
        made="ns.scan(prefix=1)",
        error="TypeError",
        says=("scan(prefix=...) takes a str, not int (1)", "str()"),
        advice="found = list(ns.scan(prefix=str(1)))",
        then="found == []",
    ),
    Mistake(
        made="ns.scan(b'vis')",
        error="TypeError",
        says=("scan(prefix=...) takes a str, not bytes (b'vis')", "Decode prefix"),
        advice="found = list(ns.scan(b'vis'.decode()))",
        then="found == [('visits', [1])]",
    ),
    Mistake(
        made="ns.scan_keys(start=10)",
        error="TypeError",
        says=("scan_keys(start=...) takes a str or None, not int (10)", "str()"),
        advice="found = list(ns.scan_keys(start=str(10)))",
        then="found == ['settings', 'visits']",
    ),
    Mistake(
        made="ns.scan(prefix=None)",
        error="TypeError",
        says=("scan(prefix=...) takes a str, not NoneType", "Leave prefix out"),
        advice="found = dict(ns.scan())",
        then="found == dict(ns)",
    ),
    # --- names of other mappings ---
    Mistake(
        made="ns.put('new', 1)",
        error="AttributeError",
        says=("'put'", "use `namespace[key] = value`"),
        advice="ns['new'] = 1",
        then="ns['new'] == 1",
    ),
    Mistake(
        made="ns.delete('visits')",
        error="AttributeError",
        says=("'delete'", "`del namespace[key]`", "`namespace.pop(key, None)`"),
        advice="del ns['visits']; ns.pop('visits', None)",
        then="list(ns) == ['settings']",
    ),
    Mistake(
        made="ns.incr('count')",
        error="AttributeError",
        says=("'incr'", "`namespace.increment(key)`"),
        advice="ns.increment('count')",
        then="ns['count'] == 1",
    ),
    Mistake(
        made="ns.add('visits', [2])",
        error="AttributeError",
        says=("'add'", "`namespace.setdefault(key, value)`"),
        advice="stored = ns.setdefault('visits', [2])",
        then="stored == [1]",
    ),
    Mistake(
        made="other = ns.copy()",
        error="AttributeError",
        says=("'copy'", "`dict(namespace)`"),
        advice="other = dict(ns)",
        then="other == {'settings': {'theme': 'dark'}, 'visits': [1]}",
    ),
    Mistake(
        before="ns['new'] = 1",
        made="ns.sync()",
        error="AttributeError",
        says=("'sync'", "every write is stored when it returns"),
        advice="ns.close(); ns = store.open('core')",
        then="ns['new'] == 1",
    ),
    # --- closed ---
    Mistake(
        before="ns.close(); store.close()",
        made="other = store.open('core')",
        error="StoreNotOpenError",
        says=("this store is closed", "connect again"),
        advice="""
        with hutch.connect('lmdb://first-hour') as store, store.open('core') as again:
            items = dict(again)
        """,
        then="items == {'settings': {'theme': 'dark'}, 'visits': [1]}",
        writes_nothing=False,
    ),
    Mistake(
        before="""
        def numbers():
            with store.open('numbers') as core:
                return core.items()
        """,
        made="list(numbers())",
        error="StoreNotOpenError",
        says=("'numbers' is closed", "open it again"),
        advice="with store.open('numbers') as core: items = list(core.items())",
        then="items == []",
    ),
]
