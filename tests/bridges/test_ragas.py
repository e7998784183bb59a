"""Test tables and LLM caches of ragas 0.4 and ragas-experimental 0.3 in hutch, through their public APIs."""

from __future__ import annotations

import asyncio
import enum
import inspect
import math
import multiprocessing
import os
import pickle
import sys
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy
import pytest
import tqdm
from pydantic import BaseModel, ConfigDict, PrivateAttr

import hutch
from hutch.bridges.connections import close_shared, shared_namespace
from hutch.bridges.ragas import layout
from tests import pages
from tests.bridges.processes import run, run_until

os.environ["RAGAS_DO_NOT_TRACK"] = "true"
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # what ragas's own dependencies have to say
    import ragas
    import ragas.backends
    import ragas_experimental
    import ragas_experimental.backends
    from langchain_core.messages import AIMessage
    from langchain_core.outputs import ChatGeneration, Generation, LLMResult
    from langchain_core.prompt_values import StringPromptValue
    from ragas.cache import CacheInterface, DiskCacheBackend, cacher
    from ragas.embeddings.base import BaseRagasEmbedding
    from ragas.llms.base import BaseRagasLLM, InstructorLLM
    from ragas.metrics.result import MetricResult
    from ragas.run_config import RunConfig

    from hutch.bridges.ragas import HutchBackend, HutchCache

PAGE = Path(__file__).parents[2] / "docs" / "bridges" / "ragas.md"
# Its progress bar starts a thread that would outlive the test.
tqdm.tqdm.monitor_interval = 0

Rows = list[dict[str, Any]]
both = pytest.mark.parametrize("framework", [ragas, ragas_experimental], ids=["ragas", "ragas_experimental"])
# A process that needs one of the two cannot import the other, which takes seconds to import.
QUICKLY = "import sys; sys.modules['ragas'] = None\n"


@pytest.fixture
def here() -> str:
    return "memory://"


def keys_of(url: str, namespace: str = layout.DATASETS) -> list[str]:
    return sorted(shared_namespace(url, namespace))


def numbered(save: int, count: int = 600) -> Rows:
    return [{"save": save, "row": row} for row in range(count)]


def which_save(rows: Rows) -> int:
    """Return the save that all of `rows` come from; they must be complete."""
    assert [row["row"] for row in rows] == list(range(len(rows)))
    (save,) = {row["save"] for row in rows}
    assert len(rows) == len(numbered(save))
    return int(save)


# --- the registry, and what both packages ask of a backend ---


@both
def test_each_registry_finds_it_and_takes_it_for_its_own(framework: Any, here: str) -> None:
    registry = framework.backends.get_registry()
    assert registry["hutch"] is HutchBackend
    assert "hutch" in {info["name"] for info in registry.list_backend_info()}
    assert issubclass(HutchBackend, framework.backends.BaseBackend)
    assert isinstance(HutchBackend(here), framework.backends.BaseBackend)


@both
def test_it_has_all_that_a_backend_must_have(framework: Any) -> None:
    base = framework.backends.BaseBackend
    assert base.__abstractmethods__
    for name in base.__abstractmethods__:
        theirs = inspect.signature(getattr(base, name)).parameters
        assert list(inspect.signature(getattr(HutchBackend, name)).parameters) == list(theirs)
    for name in CacheInterface.__abstractmethods__:
        theirs = inspect.signature(getattr(CacheInterface, name)).parameters
        assert list(inspect.signature(getattr(HutchCache, name)).parameters) == list(theirs)


# --- tables ---


class Color(enum.Enum):
    RED = "red"


EXACT: Rows = [
    {
        "text": "a",
        "looks like a date": "2024-01-01",
        "looks like a time": "2024-01-01T00:00:00",
        "date": date(2024, 2, 29),
        "datetime": datetime(2024, 2, 29, 1, 2, 3, 4),
        "aware": datetime(2024, 2, 29, tzinfo=UTC),
        "offset": datetime(2024, 2, 29, tzinfo=timezone(timedelta(hours=-3))),
        "list": [1, [2.5, None]],
        "tuple": (1, ("a",)),
        "set": {1, 2},
        "bytes": b"\xc4\xc5",
        "int": 10**40,
        "float": -0.0,
        "inf": math.inf,
        "bool": True,
        "none": None,
        "decimal": Decimal("1.10"),
        "numpy": numpy.float64(0.1),
        "flag": numpy.bool_(True),
        "nested": {"a": {1: ("x",)}, "": []},
        "emoji": "🐇\n\u2028 ü \ud800",
    },
    {},
    {1: "a column that is no text"},  # type: ignore[dict-item]
]


