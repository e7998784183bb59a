"""Test namespaces that are opened with a type."""

from __future__ import annotations

import asyncio
import enum
import importlib
import json
import pickle
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal, NotRequired, Required, TypedDict

import msgspec
import pydantic
import pytest
from typing_extensions import ReadOnly

import hutch
import hutch.aio


@hutch.register_type
@dataclass
class Registered:
    name: str


@dataclass
class Address:
    street: str
    number: int = 0


@dataclass
class User:
    name: str
    age: int = 0
    addresses: list[Address] = field(default_factory=list)
    boss: User | None = None


@dataclass(frozen=True, slots=True)
class Point:
    x: float
    y: float


class Movie(TypedDict):
    title: str
    year: NotRequired[int]


class Model(pydantic.BaseModel):
    name: str
    at: datetime | None = None
    inner: list[Model] = []


class Record(msgspec.Struct):
    name: str
    age: int = 0
    tags: list[str] = []
    inner: Record | None = None


class Dated(msgspec.Struct):
    at: datetime


class Colour(enum.Enum):
    RED = "red"


NOW = datetime.now(UTC)
# A type, a value of it, what is stored, and a value of another type: with the place and the types of the error.
CASES: list[tuple[Any, Any, Any, Any, tuple[str, ...]]] = [
    (
        User,
        User("ada", 36, [Address("main", 1)], User("bob")),
        {
            "name": "ada",
            "age": 36,
            "addresses": [{"street": "main", "number": 1}],
            "boss": {"name": "bob", "age": 0, "addresses": [], "boss": None},
        },
        User("ada", addresses=[Address("a"), Address("b", "secret")]),  # type: ignore[arg-type]
        (".addresses[1].number", "a str", "int"),
    ),
    (Point, Point(1.5, 2), {"x": 1.5, "y": 2}, Point(1.5, "secret"), (".y", "a str", "float")),  # type: ignore[arg-type]
    (Movie, {"title": "M", "year": 1931}, {"title": "M", "year": 1931}, {"year": 1931}, (".title", "no value", "str")),
    (
        Model,
        Model(name="ada", at=NOW, inner=[Model(name="bob")]),
        {"name": "ada", "at": NOW, "inner": [{"name": "bob", "at": None, "inner": []}]},
        Model.model_construct(name=b"secret"),
        (".name", "string_type", "Model"),
    ),
    (
        Record,
        Record("ada", 36, ["x"], Record("bob")),
        {
            "name": "ada",
            "age": 36,
            "tags": ["x"],
            "inner": {"name": "bob", "age": 0, "tags": [], "inner": None},
        },
        Record("ada", tags=["a", 5]),  # type: ignore[list-item]
        (".tags[1]", "int", "str"),
    ),
    (Dated, Dated(NOW), {"at": NOW}, Dated("secret"), (".at", "str", "datetime")),  # type: ignore[arg-type]
    (Colour, Colour.RED, "red", "red", ("a str", "Colour")),
    (int, 5, 5, True, ("a bool", "int")),
    (list[int], [1, 2], [1, 2], [1, "secret"], ("[1]", "a str", "int")),
    (dict[str, int], {"a": 1}, {"a": 1}, {"a": "secret"}, ("[...]", "a str", "int")),
    (tuple[int, str], (1, "a"), (1, "a"), (1, 2), ("[1]", "an int", "str")),
    (set[str], {"a"}, {"a"}, {1}, ("an int", "str")),
    (int | str, "a", "a", 1.5, ("a float", "int | str")),
    (User | None, None, None, 1, ("an int", "User")),
    (Literal["a", "b"], "a", "a", "secret", ("another str", "'a', 'b'")),
    (dict[str, list[Address]], {"k": [Address("a")]}, {"k": [{"street": "a", "number": 0}]}, {"k": [1]}, ("Address",)),
]
IDS = [getattr(case[0], "__name__", str(case[0])) for case in CASES]


