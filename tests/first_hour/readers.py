"""Mistakes with the path of a store that is to be read, and with a store that may only be read."""

from __future__ import annotations

from . import Mistake

MISTAKES = [
    Mistake(
        made="hutch.connect('lmdb://first-hou?create=false')",
        error="StoreMissingError",
        says=("first-hou'", "Nothing was created", "Correct the path"),
        advice="with hutch.connect('lmdb://first-hour?create=false') as other: found = other.namespaces()",
        then="found == ['core'] and not (folder / 'first-hou').exists()",
    ),
    Mistake(
        made="hutch.connect('sqlite://reports.db?readonly=true')",
        error="FileNotFoundError",
        says=("reports.db'", "to begin a new store there, write to it without create=false and readonly=true"),
        advice="""
        with hutch.connect('sqlite://reports.db') as other, other.open('daily') as daily:
            daily['monday'] = 1
        with hutch.connect('sqlite://reports.db?readonly=true') as other:
            found = other.namespaces()
        """,
        then="found == ['daily']",
    ),
    Mistake(
        made="hutch.connect({'STORAGE': 'shelf', 'STORAGE_CONFIG': {'basedir': 'boot', 'create': False}})",
        error="StoreMissingError",
        says=("no shelf store at", "boot'", "without create=false"),
        advice="""
        with hutch.connect({'STORAGE': 'shelf', 'STORAGE_CONFIG': {'basedir': 'boot'}}) as other:
            with other.open('core') as shelf:
                shelf['k'] = 1
        """,
        then="(folder / 'boot').is_dir()",
    ),
    Mistake(
        before="reading = hutch.connect('lmdb://first-hour?readonly=true'); reader = reading.open('core')",
        made="reader['visits'] = [2]",
        error="CapabilityError",
        says=("'core' is read-only", "readonly=true", "connect without readonly"),
        advice="""
        reader.close(); reading.close(); ns.close()
        with hutch.connect('lmdb://first-hour') as other, other.open('core') as writer:
            writer['visits'] = [2]
        ns = store.open('core')
        """,
        then="ns['visits'] == [2]",
    ),
    Mistake(
        before="reading = hutch.connect('lmdb://first-hour?readonly=true')",
        made="reading.drop('core')",
        error="CapabilityError",
        says=("'core' is read-only", "connect without readonly"),
        advice="reading.close(); ns.close(); store.drop('core')",
        then="store.namespaces() == []",
    ),
    Mistake(
        made="hutch.connect('lmdb://first-hour?read_only=true')",
        error="ConfigError",
        says=("'read_only'", "Did you mean 'readonly'?"),
        advice="with hutch.connect('lmdb://first-hour?readonly=true') as other: found = other.namespaces()",
        then="found == ['core']",
    ),
    Mistake(
        made="cli('-s lmdb://first-hou dump -o nightly')",
        error="CommandError",
        says=("no lmdb store at", "first-hou'", "Correct the path"),
        advice="cli('-s lmdb://first-hour dump -o nightly')",
        then="(folder / 'nightly').exists() and not (folder / 'first-hou').exists()",
    ),
    Mistake(
        made="cli('-s lmdb://first-hour keys cor')",
        error="CommandError",
        says=("no namespace 'cor'", "Did you mean 'core'?", "`hutch ls` lists"),
        advice="listed = cli('-s lmdb://first-hour ls'); found = cli('-s lmdb://first-hour keys core')",
        then="listed == 'core\\t2\\n' and found == 'settings\\nvisits\\n'",
    ),
    Mistake(
        made="cli('copy lmdb://first-hou sqlite://copy.db')",
        error="CommandError",
        says=("no lmdb store at", "first-hou'", "Correct the path"),
        advice="cli('copy lmdb://first-hour sqlite://copy.db')",
        then="(folder / 'copy.db').exists()",
    ),
]