def test_values_come_back_with_their_exact_types(url: str) -> None:
    backend = HutchBackend(url)
    backend.save_dataset("exact", EXACT)
    assert repr(backend.load_dataset("exact")) == repr(EXACT)
    # ragas's own storage, which this is for, turns a text into a date.
    array = numpy.arange(6.0).reshape(2, 3)
    backend.save_dataset("more", [{"nan": math.nan, "array": array, "result": MetricResult(0.5, "why", {"input": {}})}])
    [row] = backend.load_dataset("more")
    assert math.isnan(row["nan"])
    assert row["array"].dtype == array.dtype
    assert row["array"].tolist() == array.tolist()
    assert type(row["result"]) is MetricResult
    assert (row["result"].value, row["result"].reason, row["result"].traces) == (0.5, "why", {"input": {}})


class Question(BaseModel):
    user_input: str
    asked: date
    score: float = 0.5


@both
def test_a_dataset_is_saved_loaded_appended_to_and_reloaded(framework: Any, url: str) -> None:
    dataset = framework.Dataset("questions", "hutch", data_model=Question, url=url)
    dataset.append({"user_input": "2024-01-01", "asked": "2024-02-29"})
    dataset.append(Question(user_input="b", asked=date(2024, 3, 1), score=1))
    dataset.save()
    loaded = framework.Dataset.load("questions", "hutch", data_model=Question, url=f"hutch://{url}")
    assert list(loaded) == list(dataset)
    plain = framework.Dataset.load("questions", HutchBackend(url))
    assert plain[0] == {"user_input": "2024-01-01", "asked": date(2024, 2, 29), "score": 0.5}
    plain.append({"user_input": "c"})
    plain.save()
    assert len(dataset) == 2
    loaded.data_model = None
    loaded.reload()
    assert [row["user_input"] for row in loaded] == ["2024-01-01", "b", "c"]
    train, test = plain.train_test_split(0.34, random_state=1)
    assert len(train) + len(test) == 3


