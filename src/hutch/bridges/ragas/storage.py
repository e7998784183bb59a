"""ragas in hutch: ``backend="hutch"`` for its datasets and experiments, `HutchCache` for what its LLMs answered.

Serves ragas 0.4 and ragas-experimental 0.3, whose backends are different classes of one interface. See
docs/bridges/ragas.md; where the rows lie is told in `hutch.bridges.ragas.jsonl_files`.
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
from .jsonl_files import (
    CHUNK_ROWS,
    DATASETS,
    EXPERIMENTS,
    Row,
    Table,
    TableReplacedError,
    checked_table,
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
)

_NEEDED = (
    "hutch.bridges.ragas needs ragas 0.4 or ragas-experimental 0.3, and neither could be imported: "
    'pip install "ragas>=0.4,<0.5"'
)
try:  # both of them bring these
    import numpy
    from pydantic import BaseModel
except ImportError as error:
    raise ImportError(f"{_NEEDED} ({error})") from error

# How many chunks are one batch: the rows of most tables, so that one whose values are refused was never begun.
_BATCH_CHUNKS = 64


class HutchBackend:
    """Datasets and experiments in any storage of hutch, with the exact type of every value.

    `url` is a storage's URL or the path of a config file, with or without ``hutch://`` before it; None is the store of
    ``hutch.connect()``: `$HUTCH_STORAGE` and so on. All backends of a process share one connection for each URL; any
    thread may use them, and nothing has to be closed. A table that was saved is as durable as the engine is configured.
    Raises what `hutch.connect` raises.
    """

    def __init__(self, url: str | None = None) -> None:
        self._url = url
        # Now, not when an experiment has run and is to be saved.
        shared_store(url)

    def load_dataset(self, name: str) -> list[Row]:
        """The rows of a dataset, as they were saved by one save. Raises FileNotFoundError if there is none."""
        return self._load(DATASETS, name)

    def load_experiment(self, name: str) -> list[Row]:
        """The rows of an experiment, as they were saved by one save. Raises FileNotFoundError if there is none."""
        return self._load(EXPERIMENTS, name)

    def save_dataset(self, name: str, data: list[Row], data_model: type | None = None) -> None:
        """Save `data` as the dataset called `name`, in the place of the one there is.

        Who loads it meanwhile, and a crash, sees the old rows or the new ones. Of two who save it at the same time the
        later one wins. Raises hutch.ValueTypeError that names row and column for a value that the codec does not take;
        then the dataset is as it was. `data_model` is not used, as in ragas's own backends.
        """
        self._save(DATASETS, name, data)

    def save_experiment(self, name: str, data: list[Row], data_model: type | None = None) -> None:
        """Save `data` as the experiment called `name`; all that is said of `save_dataset` holds."""
        self._save(EXPERIMENTS, name, data)

    def list_datasets(self) -> list[str]:
        """The names of all datasets, sorted. Reads no rows."""
        return table_names(shared_namespace(self._url, DATASETS))

    def list_experiments(self) -> list[str]:
        """The names of all experiments, sorted. Reads no rows."""
        return table_names(shared_namespace(self._url, EXPERIMENTS))

    def _load(self, kind: str, name: str) -> list[Row]:
        tables = shared_namespace(self._url, kind)
        while True:
            try:
                table = read_table(tables, name)
            except KeyError as error:
                raise FileNotFoundError(f"{_shown(kind, name)} not found: hutch has none of that name") from error
            with suppress(TableReplacedError):
                return [row for rows in read_rows(tables, table) for row in rows]

    def _save(self, kind: str, name: str, data: Sequence[Row]) -> None:
        tables = shared_namespace(self._url, kind)
        remove_abandoned(tables)
        version = new_version()
        replaced: list[str] = []

        def replace(old: Table | None) -> Table:
            replaced[:] = [] if old is None else [checked_table(tables, name, old)["version"]]
            return table

        try:
            table = table_of(name, version, len(data), _write_rows(tables, name, version, data))
            tables.modify(table_key(name), replace, default=None)
        except BaseException as error:
            # It may have been set all the same, by a server whose answer was lost: what is the table now stays.
            with suppress(hutch.StoreError):
                remove_stale(tables, name, version)
            if isinstance(error, hutch.ValueTypeError | hutch.ValueLimitError):
                _explain(error, _shown(kind, name), data)
            raise
        remove_stale(tables, name, version, *replaced)


def _write_chunks(tables: hutch.Namespace, name: str, version: str, chunks: Iterator[tuple[str, Any]]) -> None:
    while batch := dict(islice(chunks, _BATCH_CHUNKS)):
        tables.set_many({**batch, saving_key(version): name})


def _write_rows(tables: hutch.Namespace, name: str, version: str, data: Sequence[Row]) -> int:
    """Write the rows that no table has yet; the number of their chunks."""
    chunk_rows = CHUNK_ROWS
    while True:
        chunks = _chunks(name, version, data, chunk_rows)
        try:
            _write_chunks(tables, name, version, chunks)
            return -(-len(data) // chunk_rows)
        except hutch.ValueLimitError:
            # Rows of megabytes each. Those of a smaller chunk take the place of what was written.
            if chunk_rows == 1:
                raise
            chunk_rows //= 16


def _chunks(name: str, version: str, data: Sequence[Row], chunk_rows: int) -> Iterator[tuple[str, list[Row]]]:
    for number, start in enumerate(range(0, len(data), chunk_rows)):
        yield chunk_key(name, version, number), list(data[start : start + chunk_rows])


def _shown(kind: str, name: str) -> str:
    return f"{'Dataset' if kind == DATASETS else 'Experiment'} {name!r}"


def _explain(error: hutch.StoreError, shown: str, data: Sequence[Row]) -> NoReturn:
    """Raise `error` again, with the first row and column that the default codec refuses, if it does refuse one."""
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

    `url` is as for `HutchBackend`, `namespace` where the values lie. What ragas caches (texts, embeddings, pydantic
    models and enums, LangChain's `LLMResult` among them) is stored as plain values of the default codec, never pickled:
    reading it runs no code of theirs, and imports nothing. A model whose class this process has not imported, or whose
    fields have changed since, is as good as not there. Raises what `hutch.connect` raises.
    """

    def __init__(self, url: str | None = None, namespace: str = "ragas.cache") -> None:
        self._url, self._name = url, namespace
        shared_namespace(url, namespace)

    def get(self, key: str) -> Any:
        """The value of `key`, fresh; None if `has_key` says no."""
        value = self._find(key)
        return None if value is hutch.MISSING else value

    def set(self, key: str, value: Any) -> None:
        """Replace the value of `key`, atomically. Raises hutch.ValueTypeError for a value that cannot be stored."""
        try:
            packed = _pack(value)
        except RecursionError:
            packed = value  # the codec refuses it, too, and says why
        shared_namespace(self._url, self._name)[label(key)] = packed

    def has_key(self, key: str) -> bool:
        """Whether `get` can give the value of `key`."""
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
    """No class that this process has imported could have this value."""


