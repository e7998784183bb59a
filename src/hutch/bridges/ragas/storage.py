"""ragas in hutch: ``backend="hutch"`` for its datasets and experiments, `HutchCache` for LLM responses.

Supports ragas 0.4 and ragas-experimental 0.3, whose backends are different classes with one interface. See
docs/bridges/ragas.md; `hutch.bridges.ragas.layout` describes the layout.
"""

from __future__ import annotations

import enum
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from importlib import import_module
from itertools import islice
from typing import Any, NoReturn

import hutch

from ..connections import shared_namespace, shared_store
from .layout import (
    CHUNK_ROWS,
    DATASETS,
    EXPERIMENTS,
    Row,
    Table,
    TableReplacedError,
    chunk_key,
    label,
    new_version,
    read_rows,
    read_table,
    remove_abandoned,
    remove_stale,
    saving_key,
    table_key,
    table_names,
    table_of,
    validate_table,
)

_NEEDED = (
    "hutch.bridges.ragas needs ragas 0.4 or ragas-experimental 0.3, and neither could be imported: "
    'pip install "ragas>=0.4,<0.5"'
)
try:  # both packages depend on these
    import numpy
    from pydantic import BaseModel
except ImportError as error:
    raise ImportError(f"{_NEEDED} ({error})") from error

# The number of chunks per batch: it covers most tables, so that a refused value leaves nothing written.
_BATCH_CHUNKS = 64


class HutchBackend:
    """Datasets and experiments in any storage of hutch, with the exact type of every value.

    `url` is a storage URL or the path of a config file, optionally prefixed with ``hutch://``; None selects the default
    of ``hutch.connect()``: `$HUTCH_STORAGE` and so on. All backends of a process share one connection per URL; any
    thread may use them, and nothing has to be closed. A saved table is as durable as the engine is configured. Raises
    what `hutch.connect` raises.
    """

    def __init__(self, url: str | None = None) -> None:
        self._url = url
        # Fail now, not when a finished experiment is to be saved.
        shared_store(url)

    def load_dataset(self, name: str) -> list[Row]:
        """Return the rows of a dataset, all from one save. Raises FileNotFoundError if it is missing."""
        return self._load(DATASETS, name)

    def load_experiment(self, name: str) -> list[Row]:
        """Return the rows of an experiment, all from one save. Raises FileNotFoundError if it is missing."""
        return self._load(EXPERIMENTS, name)

    def save_dataset(self, name: str, data: list[Row], data_model: type | None = None) -> None:
        """Save `data` as the dataset called `name`, replacing an existing one.

        A reader, or a crash, sees the old rows or the new ones. Of two concurrent saves the later one wins. Raises
        hutch.ValueTypeError that names row and column for a value that the codec does not take; then the dataset is
        unchanged. `data_model` is not used, as in ragas's own backends.
        """
        self._save(DATASETS, name, data)

    def save_experiment(self, name: str, data: list[Row], data_model: type | None = None) -> None:
        """Save `data` as the experiment called `name`, with the guarantees of `save_dataset`."""
        self._save(EXPERIMENTS, name, data)

    def list_datasets(self) -> list[str]:
        """Return the names of all datasets, sorted. Reads no rows."""
        return table_names(shared_namespace(self._url, DATASETS))

    def list_experiments(self) -> list[str]:
        """Return the names of all experiments, sorted. Reads no rows."""
        return table_names(shared_namespace(self._url, EXPERIMENTS))

    def _load(self, kind: str, name: str) -> list[Row]:
        tables = shared_namespace(self._url, kind)
        while True:
            try:
                table = read_table(tables, name)
            except KeyError as error:
                raise FileNotFoundError(f"{_describe(kind, name)} not found in hutch") from error
            with suppress(TableReplacedError):
                return [row for rows in read_rows(tables, table) for row in rows]

    def _save(self, kind: str, name: str, data: Sequence[Row]) -> None:
        tables = shared_namespace(self._url, kind)
        remove_abandoned(tables)
        version = new_version()
        replaced: list[str] = []

        def replace(old: Table | None) -> Table:
            replaced[:] = [] if old is None else [validate_table(tables, name, old)["version"]]
            return table

        try:
            table = table_of(name, version, len(data), _write_rows(tables, name, version, data))
            tables.modify(table_key(name), replace, default=None)
        except BaseException as error:
            # A server whose answer was lost may have set it all the same: keep the rows that are the table's now.
            with suppress(hutch.StoreError):
                remove_stale(tables, name, version)
            if isinstance(error, hutch.ValueTypeError | hutch.ValueLimitError):
                _explain(error, _describe(kind, name), data)
            raise
        remove_stale(tables, name, version, *replaced)


