"""Mistakes with backups, compaction and values on the command line."""

from __future__ import annotations

from . import Mistake

MISTAKES = [
    Mistake(
        before="store.backup('monday')",
        made="store.backup('monday')",
        error="ConfigError",
        says=("exists", "a backup replaces nothing", "Choose another name"),
        advice="store.backup('tuesday')",
        then="hutch.connect('lmdb://tuesday').namespaces() == ['core']",
    ),
    Mistake(
        made="store.backup('backups/monday')",
        error="ConfigError",
        says=("backups' does not exist", "Create it first"),
        advice="(folder / 'backups').mkdir(); store.backup('backups/monday')",
        then="(folder / 'backups' / 'monday').is_dir()",
    ),
    Mistake(
        made="store.backup('copy')",
        error="CapabilityError",
        says=("the memory engine has no backup of its own", "hutch.transfer.backup"),
        advice="import hutch.transfer; ns.close(); hutch.transfer.backup(store, 'copy')",
        then="hutch.connect('lmdb://copy').namespaces() == ['core']",
        url="memory://",
    ),
    Mistake(
        made="store.compact()",
        error="StoreAlreadyOpenError",
        says=("namespace 'core' is open in this store", "close it before compact()"),
        advice="ns.close(); sizes = store.compact()",
        then="sizes[1] <= sizes[0]",
    ),
    Mistake(
        made="cli('-s lmdb://first-hour compact')",
        error="CommandError",
        says=("another process has the store open", "Stop the application first", "A backup is compact too"),
        advice="""
        cli('-s lmdb://first-hour backup copy')
        ns.close()
        store.close()
        printed = cli('-s lmdb://first-hour compact')
        """,
        then="printed.startswith('compacted: ') and (folder / 'copy').is_dir()",
    ),
    Mistake(
        made="cli('-s lmdb://first-hour set core greeting hello')",
        error="CommandError",
        says=("the value cannot be read", "For plain text add --text"),
        advice="cli('-s lmdb://first-hour set core greeting --text hello')",
        then="ns['greeting'] == 'hello'",
    ),
    Mistake(
        before="ns['greeting'] = 'hello'",
        made="cli('get core greeting lmdb://first-hour')",
        error="CommandError",
        says=("unexpected extra argument", "The store is given by -s"),
        advice="printed = cli('get core greeting -s lmdb://first-hour')",
        then="'hello' in printed",
    ),
]
