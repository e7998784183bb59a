"""Test that no copy, dump, snapshot or transaction goes below what a plugin puts around an engine."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest

import hutch
from hutch import transfer

CODE = """
import hutch
from hutch.layers.layer import Layer

Memory = type(hutch.load_plugin("memory"))


class Reversing(hutch.StorageBase):
    "Stores each text reversed; the layer and the six verbs differ in how they hold the engine's storage."

    def __init__(self, storage): self.storage = storage
    def set(self, key, value): self.storage.set(key, value[::-1])
    def get(self, key): return self.storage.get(key)[::-1]
    def remove(self, key): self.storage.remove(key)
    def len(self): return self.storage.len()
    def keys(self): return self.storage.keys()
    def close(self): self.storage.close()


class ReversingLayer(Layer):
    storage = property(lambda self: self._inner)
    get, set = Reversing.get, Reversing.set
    get_many, set_many = hutch.StorageBase.get_many, hutch.StorageBase.set_many
    items, scan = hutch.StorageBase.items, hutch.StorageBase.scan
    get_for_update = hutch.StorageBase.get_for_update
    compare_and_swap = hutch.StorageBase.compare_and_swap


class Errbots:
    def __init__(self, storage): self.storage = self._inner = storage
    set, get, remove, len, keys, close = map(vars(Reversing).get, ("set", "get", "remove", "len", "keys", "close"))


class VerbsPlugin(Memory):
    def open(self, namespace): return Reversing(super().open(namespace))


class LayerPlugin(Memory):
    def open(self, namespace): return ReversingLayer(super().open(namespace))


class ErrbotsPlugin(Memory):
    def open(self, namespace): return Errbots(super().open(namespace))


class AroundPlugin:
    def __init__(self, config=None): self.memory = hutch.load_plugin("memory")
    def __getattr__(self, name): return getattr(self.memory, name)
    def open(self, namespace): return Reversing(self.memory.open(namespace))
"""


@pytest.mark.parametrize("kind", ["verbs", "layer", "errbots", "around"])
@pytest.mark.parametrize("layers", [[], ["metrics"]])
def test_values_that_a_plugin_changes_are_copied_and_dumped_as_they_are_read_and_are_in_no_transaction(
    tmp_path: Path, kind: str, layers: list[str]
) -> None:
    name = f"values_{kind}_{len(layers)}"
    (tmp_path / f"{kind}.plug").write_text(f"[Core]\nName = {kind}\nModule = {name}\nClass = {kind.title()}Plugin\n")
    (tmp_path / f"{name}.py").write_text(CODE)
    config = {"STORAGE": kind, "EXTRA_PLUGIN_DIRS": [str(tmp_path)], "LAYERS": layers}
    with hutch.connect(config) as source, hutch.connect("memory://") as target:
        with source.open("core") as core:
            core["k"] = "abc"
            assert core["k"] == "abc"
            assert not {"atomic-store", "snapshot"} & (source.capabilities | core.capabilities)
        out = io.BytesIO()
        transfer.dump(source, out)
        assert [json.loads(line)["value"] for line in out.getvalue().splitlines()[1:-1]] == ["abc"]
        transfer.copy(source, target)
        with target.open("core") as copied:
            assert copied["k"] == "abc"
        assert transfer.verify(source, target).ok
        with pytest.raises(hutch.CapabilityError, match=r"transaction.*nothing was written"):
            source.transact(lambda tx: tx["core"].set("k", "xyz"))
        with source.open("core") as core:
            with pytest.raises(hutch.CapabilityError, match=r"transaction.*nothing was written"):
                core.transaction()
            assert core["k"] == "abc"
        with pytest.raises(hutch.CapabilityError, match=rf"{kind} engine.*open.*snapshot"):
            source.snapshot()


def test_a_plugin_that_has_both_open_and_snapshot_is_read_from_a_snapshot(tmp_path: Path) -> None:
    (tmp_path / "both.plug").write_text("[Core]\nName = both\nModule = values_both\nClass = BothPlugin\n")
    code = (
        "class BothPlugin(VerbsPlugin):\n"
        "    def snapshot(self):\n"
        "        view = super().snapshot()\n"
        "        open_, view.open = view.open, lambda namespace: Reversing(open_(namespace))\n"
        "        return view\n"
    )
    (tmp_path / "values_both.py").write_text(f"{CODE}\n\n{code}")
    config: dict[str, Any] = {"STORAGE": "both", "EXTRA_PLUGIN_DIRS": [str(tmp_path)]}
    with hutch.connect(config) as source, hutch.connect("memory://") as target:
        with source.open("core") as core:
            core["k"] = "abc"
        assert transfer.copy(source, target).snapshot
        with target.open("core") as copied:
            assert copied["k"] == "abc"
