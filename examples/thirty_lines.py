"""Store what two plugins count. Run it twice."""

import hutch


class Plugin:
    def __init__(self, data: hutch.Namespace) -> None:
        self.data = data  # the plugin's own mapping


class Greeter(Plugin):
    def on_message(self, user: str, text: str) -> str:
        count = self.data.modify(user, lambda n: n + 1, default=0)
        return f"hello {user}, message {count}"


class Words(Plugin):
    def on_message(self, user: str, text: str) -> str:
        with self.data.mutable("seen", default=set()) as seen:
            seen.update(text.split())
        return f"{len(seen)} words so far"


if __name__ == "__main__":
    with hutch.connect("lmdb://state") as store:
        for kind in (Greeter, Words):
            with store.open(kind.__name__) as data:
                reply = kind(data).on_message("ada", "once more")
                print(f"{kind.__name__}: {reply}")
