"""A small application with three plugins. Each keeps its state in its own namespace, on any engine.

Run it twice: the second run continues the counts. `hutch -c examples/hutch.yaml ls` shows the same state from outside,
also while it runs. To use another engine, change one line of hutch.yaml.
"""

from __future__ import annotations

import os
import sys
from abc import ABC, abstractmethod
from datetime import UTC, datetime
from pathlib import Path
from typing import ClassVar

import hutch

CONFIG = Path(__file__).with_name("hutch.yaml")


class Plugin(hutch.StoreMixin, ABC):
    """A plugin of this host: a persistent mapping with some work to do."""

    @abstractmethod
    def run(self) -> str:
        """Do the plugin's work once, and return a summary."""


class Greeter(Plugin):
    """Counts the visits of each user."""

    def run(self) -> str:
        user = os.environ.get("USER", "stranger")
        visits = self.modify("visits", lambda n: n + 1, default=0)  # atomic, also between processes
        with self.mutable("users", default={}) as users:  # read, change, write back
            users[user] = users.get(user, 0) + 1
        return f"hello {user}, visit {visits} of {len(self['users'])} user(s)"


class Journal(Plugin):
    """Writes one entry per run; keys that sort by time make the latest entries a scan."""

    def run(self) -> str:
        now = datetime.now(UTC)
        self[f"entry:{now.isoformat()}"] = {"at": now, "tags": {"run", "example"}}  # a set stays a set
        latest = [entry["at"] for _, entry in self.scan(prefix="entry:", reverse=True)][:3]
        return f"{len(self)} entries, the latest at {', '.join(f'{at:%H:%M:%S}' for at in latest)}"


class Settings(Plugin):
    """Adds the settings of a newer version, and keeps existing ones."""

    DEFAULTS: ClassVar = {"language": "en", "limits": (10, 100), "admins": frozenset({"root"})}

    def run(self) -> str:
        missing = {name: value for name, value in self.DEFAULTS.items() if name not in self}
        self.update(missing)  # one batch: all of it or none
        return f"{len(missing)} new settings, {len(self)} in all"


PLUGINS: list[type[Plugin]] = [Greeter, Journal, Settings]


def main() -> int:
    """Open every plugin, run it, close it. A plugin that fails does not stop the others."""
    failed = 0
    with hutch.connect(CONFIG) as store, hutch.load_plugin(store.name, store.config) as factory:  # stage 1, once
        for kind in PLUGINS:
            with kind() as plugin:
                plugin.open_storage(factory, kind.__name__)  # stage 2, once per plugin
                try:
                    print(f"{kind.__name__}: {plugin.run()}")
                except hutch.StoreError as error:
                    print(f"{kind.__name__} failed: {error}", file=sys.stderr)
                    failed += 1
        # Without a class, a namespace of the store is enough.
        with store.open("host") as host:
            runs = host.modify("runs", lambda n: n + 1, default=0)
        print(f"host: run {runs}, namespaces {', '.join(store.namespaces())}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