def _pack(value: Any) -> Any:
    """`value` with a dict in the place of each model, enum, and text of a type of its own."""
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
        # LangChain's answers have a type of text.
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
        except ValueError as error:  # it has lost this member
            raise _UnknownClassError from error
    if _TEXT in packed:
        return str.__new__(_find_class(packed[_TEXT], str), packed["value"])
    return {key: _unpack(item) for key, item in packed.get(_DICT, packed).items()}


def _model(packed: Mapping[str, Any]) -> BaseModel:
    cls = _find_class(packed[_MODEL], BaseModel)
    if packed["fields"].keys() != cls.model_fields.keys():
        raise _UnknownClassError
    # As pickle does: the stored state is set, and no validator runs a second time.
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
    """The class that `reference` names, if it is imported already: nothing that is stored can import a module."""
    module, _, path = reference.partition(":")
    found: Any = sys.modules.get(module)
    for name in path.split("."):
        found = getattr(found, name, None)
    if isinstance(found, type) and issubclass(found, base):
        return found
    raise _UnknownClassError


# --- what ragas has to know, and hutch of ragas ---


def _join(package: str) -> None:
    """Have `package` take the classes above for its own, and the codec keep its type of result."""
    import_module(f"{package}.backends.base").BaseBackend.register(HutchBackend)
    result = import_module(f"{package}.metrics.result").MetricResult
    hutch.register_type(result, encode=lambda r: [r.value, r.reason, r.traces], decode=lambda state: result(*state))
    if package == "ragas":
        import_module("ragas.cache").CacheInterface.register(HutchCache)


def _join_all() -> None:
    """All that are installed, though one of them may do: each reads the entry points of both, and imports both.

    ragas 0.4 cannot be imported beside every version of LangChain; that is no reason why the other should not work.
    """
    missing: list[ImportError] = []
    packages = ("ragas_experimental", "ragas")
    for package in packages:
        try:
            _join(package)
        except ImportError as error:
            missing.append(error)
    if len(missing) == len(packages):
        raise ImportError(f"{_NEEDED} ({missing[-1]})") from missing[-1]


_join_all()
# What metrics compute with, and leave in the rows.
for _type in (numpy.ndarray, numpy.float64, numpy.float32, numpy.int64, numpy.int32):
    hutch.register_type(_type)
hutch.register_type(numpy.bool_, name="numpy.bool")  # its name in numpy 2; in numpy 1 it had another
