"""Integrity checks: `check_data` reads everything in a store, reports each problem and repairs what it can."""

from __future__ import annotations

import io
import json
import os
from base64 import b64encode
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any
from zlib import crc32

from .codec.frame import RESIDUE
from .config import StoreConfig, read_config
from .contract import Finding, StorageBase, StoragePluginBase
from .discovery.factory import PluginConfig, build, find_plugins
from .discovery.foreign import open_checked
from .discovery.load import load_factory
from .encoded import EncodedStorage
from .errors import CorruptValueError, KeyLimitError
from .filesystem import create_file, flush_folder, write_all
from .limits import check_key
from .options import read_options
from .store import Store

# How often a wrong count is compared again: others may have written between counting and listing.
_LOOKS = 5

_Save = Callable[[str, str, bytes], None]


def check_data(
    config: Any = None, *, fix: bool = False, salvage: str | os.PathLike[str] | None = None
) -> Iterator[Finding]:
    """Read everything in a store and yield each problem as it is found. A sound store yields nothing.

    `config` is anything that `connect` accepts, or an open `Store`. Pass the config if a damaged store does not open.
    Others may use the store meanwhile. Nothing is changed, except:

    - With `fix`, counts are corrected, data without a namespace gets one called ``recovered-N``, and indexes are
      rebuilt. No readable data is lost. A damaged structure is not repaired: restore a copy.
    - With `salvage`, the path of a new file, each value whose checksum does not match is written to that file (JSON
      lines with `namespace`, `key`, and the stored bytes in base64 as `data`), flushed to the disk, and only then
      removed from the store, unless it was set again meanwhile. Intact values stay, even if they cannot be read here
      because a class or a signing key is missing.

    Raises what `connect` raises for a store that cannot be reached, CapabilityError for an engine that cannot list its
    namespaces or a change to namespaces that LAYERS make read-only, OSError for the file. Damage is never raised.
    """
    checked = config.config if isinstance(config, Store) else read_config(config)
    if fix or salvage is not None:
        _refuse_read_only(checked)
    with _saving_to(salvage) as save:
        if isinstance(config, Store):
            yield from _check_open(config, fix, save)
            return
        # Verify the files before the engine opens them: damaged files may crash it.
        found = list(_check_files(checked))
        yield from found
        if found:
            return
        try:
            info, factory = build(checked)
        except CorruptValueError as error:
            yield Finding("structure", str(error))
            return
        try:
            yield from _check(info.name, factory, fix, save)
        finally:
            if callable(close := getattr(factory, "close", None)):
                close()


def _refuse_read_only(config: StoreConfig) -> None:
    for pattern, layers in [("*", config.layers), *((rule.pattern, rule.layers) for rule in config.namespaces)]:
        if layers:
            from .layers.select import check_drop

            check_drop(layers, pattern)


def _check_open(store: Store, fix: bool, save: _Save | None) -> Iterator[Finding]:
    store.stats()  # raises if it is closed
    factory = store._factory
    found = list(factory.check_files(factory._storage_config)) if isinstance(factory, StoragePluginBase) else []
    yield from found
    if not found:
        yield from _check(store.name, factory, fix, save)


def _check_files(config: StoreConfig) -> Iterator[Finding]:
    info = find_plugins(config).find(config.storage)
    plugin = load_factory(info)
    if not issubclass(plugin, StoragePluginBase):
        return
    # Without an own `check_files`, do not read the options: the engine may read them in its own way.
    if plugin.check_files.__func__ is StoragePluginBase.check_files.__func__:  # type: ignore[attr-defined]
        return
    options = read_options(PluginConfig(config, info), plugin.OPTIONS, info.name, hints=plugin.OPTION_HINTS)
    try:
        yield from plugin.check_files(options)
    except CorruptValueError as error:
        yield Finding("structure", str(error))