@both
def test_an_experiment_runs_with_the_storage_of_the_environment(
    framework: Any, lasting_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HUTCH_STORAGE", lasting_url)
    dataset = framework.Dataset("numbers", "hutch", data=[{"n": n} for n in range(300)])
    dataset.save()

    @framework.experiment(backend="hutch")  # type: ignore[untyped-decorator]  # ragas has no types here
    async def squared(row: dict[str, Any]) -> dict[str, Any]:
        return {"n": row["n"], "square": row["n"] ** 2, "at": datetime.now(UTC), "labels": ("a", row["n"])}

    done = asyncio.run(squared.arun(dataset, name="first"))
    close_shared()
    found = HutchBackend(lasting_url).load_experiment("first")
    assert found == list(done)
    assert sorted(row["n"] for row in found) == list(range(300))
    assert all(row["labels"] == ("a", row["n"]) for row in found)
    # By an instance, and without a name; an experiment without its own backend uses the dataset's.
    asyncio.run(squared.arun(dataset, backend=HutchBackend(lasting_url)))
    squared.default_backend = None
    asyncio.run(squared.arun(dataset))
    names = HutchBackend().list_experiments()
    assert len(names) == 3
    assert "first" in names
    assert framework.Experiment.load("first", "hutch")[0]["square"] == found[0]["square"]


def test_what_one_of_the_two_packages_saved_the_other_one_loads(here: str) -> None:
    ragas.Dataset("shared", HutchBackend(here), data=[{"a": (1,)}]).save()
    assert ragas_experimental.Dataset.load("shared", HutchBackend(here))[0] == {"a": (1,)}


def test_a_missing_table_is_a_file_not_found_error_as_in_ragas(url: str) -> None:
    backend = HutchBackend(url)
    backend.save_experiment("here", [])
    for load in (backend.load_dataset, lambda name: backend.load_experiment(f"not {name}")):
        with pytest.raises(FileNotFoundError, match=r"'(not )?here' not found") as missing:
            load("here")
        assert isinstance(missing.value.__cause__, KeyError)
    with pytest.raises(FileNotFoundError):
        ragas.Dataset.load("here", "hutch", url=url)


def test_datasets_and_experiments_are_apart_listed_in_order_and_may_be_empty(url: str) -> None:
    backend = HutchBackend(url)
    assert (backend.list_datasets(), backend.list_experiments()) == ([], [])
    names = ["b", "a", "a:b", "a/b", "", "50%", "x" * 2000, "é🐇\n", "table:a", "rows:a:"]
    for name in names:
        backend.save_dataset(name, [{"name": name}])
    backend.save_experiment("a", [])
    assert backend.list_datasets() == sorted(names)
    assert backend.list_experiments() == ["a"]
    assert backend.load_experiment("a") == []
    for name in names:
        assert backend.load_dataset(name) == [{"name": name}]


def test_a_save_replaces_all_rows_and_leaves_none_of_the_old_ones(url: str) -> None:
    backend = HutchBackend(url)
    backend.save_dataset("t:", numbered(0))
    backend.save_dataset("t", numbered(1))
    backend.save_dataset("t", numbered(2, 256))
    backend.save_dataset("t", numbered(3, 2))
    assert backend.load_dataset("t") == numbered(3, 2)
    assert which_save(backend.load_dataset("t:")) == 0
    kinds = sorted(key.split(":")[:2] for key in keys_of(url))
    assert kinds == [["rows", "t"], *[["rows", "t%3A"]] * 3, ["table", "t"], ["table", "t%3A"]]
    backend.save_dataset("t", [])
    assert backend.load_dataset("t") == []
    assert len(keys_of(url)) == 5


def test_loaded_rows_are_new_objects(url: str) -> None:
    rows = numbered(1, 2)
    backend = HutchBackend(url)
    backend.save_dataset("t", rows)
    rows[0]["row"] = 100
    backend.load_dataset("t")[1]["row"] = 100
    assert backend.load_dataset("t") == numbered(1, 2)


class Own:
    pass


@pytest.mark.parametrize("before", [0, 20_000])
def test_a_value_that_cannot_be_stored_is_named_by_row_and_column_and_changes_nothing(url: str, before: int) -> None:
    """Also where the rows before it take more than one batch."""
    backend = HutchBackend(url)
    backend.save_dataset("t", [{"a": 1}])
    keys = keys_of(url)
    bad = [{"n": n} for n in range(before)] + [{"fine": 1, "not fine": {"x": [Own()]}}]
    with pytest.raises(
        hutch.ValueTypeError, match=f"Dataset 't' was not saved: row {before}, column 'not fine'"
    ) as message:
        backend.save_dataset("t", bad)
    assert "hutch.register_type(Own, encode=..., decode=...)" in str(message.value)
    assert isinstance(message.value.__cause__, hutch.ValueTypeError)
    with pytest.raises(hutch.ValueTypeError, match="row 0, column 'e'"):
        backend.save_experiment("t", [{"e": Color.RED}])
    with pytest.raises(hutch.ValueTypeError, match="row 1: "):
        backend.save_dataset("t", [{}, Own()])  # type: ignore[list-item]
    assert backend.load_dataset("t") == [{"a": 1}]
    assert keys_of(url) == keys
    assert not keys_of(url, layout.EXPERIMENTS)


def test_rows_of_megabytes_become_smaller_chunks(here: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a limit of thousands instead of 512 MiB."""
    for module in ("limits", "encoded.storage", "encoded.values"):
        monkeypatch.setattr(f"hutch.{module}.MAX_VALUE_BYTES", 5_000)
    backend = HutchBackend(here)
    rows = [{"text": str(number) * 1000} for number in range(300)]
    backend.save_dataset("large", rows)
    assert backend.load_dataset("large") == rows
    assert len(keys_of(here)) == 301
    backend.save_dataset("large", rows[:1])
    assert len(keys_of(here)) == 2
    with pytest.raises(hutch.ValueLimitError, match="Dataset 'large' was not saved: row 1, column 'text'"):
        backend.save_dataset("large", [{"text": ""}, {"text": "x" * 6_000}])
    assert backend.load_dataset("large") == rows[:1]
    assert len(keys_of(here)) == 2


def test_rows_that_are_missing_are_an_error_and_no_short_table(url: str) -> None:
    backend = HutchBackend(url)
    backend.save_dataset("t", numbered(1))
    del shared_namespace(url, layout.DATASETS)[keys_of(url)[1]]
    with pytest.raises(hutch.CorruptValueError, match="has lost its rows"):
        backend.load_dataset("t")


@pytest.mark.parametrize("value", [5, "abc", [1], {}, {"name": "t"}, "that of another"])
@pytest.mark.parametrize("name", ["t", "x" * 1000])
def test_an_invalid_table_is_an_error_and_others_still_load(value: Any, name: str, url: str) -> None:
    backend = HutchBackend(url)
    tables = shared_namespace(url, layout.DATASETS)
    backend.save_dataset("other", numbered(2))
    key = layout.table_key(name)
    tables[key] = tables["table:other"] if value == "that of another" else value
    tables[layout.saving_key("0")] = value
    for call in (backend.load_dataset, lambda name: backend.save_dataset(name, numbered(1))):
        with pytest.raises(hutch.CorruptValueError, match="not a table of ragas"):
            call(name)
    backend.save_dataset("other", numbered(3))
    assert backend.load_dataset("other") == numbered(3)
    del tables[key]
    backend.save_dataset(name, numbered(1))
    assert backend.load_dataset(name) == numbered(1)
    tables[next(tables.scan_keys(f"rows:{layout.label(name)}:"))] = value
    with pytest.raises(hutch.CorruptValueError, match=r"does not hold rows of ragas|should have 600 rows"):
        backend.load_dataset(name)


# --- several at once ---


def test_threads_that_save_and_load_one_table_see_one_save_at_a_time(url: str) -> None:
    backend = HutchBackend(url)
    backend.save_dataset("t", numbered(0))
    stop = threading.Event()

    def load() -> int:
        loads = 0
        while not stop.is_set() or not loads:
            which_save(backend.load_dataset("t"))
            assert "t" in backend.list_datasets()
            loads += 1
        return loads

    def save(thread: int) -> None:
        for turn in range(6):
            HutchBackend(url).save_dataset("t", numbered(thread * 100 + turn))

    with ThreadPoolExecutor(5) as pool:
        loads = [pool.submit(load) for _ in range(2)]
        try:
            list(pool.map(save, range(1, 4)))
        finally:
            stop.set()
        assert all(done.result() for done in loads)
    assert which_save(backend.load_dataset("t")) % 100 == 5
    assert len(keys_of(url)) == 4  # a table and the three chunks of 600 rows


def save_in_a_process(url: str, process: int) -> None:
    for turn in range(5):
        HutchBackend(url).save_dataset("t", numbered(process * 100 + turn))
        HutchBackend(url).save_experiment(f"of {process}", numbered(turn))
        which_save(HutchBackend(url).load_dataset("t"))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="a new process would import ragas first, which takes seconds")
def test_processes_that_save_one_table_do_not_mix(lasting_url: str) -> None:
    backend = HutchBackend(lasting_url)
    backend.save_dataset("t", numbered(0))
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=save_in_a_process, args=(lasting_url, number)) for number in (1, 2, 3)]
    for process in processes:
        process.start()
    while any(process.is_alive() for process in processes):
        which_save(backend.load_dataset("t"))
    for process in processes:
        process.join()
        assert process.exitcode == 0
        process.close()
    assert which_save(backend.load_dataset("t")) % 100 == 4
    assert backend.list_experiments() == ["of 1", "of 2", "of 3"]
    assert len(keys_of(lasting_url)) == 4


# --- killed in the middle ---

SAVE_UNTIL_KILLED = (
    QUICKLY
    + """
from ragas_experimental import Dataset
number = 0
while True:
    number += 1
    rows = [{"save": number, "row": row} for row in range(600)]
    Dataset("t", "hutch", data=rows, url=sys.argv[1]).save()
    print("saved", number)
"""
)


def test_a_killed_save_leaves_the_table_as_it_was_and_nothing_for_ever(
    lasting_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    last = run_until("saved 4", SAVE_UNTIL_KILLED, lasting_url, folder=tmp_path)[-1]
    backend = HutchBackend(lasting_url)
    # Acknowledged saves are there; of the next one, all or nothing.
    assert which_save(backend.load_dataset("t")) - int(last.split()[1]) in (0, 1)
    # As if the process had died between the rows and the table, which no test can hit by chance.
    tables = shared_namespace(lasting_url, layout.DATASETS)
    for name in ("t", "never saved"):
        version = layout.new_version()
        tables.set_many({layout.saving_key(version): name, layout.chunk_key(name, version, 0): [{}]})
    assert backend.list_datasets() == ["t"]
    backend.save_dataset("t", numbered(50))
    assert which_save(backend.load_dataset("t")) == 50
    # Young rows may belong to a save that is still running elsewhere.
    assert len([key for key in keys_of(lasting_url) if key.startswith("saving:")]) >= 2
    monkeypatch.setattr(layout, "ABANDONED_S", -60)
    backend.save_dataset("other", [])
    assert [key.split(":")[:2] for key in keys_of(lasting_url)] == [
        *[["rows", "t"]] * 3,
        ["table", "other"],
        ["table", "t"],
    ]
    assert which_save(backend.load_dataset("t")) == 50


# --- errors, and frameworks that are not there ---


def test_a_bad_url_is_refused_before_anything_runs() -> None:
    for make in (HutchBackend, HutchCache):
        with pytest.raises(hutch.PluginNotFoundError, match="Did you mean 'lmdb'"):
            make("lmbd://x")
    with pytest.raises(RuntimeError, match=r"Failed to initialize hutch backend: .*Did you mean 'lmdb'"):
        ragas.Dataset("x", "hutch", url="lmbd://x")
    with pytest.raises(hutch.StorageUnavailableError):
        HutchBackend("redis://localhost:1/0").list_datasets()


@pytest.mark.parametrize(
    ("missing", "works"),
    [(("ragas",), True), (("ragas_experimental", "numpy"), False), (("ragas", "ragas_experimental"), False)],
)
def test_either_package_will_do_and_without_both_the_error_says_what_to_install(
    missing: tuple[str, ...], works: bool, tmp_path: Path
) -> None:
    script = f"""
import sys
for name in {missing!r}:
    sys.modules[name] = None
import hutch, hutch.bridges
assert not any(name.startswith("ragas") and sys.modules[name] for name in sys.modules)
try:
    from hutch.bridges.ragas import HutchBackend
except ImportError as error:
    assert isinstance(error.__cause__, ImportError)
    print(error)
else:
    from ragas_experimental.backends import get_registry
    assert get_registry()["hutch"] is HutchBackend
    backend = HutchBackend("memory://")
    backend.save_dataset("t", [{{"a": (1,)}}])
    print(backend.load_dataset("t"))
"""
    message = run(script, folder=tmp_path)[-1]
    assert message == "[{'a': (1,)}]" if works else 'pip install "ragas>=0.4,<0.5"' in message


def test_a_backend_can_be_sent_to_another_process(here: str) -> None:
    backend = pickle.loads(pickle.dumps(HutchBackend(here)))
    backend.save_dataset("t", [{"a": 1}])
    assert HutchBackend(here).load_dataset("t") == [{"a": 1}]


# --- the cache ---


class Verdict(BaseModel):
    color: Color
    reasons: list[str] = []


class Answer(BaseModel):
    model_config = ConfigDict(extra="allow")
    text: str
    verdicts: dict[str, Verdict] = {}
    at: datetime | None = None
    _note: str = PrivateAttr(default="")


def an_answer() -> Answer:
    answer = Answer(text="2024-01-01", verdicts={"a": Verdict(color=Color.RED)}, more=(1, 2))  # type: ignore[call-arg]
    answer._note = "private"
    return answer


def an_llm_result(text: str = "Paris") -> LLMResult:
    message = AIMessage(content=text, response_metadata={"finish_reason": "stop"}, id="1", tool_calls=[])
    return LLMResult(
        generations=[[ChatGeneration(message=message), Generation(text="b", generation_info={"n": 1})]],
        llm_output={"tokens": {"total": 3}},
    )


@pytest.mark.parametrize(
    "value",
    [
        None,
        "text",
        [0.1, 0.2],
        [[0.5] * 3, [1.0]],
        {"$model": "x", "a": {"$enum": 1, "$dict": {"$model": 2}}},
        ("tuple", {"of": (an_answer(), Color.RED)}),
        an_answer(),
        an_llm_result(),
        {"prompt": "optimized"},
        numpy.float64(0.5),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_ragas_caches_comes_back_as_it_was(value: Any, url: str, tmp_path: Path) -> None:
    cache = HutchCache(url)
    assert not cache.has_key("k")
    assert cache.get("k") is None
    cache.set("k", value)
    again = HutchCache(url)
    assert again.has_key("k")
    assert again.get("k") == value
    assert repr(again.get("k")) == repr(value)
    assert pickle.dumps(again.get("k"), 4)  # a whole object
    theirs = DiskCacheBackend(str(tmp_path / "theirs"))
    theirs.set("k", value)
    assert theirs.get("k") == again.get("k")
    theirs.cache.close()
    assert HutchCache(url, "another").get("k") is None


def test_models_keep_what_is_not_a_field_and_which_fields_were_set(here: str) -> None:
    HutchCache(here).set("k", an_answer())
    found = HutchCache(here).get("k")
    assert found._note == "private"
    assert found.more == (1, 2)
    assert found.model_fields_set == an_answer().model_fields_set
    result = HutchCache(here)
    result.set("k", an_llm_result())
    assert type(result.get("k").generations[0][0].message) is AIMessage


@pytest.mark.parametrize("key", ["k", "", "x" * 5000, "a:b", "%%", "\ud800", "é🐇\n"])
def test_a_cache_takes_every_key(key: str, here: str) -> None:
    cache = HutchCache(here)
    cache.set(key, key)
    assert cache.get(key) == key
    assert not cache.has_key(key + "x")


def test_cached_functions_are_called_once_in_all_processes(lasting_url: str) -> None:
    calls = []

    @cacher(HutchCache(lasting_url))  # type: ignore[untyped-decorator]
    def answer(text: str, callbacks: object = None) -> Answer:
        calls.append(text)
        return Answer(text=text)

    @cacher(HutchCache(lasting_url))  # type: ignore[untyped-decorator]
    async def embed(text: str) -> list[float]:
        calls.append(text)
        return [float(len(text))]

    for _ in range(2):
        assert answer("a") == Answer(text="a")
        assert asyncio.run(embed("bb")) == [2.0]
        close_shared()
    if hasattr(os, "fork"):
        process = multiprocessing.get_context("fork").Process(target=answer, args=("a",), kwargs={"callbacks": 1})
        process.start()
        process.join()
        assert process.exitcode == 0
        process.close()
    assert calls == ["a", "bb"]
    assert len(keys_of(lasting_url, "ragas.cache")) == 2


# It has a name for each user in this file, and reads it without closing it.
@pytest.mark.filterwarnings(r"ignore:Exception ignored in.*uuid\.json:pytest.PytestUnraisableExceptionWarning")
def test_the_llms_and_embeddings_of_ragas_answer_from_it(
    here: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    calls = []

    class Langchain(BaseRagasLLM):  # type: ignore[misc]  # ragas has no types here
        def generate_text(self, prompt: Any, **_: Any) -> LLMResult:
            calls.append(prompt.to_string())
            return an_llm_result("Paris")

        async def agenerate_text(self, prompt: Any, **_: Any) -> LLMResult:
            return self.generate_text(prompt)

        def is_finished(self, response: LLMResult) -> bool:
            return True

    class Embedding(BaseRagasEmbedding):  # type: ignore[misc]
        def embed_text(self, text: str, **_: Any) -> list[float]:
            calls.append(text)
            return [0.1] * 8

        async def aembed_text(self, text: str, **_: Any) -> list[float]:
            return self.embed_text(text)

    def create(messages: Any, response_model: type[BaseModel], **_: Any) -> BaseModel:
        calls.append(messages[-1]["content"])
        return response_model(color=Color.RED)

    client = SimpleNamespace(chat=SimpleNamespace(completions=SimpleNamespace(create=create)))
    for _ in range(2):
        cache = HutchCache(here)
        assert isinstance(cache, CacheInterface)
        langchain = Langchain(run_config=RunConfig(), cache=cache)
        found = asyncio.run(langchain.generate(StringPromptValue(text="Where?")))
        assert found.generations[0][0].message.content == "Paris"
        assert Embedding(cache=cache).embed_text("text") == [0.1] * 8
        instructor = InstructorLLM(client, "fake", "openai", cache=cache)
        assert instructor.generate("Which color?", Verdict) == Verdict(color=Color.RED)
    assert calls == ["Where?", "text", "Which color?"]


def test_what_lies_in_the_cache_imports_nothing_and_makes_only_models_and_enums(here: str) -> None:
    cache = HutchCache(here)
    stored = shared_namespace(here, "ragas.cache")
    cache.set("k", an_answer())
    packed = stored["k"]
    assert packed["$model"] == f"{__name__}:Answer"
    state: dict[str, Any] = {"fields": {}, "extra": None, "set": [], "private": None}
    for reference in (
        "this:s",
        "antigravity:x",
        "os:system",
        "subprocess:Popen",
        "builtins:dict",
        f"{__name__}:Own",
        "",
        ":",
    ):
        stored["k"] = {"$model": reference, **state}
        assert not cache.has_key("k")
        assert cache.get("k") is None
        stored["k"] = {"$enum": reference, "value": "ls"}
        assert not cache.has_key("k")
    assert "this" not in sys.modules
    assert "antigravity" not in sys.modules


def test_a_model_that_changed_is_treated_as_missing(here: str) -> None:
    cache = HutchCache(here)
    cache.set("k", an_answer())
    stored = shared_namespace(here, "ragas.cache")
    packed = stored["k"]
    stored["k"] = {**packed, "fields": {**packed["fields"], "gone": 1}}
    assert not cache.has_key("k")
    del packed["fields"]["text"]
    stored["k"] = packed
    assert not cache.has_key("k")
    cache.set("e", Color.RED)
    stored["e"] = {**stored["e"], "value": "a member that is gone"}
    assert not cache.has_key("e")


def test_a_value_that_could_not_come_back_is_refused(here: str) -> None:
    class Local(BaseModel):
        a: int = 1

    endless: list[Any] = []
    endless.append(endless)
    cache = HutchCache(here)
    for value, message in (
        (Local(), "define it at the top of a module"),
        (endless, "refers to itself"),
        (Own(), "register_type"),
        ([Own()], "register_type"),
    ):
        with pytest.raises(hutch.ValueTypeError, match=message):
            cache.set("k", value)
        assert not cache.has_key("k")


# --- its own files, and the page ---


def test_folders_of_ragas_come_in_and_go_out_again(tmp_path: Path) -> None:
    theirs = ragas.backends.LocalJSONLBackend(str(tmp_path / "in"))
    theirs.save_dataset("a b", [{"n": n, "at": datetime(2024, 1, 1, tzinfo=UTC)} for n in range(300)])
    theirs.save_dataset("empty", [])
    theirs.save_experiment("a b", [{"text": "ü🐇\n ", "day": date(2024, 2, 29)}])
    url = f"sqlite://{(tmp_path / 'x.db').as_posix()}"
    hutch_command = "import sys; from hutch.cli import main; sys.argv[0] = 'hutch'; main()"
    run(hutch_command, "-s", url, "import", "ragas-jsonl", str(tmp_path / "in"), folder=tmp_path)
    backend = HutchBackend(url)
    assert backend.load_dataset("a b")[299] == {"n": 299, "at": "2024-01-01T00:00:00+00:00"}
    assert backend.load_dataset("empty") == []
    # With a model the values are as before.
    assert ragas.Dataset.load("a b", backend, data_model=Timed)[0] == Timed(n=0, at=datetime(2024, 1, 1, tzinfo=UTC))
    backend.save_experiment("new", [{"at": datetime(2024, 1, 1, tzinfo=UTC), "n": 1}])
    close_shared()
    run(hutch_command, "-s", url, "export", "ragas-jsonl", str(tmp_path / "out"), folder=tmp_path)
    out = ragas.backends.LocalJSONLBackend(str(tmp_path / "out"))
    assert out.list_datasets() == theirs.list_datasets() == ["a b", "empty"]
    assert out.list_experiments() == ["a b", "new"]
    assert out.load_dataset("a b") == theirs.load_dataset("a b")
    assert out.load_experiment("a b") == theirs.load_experiment("a b")
    assert out.load_experiment("new") == [{"at": datetime(2024, 1, 1, tzinfo=UTC), "n": 1}]


class Timed(BaseModel):
    n: int
    at: datetime


def test_the_page_says_what_is_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pages.run(PAGE, tmp_path, monkeypatch)
