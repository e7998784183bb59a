"""Integrity checks: `verify` reads everything in a store, reports each problem and repairs what it can."""

from __future__ import annotations

import io
import json
import os
from base64 import b64encode
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from .codec.frame import RESIDUE, crc32
from .config import StoreConfig, read_config
from .contract import StorageBase, StoragePluginBase
from .discovery.factory import PluginConfig, build, find_plugins, without_creating
from .discovery.foreign import open_validated
from .discovery.load import load_factory
from .encoded import EncodedStorage
from .errors import CorruptValueError, KeyLimitError
from .filesystem import create_file, flush_folder, write_all
from .finding import Finding
from .limits import validate_key
from .options import read_options

# How often a wrong count is compared again: others may have written between counting and listing.
_LOOKS = 5

_Save = Callable[[str, str, bytes], None]


def verify(
    config: Any = None, *, repair: bool = False, salvage: str | os.PathLike[str] | None = None
) -> Iterator[Finding]:
    """Read everything in a store and yield each problem as it is found. A sound store yields nothing.

    `config` is anything that `connect` accepts; the store need not open. `Store.verify` is the same for an open store.
    Others may use the store meanwhile. Nothing is changed, except:

    - With `repair`, counts are corrected, data without a namespace gets one called ``recovered-N``, and indexes are
      rebuilt. No readable data is lost. A damaged structure is not repaired: restore a copy.
    - With `salvage`, the path of a new file, each value whose checksum does not match is written to that file (JSON
      lines with `namespace`, `key`, and the stored bytes in base64 as `data`), flushed to the disk, and only then
      removed from the store, unless it was set again meanwhile. Intact values stay, even if they cannot be read here
      because a class or a signing key is missing.

    Raises StoreMissingError for a store that does not exist, what `connect` raises for one that cannot be reached,
    CapabilityError for an engine that cannot list its namespaces or a change to namespaces that LAYERS make read-only,
    OSError for the file. Damage is never raised.
    """
    settings = without_creating(read_config(config))
    if repair or salvage is not None:
        _refuse_read_only(settings)
    with _saving_to(salvage) as save:
        # Verify the files before the engine opens them: damaged files may crash it.
        findings = list(_verify_files(settings))
        yield from findings
        if findings:
            return
        try:
            info, factory = build(settings)
        except CorruptValueError as error:
            yield Finding("structure", str(error))
            return
        try:
            yield from _verify_factory(info.name, factory, repair, save)
        finally:
            if callable(close := getattr(factory, "close", None)):
                close()


def verify_open(
    name: str, factory: Any, config: StoreConfig, repair: bool, salvage: str | os.PathLike[str] | None
) -> Iterator[Finding]:
    """Do what `verify` does, with the factory of an open store whose engine is called `name`."""
    if repair or salvage is not None:
        _refuse_read_only(config)
    with _saving_to(salvage) as save:
        findings = list(factory.verify_files(factory._storage_config)) if isinstance(factory, StoragePluginBase) else []
        yield from findings
        if not findings:
            yield from _verify_factory(name, factory, repair, save)


def _refuse_read_only(config: StoreConfig) -> None:
    for pattern, layers in [("*", config.layers), *((rule.pattern, rule.layers) for rule in config.namespaces)]:
        if layers:
            from .layers.select import validate_drop

            validate_drop(layers, pattern)


def _verify_files(config: StoreConfig) -> Iterator[Finding]:
    info = find_plugins(config).find(config.storage)
    plugin = load_factory(info)
    if not issubclass(plugin, StoragePluginBase):
        return
    # If the factory has no own `verify_files`, do not read the options: the engine may read them in its own way.
    if plugin.verify_files.__func__ is StoragePluginBase.verify_files.__func__:  # type: ignore[attr-defined]
        return
    options = read_options(PluginConfig(config, info), plugin.OPTIONS, info.name, hints=plugin.OPTION_HINTS)
    try:
        yield from plugin.verify_files(options)
    except CorruptValueError as error:
        yield Finding("structure", str(error))


def _verify_factory(name: str, factory: Any, repair: bool, save: _Save | None) -> Iterator[Finding]:
    counts_itself = False
    reported: set[str | None] = set()
    structure_reported = False
    # A factory written for Errbot may have an unrelated method `verify`.
    if isinstance(factory, StoragePluginBase):
        counts_itself = type(factory).verify is not StoragePluginBase.verify
        try:
            findings = list(factory.verify(repair))
        except CorruptValueError as error:
            findings = [Finding("structure", str(error))]
        yield from findings
        structure_reported = any(finding.kind == "structure" for finding in findings)
        reported.update(finding.namespace for finding in findings if finding.kind == "key" and not finding.repaired)
    try:
        namespaces = sorted(factory.namespaces())
    except CorruptValueError as error:
        if not structure_reported:
            yield Finding("structure", str(error))
        return
    for namespace in namespaces:
        try:
            storage = open_validated(factory, name, namespace)
        except CorruptValueError as error:
            yield Finding("structure", str(error), namespace)
            continue
        with closing(storage):
            if isinstance(storage, EncodedStorage):
                # An unreadable key is reported already; that it blocks the listing is not a second problem.
                for finding in _read_bytes(storage, namespace, save):
                    if finding.kind != "structure" or namespace not in reported:
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
                yield Finding("index", f"the keys are not in order: {key!r} comes after {last!r}", namespace, key)
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
        validate_key(key)
    except KeyLimitError as error:
        yield Finding("key", str(error), namespace, key)
    try:
        storage.decode_live(key, data, -1)  # an expired value is verified too
    except CorruptValueError as error:
        # An intact frame is a value, even if reading it takes another codec, signing key or class.
        key_crcs = (0, crc32(key.encode())) if storage.checksum_covers_key else (0,)
        moved = save is not None and all(crc32(data, key_crc) != RESIDUE for key_crc in key_crcs)
        if moved:
            assert save is not None
            save(namespace, key, data)
            moved = storage.compare_and_write(key, data, None)
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
