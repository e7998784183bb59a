"""Mistakes of a user who moves data from shelve, sqlitedict, JSON or CSV with `hutch import`."""

from __future__ import annotations

from . import Mistake

_OWN_CLASS = """
import shelve, sys
from pathlib import Path
Path("shop.py").write_text(
    "import hutch, dataclasses\\n@hutch.register_type\\n@dataclasses.dataclass\\nclass Order:\\n    price: float\\n"
)
sys.path.insert(0, str(folder))
sys.modules.pop("shop", None)
import shop
with shelve.open("orders") as shelf:
    shelf["1"] = shop.Order(9.5)
sys.path.remove(str(folder))
ns.close()
"""
_CSV = "from pathlib import Path; Path('people.csv').write_text('id,name\\n1,Ada\\n'); ns.close()"

MISTAKES = [
    Mistake(
        before=_OWN_CLASS,
        made="cli('-s lmdb://first-hour import shelve orders')",
        error="CommandError",
        says=("'1'", "codec=passthrough"),
        advice="""
        cli("-s 'lmdb://kept?codec=passthrough' import shelve orders")
        kept = hutch.connect("lmdb://kept?codec=pickle")
        with kept.open("orders") as orders: price = orders["1"].price
        kept.close()
        """,
        then="price == 9.5",
    ),
    Mistake(
        before=_CSV,
        made="cli('-s lmdb://first-hour import csv people.csv')",
        error="CommandError",
        says=("none of the 2 columns in its first row is called 'key'", "--key COLUMN"),
        advice="cli('-s lmdb://first-hour import csv people.csv --key id'); ns = store.open('people')",
        then="ns['1'] == {'name': 'Ada'}",
    ),
    Mistake(
        before=_CSV,
        made="cli('-s lmdb://first-hour import json people.csv')",
        error="CommandError",
        says=("people.csv', line 1: it is not JSON", "Nothing was written"),
        advice="cli('-s lmdb://first-hour import csv people.csv --key id -n core'); ns = store.open('core')",
        then="ns['1'] == {'name': 'Ada'} and ns['visits'] == [1]",
    ),
    Mistake(
        before="import shelve; shelve.open('settings').close(); shelve.open('settings')['a'] = 1; ns.close()",
        made="cli('-s lmdb://first-hour import shelve .')",
        error="CommandError",
        says=("'.' is a folder", "the name that shelve.open was given"),
        advice="cli('-s lmdb://first-hour import shelve settings'); ns = store.open('settings')",
        then="ns['a'] == 1",
    ),
    Mistake(
        before="""
        from pathlib import Path
        Path('data.json').write_text('[["a", 1], ["b", 2]]')
        ns.close()
        """,
        made="cli('-s lmdb://first-hour import json data.json')",
        error="CommandError",
        says=("line 1", "[key, value]", "in each line"),
        advice="""
        Path('data.json').write_text('["a", 1]' + chr(10) + '["b", 2]')
        cli('-s lmdb://first-hour import json data.json -n core')
        ns = store.open('core')
        """,
        then="ns['b'] == 2",
    ),
    Mistake(
        made="cli('-s lmdb://first-hour export json out.json')",
        error="CommandError",
        says=("json holds one namespace", "-n NAME"),
        advice="import json; from pathlib import Path; cli('-s lmdb://first-hour export json out.json -n core')",
        then="json.loads(Path('out.json').read_text()) == {'settings': {'theme': 'dark'}, 'visits': [1]}",
    ),
]
