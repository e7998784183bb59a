"""An application whose plugins remember, in thirty lines. Run it twice; `hutch -s lmdb://state ls` shows its state."""

from contextlib import ExitStack

import hutch


class Plugin:
    def __init__(self, data: hutch.Namespace) -> None:
        self.data = data  # the plugin's own mapping, in which values keep their types


class Greeter(Plugin):
    def on_message(self, user: str, text: str) -> str:
        return f"hello {user}, message {self.data.modify(user, lambda count: count + 1, default=0)}"


class Words(Plugin):
    def on_message(self, user: str, text: str) -> str:
        with self.data.mutable("seen", default=set()) as seen:  # read, changed, written back
            seen.update(text.split())
        return f"{len(seen)} words so far"


if __name__ == "__main__":
    with hutch.connect("lmdb://state") as store, ExitStack() as opened:
        plugins = [kind(opened.enter_context(store.open(kind.__name__))) for kind in (Greeter, Words)]
        for plugin in plugins:
            print(f"{type(plugin).__name__}: {plugin.on_message('ada', 'once more')}")