def _write_chunks(tables: hutch.Namespace, name: str, version: str, chunks: Iterator[tuple[str, Any]]) -> None:
    while batch := dict(islice(chunks, _BATCH_CHUNKS)):
        tables.set_many({**batch, saving_key(version): name})


def _write_rows(tables: hutch.Namespace, name: str, version: str, data: Sequence[Row]) -> int:
    """Write the rows of a version that no table names yet; return the number of chunks."""
    chunk_rows = CHUNK_ROWS
    while True:
        chunks = _chunks(name, version, data, chunk_rows)
        try:
            _write_chunks(tables, name, version, chunks)
            return -(-len(data) // chunk_rows)
        except hutch.ValueLimitError:
            # Rows of megabytes each. Smaller chunks overwrite what was written.
            if chunk_rows == 1:
                raise
            chunk_rows //= 16


def _chunks(name: str, version: str, data: Sequence[Row], chunk_rows: int) -> Iterator[tuple[str, list[Row]]]:
    for number, start in enumerate(range(0, len(data), chunk_rows)):
        yield chunk_key(name, version, number), list(data[start : start + chunk_rows])


def _describe(kind: str, name: str) -> str:
    return f"{'Dataset' if kind == DATASETS else 'Experiment'} {name!r}"


def _explain(error: hutch.StoreError, shown: str, data: Sequence[Row]) -> NoReturn:
    """Raise `error` again, naming the first row and column that the default codec refuses, if any."""
    with hutch.connect("memory://") as store, store.open("rows") as scratch:
        for number, row in enumerate(data):
            cells = row.items() if type(row) is dict else [(None, row)]
            for column, value in cells:
                try:
                    scratch["cell"] = {column: value} if type(row) is dict else value
                except (hutch.ValueTypeError, hutch.ValueLimitError) as reason:
                    place = f"row {number}" if column is None else f"row {number}, column {column!r}"
                    raise type(error)(f"{shown} was not saved: {place}: {reason}") from error
    raise error


class HutchCache:
    """A cache of ragas, shared by all processes that use one storage: ``llm_factory(..., cache=HutchCache(url))``.

    `url` is as for `HutchBackend`; `namespace` is where the values are stored. What ragas caches (texts, embeddings,
    pydantic models and enums, LangChain's `LLMResult` among them) is stored as plain values of the default codec, never
    pickled: reading it runs no code of those classes, and imports nothing. A model whose class this process has not
    imported, or whose fields have changed since, counts as missing. Raises what `hutch.connect` raises.
    """

    def __init__(self, url: str | None = None, namespace: str = "ragas.cache") -> None:
        self._url, self._name = url, namespace
        shared_namespace(url, namespace)

    def get(self, key: str) -> Any:
        """Return the value of `key`, fresh; None where `has_key` returns False."""
        value = self._find(key)
        return None if value is hutch.MISSING else value

    def set(self, key: str, value: Any) -> None:
        """Replace the value of `key`, atomically. Raises hutch.ValueTypeError for a value that cannot be stored."""
        try:
            packed = _pack(value)
        except RecursionError:
            packed = value  # the codec refuses it with an explanation
        shared_namespace(self._url, self._name)[label(key)] = packed

    def has_key(self, key: str) -> bool:
        """Return whether `get` can return the value of `key`."""
        return self._find(key) is not hutch.MISSING

    def _find(self, key: str) -> Any:
        packed = shared_namespace(self._url, self._name).get(label(key), hutch.MISSING)
        try:
            return packed if packed is hutch.MISSING else _unpack(packed)
        except _UnknownClassError:
            return hutch.MISSING


# --- models, enums and kinds of text as plain values ---

_MODEL, _ENUM, _TEXT, _DICT = "$model", "$enum", "$text", "$dict"
_MARKS = frozenset({_MODEL, _ENUM, _TEXT, _DICT})


class _UnknownClassError(LookupError):
    """No class imported in this process can have this value."""


def _pack(value: Any) -> Any:
    """Return `value` with a dict in place of each model, enum and instance of a str subclass."""
    kind = type(value)
    if kind is list or kind is tuple:
        return kind(map(_pack, value))
    if kind is dict:
        packed = {key: _pack(item) for key, item in value.items()}
        return {_DICT: packed} if packed.keys() & _MARKS else packed
    if isinstance(value, BaseModel):
        return {
            _MODEL: _reference(kind),
            "fields": {name: _pack(value.__dict__[name]) for name in kind.model_fields},
            "extra": _pack(value.__pydantic_extra__),
            "set": sorted(value.__pydantic_fields_set__),
            "private": _pack(value.__pydantic_private__),
        }
    if isinstance(value, enum.Enum):
        return {_ENUM: _reference(kind), "value": _pack(value.value)}
    if kind is not str and isinstance(value, str) and not isinstance(value, numpy.generic):
        # LangChain's responses use a str subclass.
        return {_TEXT: _reference(kind), "value": str.__str__(value)}
    return value


def _unpack(packed: Any) -> Any:
    kind = type(packed)
    if kind is list or kind is tuple:
        return kind(map(_unpack, packed))
    if kind is not dict:
        return packed
    if _MODEL in packed:
        return _model(packed)
    if _ENUM in packed:
        cls = _find_class(packed[_ENUM], enum.Enum)
        try:
            return cls(_unpack(packed["value"]))
        except ValueError as error:  # the enum has lost this member
            raise _UnknownClassError from error
    if _TEXT in packed:
        return str.__new__(_find_class(packed[_TEXT], str), packed["value"])
    return {key: _unpack(item) for key, item in packed.get(_DICT, packed).items()}


def _model(packed: Mapping[str, Any]) -> BaseModel:
    cls = _find_class(packed[_MODEL], BaseModel)
    if packed["fields"].keys() != cls.model_fields.keys():
        raise _UnknownClassError
    # As pickle does: set the stored state without running validators again.
    value: BaseModel = cls.__new__(cls)
    value.__setstate__(
        {
            "__dict__": _unpack(packed["fields"]),
            "__pydantic_extra__": _unpack(packed["extra"]),
            "__pydantic_fields_set__": set(packed["set"]),
            "__pydantic_private__": _unpack(packed["private"]),
        }
    )
    return value


def _reference(cls: type) -> str:
    reference = f"{cls.__module__}:{cls.__qualname__}"
    with suppress(_UnknownClassError):
        if _find_class(reference, cls) is cls:
            return reference
    raise hutch.ValueTypeError(
        f"the class {cls.__qualname__} of a cached value is not found in its module {cls.__module__}, and could not be "
        "when it is read; define it at the top of a module"
    )


def _find_class(reference: str, base: Any) -> Any:
    """Return the class that `reference` names, if already imported: stored data can never import a module."""
    module, _, path = reference.partition(":")
    target: Any = sys.modules.get(module)
    for name in path.split("."):
        target = getattr(target, name, None)
    if isinstance(target, type) and issubclass(target, base):
        return target
    raise _UnknownClassError


# --- registration with ragas, and of its result type with hutch ---


def _register_with(package: str) -> None:
    """Register the classes above with `package`, and its result type with the codec."""
    import_module(f"{package}.backends.base").BaseBackend.register(HutchBackend)
    result = import_module(f"{package}.metrics.result").MetricResult
    hutch.register_type(result, encode=lambda r: [r.value, r.reason, r.traces], decode=lambda state: result(*state))
    if package == "ragas":
        import_module("ragas.cache").CacheInterface.register(HutchCache)


def _register_with_all() -> None:
    """Register with every installed package, though the user may need only one: each reads the entry points of both.

    ragas 0.4 cannot be imported beside every version of LangChain; then the other package must still work.
    """
    missing: list[ImportError] = []
    packages = ("ragas_experimental", "ragas")
    for package in packages:
        try:
            _register_with(package)
        except ImportError as error:
            missing.append(error)
    if len(missing) == len(packages):
        raise ImportError(f"{_NEEDED} ({missing[-1]})") from missing[-1]


_register_with_all()
# Types that metrics compute with, and leave in the rows.
for _type in (numpy.ndarray, numpy.float64, numpy.float32, numpy.int64, numpy.int32):
    hutch.register_type(_type)
hutch.register_type(numpy.bool_, name="numpy.bool")  # its name in numpy 2; numpy 1 had another