def _check(name: str, factory: Any, fix: bool, save: _Save | None) -> Iterator[Finding]:
    counts_itself = False
    told: set[str | None] = set()
    told_structure = False
    # A factory written for Errbot may have an unrelated method `check`.
    if isinstance(factory, StoragePluginBase):
        counts_itself = type(factory).check is not StoragePluginBase.check
        try:
            found = list(factory.check(fix))
        except CorruptValueError as error:
            found = [Finding("structure", str(error))]
        yield from found
        told_structure = any(finding.kind == "structure" for finding in found)
        told.update(finding.namespace for finding in found if finding.kind == "key" and not finding.fixed)
    try:
        namespaces = sorted(factory.namespaces())
    except CorruptValueError as error:
        if not told_structure:
            yield Finding("structure", str(error))
        return
    for namespace in namespaces:
        try:
            storage = open_checked(factory, name, namespace)
        except CorruptValueError as error:
            yield Finding("structure", str(error), namespace)
            continue
        with closing(storage):
            if isinstance(storage, EncodedStorage):
                # An unreadable key is reported already; that it blocks the listing is not a second problem.
                for finding in _read_bytes(storage, namespace, save):
                    if finding.kind != "structure" or namespace not in told:
                        yield finding
            else:
                yield from _read_values(storage, namespace)
            if not counts_itself:
                yield from _count(storage, namespace)


def _read_bytes(storage: EncodedStorage, namespace: str, save: _Save | None) -> Iterator[Finding]:
    last: str | None = None
    try:
        for key, data in storage.read_range(None, None, False):
            if last is not None and key <= last:
                yield Finding("index", f"the keys are not in order: {key!r} is behind {last!r}", namespace, key)
            last = key
            yield from _judge(storage, namespace, key, data, save)
        return
    except CorruptValueError as error:
        yield Finding("structure", str(error), namespace)
    # Read the items beyond the damaged place from the other end.
    try:
        for key, data in storage.read_range(last, None, True):
            if last is not None and key <= last:
                return
            yield from _judge(storage, namespace, key, data, save)
    except CorruptValueError:
        return


def _judge(storage: EncodedStorage, namespace: str, key: str, data: bytes, save: _Save | None) -> Iterator[Finding]:
    try:
        check_key(key)
    except KeyLimitError as error:
        yield Finding("key", str(error), namespace, key)
    try:
        storage._decoded(key, data)
    except CorruptValueError as error:
        # An intact frame is a value, even if reading it takes another codec, signing key or class.
        seeds = (0, crc32(key.encode())) if storage.binds_keys else (0,)
        moved = save is not None and all(crc32(data, seed) != RESIDUE for seed in seeds)
        if moved:
            assert save is not None
            save(namespace, key, data)
            moved = storage.swap(key, data, None)
        yield Finding("value", str(error), namespace, key, moved)


def _read_values(storage: StorageBase, namespace: str) -> Iterator[Finding]:
    try:
        keys = list(storage.keys())
    except CorruptValueError as error:
        yield Finding("structure", str(error), namespace)
        return
    for key in keys:
        try:
            storage.get(key)
        except KeyError:  # removed meanwhile
            continue
        except CorruptValueError as error:
            yield Finding("value", str(error), namespace, key)


def _count(storage: StorageBase, namespace: str) -> Iterator[Finding]:
    for _ in range(_LOOKS):
        before = storage.len()
        try:
            listed = len(list(storage.keys()))
        except CorruptValueError:  # reported already
            return
        if listed in (before, storage.len()):
            return
    yield Finding("count", f"len is {before:,}, but {listed:,} keys are listed", namespace)


@contextmanager
def _saving_to(salvage: str | os.PathLike[str] | None) -> Iterator[_Save | None]:
    """Yield a function that saves a value to the file `salvage`, created on first use, and flushes it; or None."""
    if salvage is None:
        yield None
        return
    path = Path(salvage)
    if os.path.lexists(path):
        raise FileExistsError(f"{path} is there already; values are salvaged into a new file")
    file: io.FileIO | None = None

    def save(namespace: str, key: str, data: bytes) -> None:
        nonlocal file
        if file is None:
            file = create_file(path, 0o600)
            flush_folder(path.absolute().parent)
        line = {"namespace": namespace, "key": key, "data": b64encode(data).decode()}
        write_all(file, f"{json.dumps(line)}\n".encode())
        os.fsync(file.fileno())

    try:
        yield save
    finally:
        if file is not None:
            file.close()
