"""Mistakes in naming a store and in holding it open, as a user of shelve, sqlite3 or diskcache makes them."""

from __future__ import annotations

from . import Mistake

# The folders of the user, for the advice alone.
_AT_HOME = """
from pathlib import Path
from unittest.mock import patch
with patch.dict("os.environ", dict.fromkeys(["HOME", "USERPROFILE", "XDG_DATA_HOME", "LOCALAPPDATA"], str(folder))):
"""


def _write(connect: str) -> str:
    """Return code that connects by `connect` and writes a value."""
    return f"with {connect} as other, other.open('core') as core: core['k'] = 1"


MISTAKES = [
    Mistake(
        made="hutch.connect('state')",
        error="ConfigError",
        says=("'state' is neither a URL nor a path", "write './state'", "'state://PATH'"),
        advice=_write("hutch.connect('./state')"),
        then="(folder / 'state' / 'data.mdb').exists()",
    ),
    Mistake(
        made="hutch.connect('~/state')",
        error="ConfigError",
        says=("'~' stands for the home folder only in a shell", 'Path("~/...").expanduser()'),
        advice=f"{_AT_HOME}    " + _write("hutch.connect(Path('~/home').expanduser())"),
        then="(folder / 'home' / 'data.mdb').exists() and not (folder / '~').exists()",
    ),
    Mistake(
        made="hutch.connect('config.json')",
        error="ConfigError",
        says=("this text is neither a URL", "a .yaml or .toml file", "./state (LMDB)"),
        before="(folder / 'config.yaml').write_text('STORAGE: memory')",
        advice="other = hutch.connect('config.yaml')",
        then="other.name == 'memory' and other.close() is None",
    ),
    Mistake(
        made="hutch.connect('./config.json')",
        error="ConfigError",
        says=("./config.json: this is neither", "ends in .yaml, .yml or .toml"),
        before="(folder / 'config.yaml').write_text('STORAGE: memory')",
        advice="other = hutch.connect('./config.yaml')",
        then="other.name == 'memory' and other.close() is None",
    ),
    Mistake(
        made="hutch.connect('data.bin')",
        error="ConfigError",
        says=("this text is neither a URL", "./state.db (SQLite)"),
        advice=_write("hutch.connect('data.db')"),
        then="(folder / 'data.db').is_file()",
    ),
    Mistake(
        made="hutch.connect('lmdb://${STATE_DIR}/kv')",
        error="ConfigError",
        says=("argument: the environment variable STATE_DIR is not set", "${STATE_DIR:-...}"),
        advice=_write("hutch.connect('lmdb://${STATE_DIR:-data}/kv')"),
        then="(folder / 'data' / 'kv' / 'data.mdb').exists()",
    ),
    Mistake(
        made="hutch.connect(app='me/my-bot')",
        error="ConfigError",
        says=("app: expected the name of one folder such as 'my-bot'", "hutch.connect('./state')"),
        advice=f"{_AT_HOME}    " + _write("hutch.connect(app='my-bot')"),
        then="len(list(folder.rglob('my-bot/store/data.mdb'))) == 1",
    ),
    Mistake(
        made="'core' in store",
        error="TypeError",
        says=("every name can be opened", "use store.namespaces()"),
        advice="found = 'core' in store.namespaces()",
        then="found",
    ),
    Mistake(
        made="[name for name in store]",
        error="TypeError",
        says=("cannot be iterated over", "`for name in store.namespaces()`"),
        advice="found = [name for name in store.namespaces()]",
        then="found == ['core']",
    ),
    Mistake(
        made="store['users'] = {'ada': 36}",
        error="TypeError",
        says=("is not possible", "`store[name].update(items)`"),
        advice="store['users'].update({'ada': 36})",
        then="store['users']['ada'] == 36",
    ),
    Mistake(
        made="del store['core']",
        error="TypeError",
        says=("is not possible", "`store.drop(name)`"),
        advice="ns.close(); store.drop('core')",
        then="store.namespaces() == []",
    ),
    Mistake(
        before="store['users']['ada'] = 36",
        made="store.open('users')",
        error="StoreAlreadyOpenError",
        says=("namespace 'users'", "shared handle", "use store['users'] here too"),
        advice="users = store['users']",
        then="users['ada'] == 36",
    ),
    Mistake(
        before="import pickle; store['users']['ada'] = 36",
        made="pickle.dumps(store['users'])",
        error="TypeError",
        says=("the shared handle store[name] cannot be pickled", "Send the store and the name"),
        advice="""
            import hutch.pickling
            sent, name = pickle.loads(pickle.dumps((store, 'users')))
            found = sent[name]['ada']
            hutch.pickling.close_unpickled()
        """,
        then="found == 36",
    ),
]