@pytest.fixture(params=["memory", "lmdb", "sqlite", "shelf"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[hutch.Store]:
    where = {"memory": uuid.uuid4().hex, "sqlite": str(tmp_path / "kv.db")}.get(request.param, str(tmp_path / "data"))
    with hutch.connect(f"{request.param}://{where}") as store:
        yield store


@pytest.mark.parametrize(("kind", "value", "plain", "wrong", "words"), CASES, ids=IDS)
def test_values_of_the_type_come_back_and_others_are_refused(
    store: hutch.Store, kind: Any, value: Any, plain: Any, wrong: Any, words: tuple[str, ...]
) -> None:
    with store.open("typed", type=kind) as ns:
        ns["k"] = value
        assert (ns["k"], ns.get("k"), dict(ns.items()), ns.get_many(["k"])) == (
            value,
            value,
            {"k": value},
            {"k": value},
        )
        assert type(ns["k"]) is type(value)
        assert list(ns.scan()) == [("k", value)]
        writes: list[Callable[[], Any]] = [
            lambda: ns.__setitem__("k", wrong),
            lambda: ns.update({"new": value, "k": wrong}),
            lambda: ns.setdefault("new", wrong),
            lambda: ns.modify("k", lambda _: wrong, allow_none=True),
            lambda: ns.compare_and_set("k", value, wrong),
        ]
        for write in writes:
            with pytest.raises(hutch.ValueTypeError) as raised:
                write()
            for word in ("'k'" if write is not writes[2] else "'new'", "'typed'", *words):
                assert word in str(raised.value)
            assert "secret" not in str(raised.value)
        assert dict(ns) == {"k": value}
        assert ns.modify("k", lambda old: old, allow_none=True) == value
        assert ns.setdefault("other", value) == ns["other"] == value
        assert ns.compare_and_set("k", value, value)
        assert ns.pop("other") == value
    with store.open("typed") as untyped:
        assert untyped["k"] == plain
        assert type(untyped["k"]) is type(plain)


def test_mutable_writes_a_changed_instance(store: hutch.Store) -> None:
    with store.open("users", type=User) as users:
        with users.mutable("ada", default=User("ada")) as user:
            user.addresses.append(Address("main"))
        with pytest.raises(hutch.ValueTypeError, match="age"), users.mutable("ada") as user:
            user.age = "old"  # type: ignore[assignment]
        assert users["ada"] == User("ada", addresses=[Address("main")])


class Person(pydantic.BaseModel):
    name: str
    age: int = 0


class Film(TypedDict):
    name: str
    age: NotRequired[int]


class ClosedPerson(pydantic.BaseModel, extra="forbid"):
    name: str


class ClosedRecord(msgspec.Struct, forbid_unknown_fields=True):
    name: str


@pytest.mark.parametrize("kind", [User, Record, Person, Film])
def test_fields_that_were_added_or_removed(store: hutch.Store, kind: Any) -> None:
    with store.open("users") as plain:
        plain.update({"before": {"name": "ada", "gone": 1}, "never": {"age": 3}, "other": {"name": "x", "age": [3]}})
    with store.open("users", type=kind) as users:
        assert users["before"] == users.get_many(["before"])["before"] == kind(name="ada")
        assert kind is Film or users["before"].age == 0
        with pytest.raises(hutch.CorruptValueError, match=r"'never'.*\.name.*(no value|missing).*without type="):
            users["never"]
        with pytest.raises(hutch.CorruptValueError, match=r"'other'.*\.age"):
            users["other"]
        with pytest.raises(hutch.CorruptValueError):
            dict(users)
        users.modify("before", lambda user: user)
        del users["other"]
    with store.open("users") as plain:
        assert "gone" not in plain["before"]
        assert plain["never"] == {"age": 3}
        plain["never"] |= {"name": "eve"}
    with store.open("users", type=kind) as users:
        assert users["never"] == kind(name="eve", age=3)


class Partial(TypedDict, total=False):
    name: Required[Annotated[str, "first and last"]]
    age: int


class Whole(Partial):
    rank: Annotated[NotRequired[int], "from 1"]
    tags: ReadOnly[list[str]]


# The same, with annotations that Python evaluates.
Evaluated = TypedDict(  # noqa: UP013
    "Evaluated",
    {"name": str, "age": NotRequired[int], "rank": Annotated[NotRequired[int], "from 1"], "tags": ReadOnly[list[str]]},
)


@pytest.mark.parametrize("kind", [Whole, Evaluated])
def test_keys_of_a_typed_dict_that_are_not_required(store: hutch.Store, kind: Any) -> None:
    with store.open("k", type=kind) as ns:
        for value in ({"name": "ada", "tags": []}, {"name": "ada", "tags": ["x"], "age": 3, "rank": 1}):
            ns["k"] = value
            assert ns["k"] == value
        for name, part in (("name", "ada"), ("tags", [])):
            missing = "tags" if name == "name" else "name"
            with pytest.raises(hutch.ValueTypeError, match=rf"\.{missing} is no value"):
                ns["k"] = {name: part}


@pytest.mark.parametrize("kind", [ClosedPerson, ClosedRecord])
def test_a_class_that_forbids_other_fields_refuses_those_that_were_removed(store: hutch.Store, kind: Any) -> None:
    with store.open("users") as plain:
        plain["k"] = {"name": "ada", "gone": "secret"}
    with store.open("users", type=kind) as users:
        with pytest.raises(hutch.CorruptValueError, match=r"'k' of namespace 'users'.*without type=") as raised:
            users["k"]
        assert "secret" not in str(raised.value)
    with store.open("users") as plain:
        assert plain["k"]["gone"] == "secret"


def test_a_pydantic_model_converts_what_it_reads_as_it_does_elsewhere(store: hutch.Store) -> None:
    with store.open("users") as plain:
        plain["k"] = {"name": "ada", "age": "3"}
    with store.open("users", type=Person) as users:
        assert users["k"] == Person(name="ada", age=3)


CLASSES = """
import dataclasses, typing, msgspec, pydantic

@dataclasses.dataclass
class {0}Data:
    name: str
class {0}Dict(typing.TypedDict):
    name: str
class {0}Model(pydantic.BaseModel):
    name: str
class {0}Struct(msgspec.Struct):
    name: str
"""


@pytest.mark.parametrize("kind", ["Data", "Dict", "Model", "Struct"])
@pytest.mark.parametrize("name", [None, "shop.User"])
def test_a_class_may_move(
    store: hutch.Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, name: str | None
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    for module, prefix in (("typed_before", "Former"), ("typed_after", "Moved")):
        (tmp_path / f"{module}.py").write_text(CLASSES.format(prefix))
        monkeypatch.delitem(sys.modules, module, raising=False)
    former: Any = getattr(importlib.import_module("typed_before"), f"Former{kind}")
    moved: Any = getattr(importlib.import_module("typed_after"), f"Moved{kind}")
    with store.open("users", type=former, name=name) as old:
        old["k"] = former(name="ada")
        engine = old._store.unlayered
        assert not isinstance(engine, hutch.EncodedStorage) or b"Former" not in (engine.read("k") or b"")
    with store.open("users", type=moved, name=name) as new:
        assert new["k"] == moved(name="ada")
        assert type(new["k"]) is (dict if kind == "Dict" else moved)
        new["k"] = moved(name="bob")
    with store.open("users", type=former) as old:
        assert old["k"] == former(name="bob")


@pytest.mark.parametrize("kind", [User, Movie, Model, Record, Colour, int, User | None, dict[str, int]])
def test_errors_call_the_type_by_its_name(store: hutch.Store, kind: Any) -> None:
    with store.open("users", type=kind, name="shop.User") as users:
        for write in (lambda: users.__setitem__("k", 1.5), lambda: users.setdefault("k", 1.5)):
            with pytest.raises(hutch.ValueTypeError, match=r"is a float, and its type is shop\.User;"):
                write()
    with store.open("users") as plain:
        plain["k"] = [1.5]
    with (
        store.open("users", type=kind, name="shop.User") as users,
        pytest.raises(hutch.CorruptValueError, match=r"its type is shop\.User;"),
    ):
        users["k"]


def test_a_name_without_a_type_or_of_another_type_is_refused(store: hutch.Store) -> None:
    opened: Any = store.open
    for arguments, words in (
        ({"name": "User"}, r"name= without type=.*Pass type= too, or leave out name="),
        ({"type": User, "name": ""}, "name= is empty: a text was expected"),
        ({"type": User, "name": User}, "name= is a type: a text was expected"),
    ):
        with pytest.raises(hutch.ValueTypeError, match=words):
            opened("users", **arguments)
    with store.open("users", type=User) as users:
        assert len(users) == 0


def test_what_a_registered_class_stored_is_read(store: hutch.Store) -> None:
    with store.open("k") as plain:
        plain["k"] = Registered("ada")
    with store.open("k", type=Registered) as typed:
        assert typed["k"] == Registered("ada")


class Opaque:
    pass


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (Opaque, "Opaque.*hutch.register_type"),
        (list[Opaque], "Opaque"),
        (User | Movie, "union"),
        (User | dict[str, int], "more than one"),
        (5, "5"),
        (bytearray, "bytearray"),
    ],
)
def test_a_type_that_cannot_be_checked_is_refused_at_open(store: hutch.Store, kind: Any, words: str) -> None:
    with pytest.raises(hutch.ValueTypeError, match=words):
        store.open("k", type=kind)
    with store.open("k") as ns:
        assert len(ns) == 0


def test_increment_of_a_typed_namespace(store: hutch.Store) -> None:
    with store.open("n", type=int) as ns:
        assert [ns.increment("n"), ns.increment("n", 2)] == [1, 3]
        with pytest.raises(hutch.ValueTypeError):
            ns.increment("n", 0.5)
    with store.open("u", type=User) as users, pytest.raises(hutch.ValueTypeError):
        users.increment("n")


def test_damage_is_an_error_of_a_typed_read_too() -> None:
    with hutch.connect("memory://") as store, store.open("k", type=Record) as ns:
        ns["k"] = Record("ada")
        engine: Any = ns._store.unlayered
        frame = engine.read("k")
        engine.write("k", frame[:5] + b"\x00" + frame[6:])
        with pytest.raises(hutch.CorruptValueError, match=r"'k'.*checksum"):
            ns["k"]
        with pytest.raises(KeyError):
            ns["missing"]
        with pytest.raises(hutch.KeyTypeError):
            ns[5]  # type: ignore[index]


def test_deadlines_layers_and_transactions() -> None:
    config = {"STORAGE": "memory://", "LAYERS": ["metrics", "cache"]}
    with hutch.connect(config) as store, store.open("k", type=Record) as ns:
        ns.set("k", Record("ada"), ttl_s=1000)
        ns.modify("k", lambda record: Record(record.name, 5))
        assert ns["k"] == Record("ada", 5)
        assert (ns.ttl_s("k") or 0) > 900
    with hutch.connect("memory://") as store, store.open("k", type=Record) as ns:
        ns["k"] = Record("ada")
        with store.transaction() as tx:
            assert tx["k"]["k"]["name"] == "ada"
            tx["k"]["k"] = {"name": "bob"}
        assert ns["k"] == Record("bob")


def test_a_transaction_of_the_namespace_has_values_of_the_type(tmp_path: Path) -> None:
    for url in ("memory://", f"lmdb://{tmp_path}/data", f"sqlite://{tmp_path}/kv.db"):
        with hutch.connect(url) as store, store.open("k", type=Record) as ns:
            ns["k"] = Record("ada")
            with ns.transaction() as tx:
                assert tx["k"] == tx.get("k") == Record("ada")
                tx["new"] = Record("bob", 5)
                assert dict(tx.scan()) == {"k": Record("ada"), "new": Record("bob", 5)}
                with pytest.raises(hutch.ValueTypeError, match=r"key 'k' of namespace 'k': .* nothing was written"):
                    tx["k"] = {"name": "ada"}
            assert dict(ns) == {"k": Record("ada"), "new": Record("bob", 5)}


def test_a_pickled_namespace_keeps_its_type(tmp_path: Path) -> None:
    with hutch.connect(f"lmdb://{tmp_path}/data") as store, store.open("users", type=User, name="U") as users:
        users["ada"] = User("ada")
        data = pickle.dumps(users)
    code = (
        "import pickle, sys; users = pickle.loads(bytes.fromhex(sys.argv[1])); from tests.test_typed import User\n"
        "assert users['ada'] == User('ada')\n"
        "try: users['ada'] = 5\n"
        "except TypeError as error: assert 'its type is U;' in str(error), error\n"
        "else: sys.exit('taken')"
    )
    root = Path(__file__).parents[1]
    subprocess.run([sys.executable, "-c", code, data.hex()], check=True, cwd=root)


def test_the_command_shows_the_fields(tmp_path: Path) -> None:
    with hutch.connect(f"lmdb://{tmp_path}/data") as store, store.open("users", type=User) as users:
        users["ada"] = User("ada", 36)
    command = [sys.executable, "-m", "hutch", "get", "users", "ada", "-s", f"lmdb://{tmp_path}/data"]
    shown = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert json.loads(shown) == {"name": "ada", "age": 36, "addresses": [], "boss": None}


def test_asyncio_opens_typed_namespaces() -> None:
    async def main() -> None:
        async with hutch.aio.connect("memory://") as store, store.open("users", type=User, name="U") as users:
            await users.set("ada", User("ada"))
            assert await users["ada"] == User("ada")
            with pytest.raises(hutch.ValueTypeError, match="its type is U;"):
                await users.set("ada", Address("a"))  # type: ignore[arg-type]

    asyncio.run(main())


def test_msgspec_is_not_imported_without_a_struct() -> None:
    code = (
        "import sys, hutch, dataclasses\n"
        "User = dataclasses.make_dataclass('User', [('name', str)])\n"
        "with hutch.connect('memory://') as store, store.open('k', type=User) as ns: ns['k'] = User('ada')\n"
        "assert not {'msgspec', 'pydantic'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_namespace_without_a_type_imports_nothing_of_it() -> None:
    code = (
        "import sys, hutch\n"
        "with hutch.connect('memory://') as store, store.open('k') as ns: ns['k'] = 1; ns['k']\n"
        "assert not [name for name in sys.modules if name.startswith('hutch.typed')]"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
