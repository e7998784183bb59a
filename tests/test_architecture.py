"""Test the table of docs/architecture.md: which room may import which, and what importing hutch costs."""

from __future__ import annotations

import ast
import graphlib
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import hutch

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "hutch"
PLUGINS = ROOT / "plugins"
# In the table, for those who may use no more than what every user of hutch may.
PUBLIC = "public"


def read_table() -> dict[str, tuple[set[str], set[str]]]:
    """Return, for each room, the rooms and the packages it may import."""
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \|[^|]*\|([^|]*)\|([^|]*)\|$", text, re.MULTILINE)
    return {
        room: (set(re.findall(r"`(\w+)`", rooms)), set(re.findall(r"`(\w+)`", packages)))
        for room, rooms, packages in rows
    }


def read_drivers() -> dict[str, set[str]]:
    """Return, for each engine, the drivers it may import."""
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    rows = text.partition("| engine | drivers |\n")[2].partition("\n\n")[0]
    return {
        engine: set(re.findall(r"`(\w+)`", drivers))
        for engine, drivers in re.findall(r"^\| `(\w+)` \|([^|]*)\|$", rows, re.MULTILINE)
    }


TABLE = read_table()
DRIVERS = read_drivers()


def files() -> list[Path]:
    inside = [file for file in PACKAGE.rglob("*.py") if PACKAGE / "plugins" not in file.parents]
    return sorted([*inside, *PLUGINS.rglob("*.py"), *(ROOT / "examples").rglob("*.py")])


def room_of(file: Path) -> str:
    if file.is_relative_to(PACKAGE):
        room = file.relative_to(PACKAGE).parts[0].removesuffix(".py")
        return "cli" if room == "__main__" else room
    return file.relative_to(ROOT).parts[0]


def imports_of(file: Path, for_type_checkers: bool = True) -> Iterator[tuple[str, list[str]]]:
    """Yield (module, names imported from it) for every import, also inside functions; relative ones made absolute."""
    parts = file.relative_to(ROOT).with_suffix("").parts
    parents = parts[1:-1] if parts[0] == "src" else parts[:-1]
    tree = ast.parse(file.read_text(encoding="utf-8"))
    if not for_type_checkers:
        tree = WithoutTypeChecking().visit(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, []) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = parents[: len(parents) - node.level + 1] if node.level else ()
            yield ".".join([*base, *filter(None, [node.module])]), [alias.name for alias in node.names]


class WithoutTypeChecking(ast.NodeTransformer):
    """Remove ``if TYPE_CHECKING:`` blocks, and keep their `else`."""

    def visit_If(self, node: ast.If) -> Any:
        self.generic_visit(node)
        return node.orelse if ast.unparse(node.test) == "TYPE_CHECKING" else node


def rooms_imported(module: str, names: list[str]) -> set[str]:
    """Return the rooms of hutch that ``from module import names`` reaches; PUBLIC for its public names."""
    if module != "hutch":
        return {module.split(".")[1]}
    return {PUBLIC if name in hutch.__all__ else name for name in names} or {PUBLIC}


@pytest.mark.parametrize("file", files(), ids=lambda file: str(file.relative_to(ROOT)))
def test_a_room_imports_only_what_the_architecture_page_allows_it(file: Path) -> None:
    room = room_of(file)
    if file == PACKAGE / "__init__.py":
        return  # the public names: it may reach every room, and does so when a name is first used
    assert room in TABLE, f"docs/architecture.md has no row for {room!r}"
    allowed_rooms, allowed_packages = TABLE[room]
    for module, names in imports_of(file):
        top = module.partition(".")[0]
        if top == "hutch":
            reached = rooms_imported(module, names) - {room}
            assert reached <= allowed_rooms, f"{room} imports {', '.join(sorted(reached - allowed_rooms))} of hutch"
        elif top not in sys.stdlib_module_names and not module.startswith((f"plugins.{file.parent.name}", "examples")):
            assert top in allowed_packages, f"{room} imports the package {top}"


@pytest.mark.parametrize("file", sorted(PLUGINS.rglob("*.py")), ids=lambda file: str(file.relative_to(PLUGINS)))
def test_an_engine_imports_the_drivers_in_its_row_and_no_other_engine(file: Path) -> None:
    packages = {module.partition(".")[0] for module, _ in imports_of(file)} - set(sys.stdlib_module_names)
    engine = file.relative_to(PLUGINS).parts[0]
    assert packages - {"hutch", "plugins"} <= DRIVERS[engine]
    assert all(module.startswith(f"plugins.{engine}") for module, _ in imports_of(file) if module.startswith("plugins"))


def test_the_table_of_drivers_has_each_engine_and_the_row_of_plugins_has_their_drivers() -> None:
    assert set(DRIVERS) == {path.parent.name for path in PLUGINS.glob("*/*.plug")}
    assert set().union(*DRIVERS.values()) == TABLE["plugins"][1]


def module_name(file: Path) -> str:
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[1:] if parts[0] == "src" else parts).removesuffix(".__init__")


def read_graph() -> dict[str, set[str]]:
    """Return, for each module in src and plugins, the modules among them that it imports when it runs."""
    modules = {module_name(file): file for file in files() if not file.is_relative_to(ROOT / "examples")}
    graph: dict[str, set[str]] = {}
    for name, file in modules.items():
        reached = set()
        for module, names in imports_of(file, for_type_checkers=False):
            inner = {f"{module}.{each}" for each in names}
            reached |= (inner & set(modules)) or ({module} & set(modules))
        graph[name] = reached - {name}
    return graph


def find_circle(graph: dict[str, set[str]]) -> list[str]:
    """Return the modules on a circle of imports; empty if no import is circular."""
    sorter = graphlib.TopologicalSorter(graph)
    try:
        sorter.prepare()
    except graphlib.CycleError as error:
        return list(error.args[1])
    return []


def test_no_import_closes_a_circle_not_even_one_inside_a_function() -> None:
    assert find_circle({"a": {"b"}, "b": {"c"}, "c": {"a"}})
    graph = read_graph()
    assert "hutch.integrity" in graph["hutch.store"], "an import inside a function"
    assert "hutch.store" not in graph["hutch.pickling"], "an import for type checkers"
    assert find_circle(graph) == []


@pytest.mark.parametrize(
    "file",
    [file for file in files() if not file.is_relative_to(ROOT / "examples")],
    ids=lambda file: str(file.relative_to(ROOT)),
)
def test_a_file_of_more_than_400_lines_says_why(file: Path) -> None:
    text = file.read_text(encoding="utf-8")
    if text.count("\n") > 400:
        assert re.search(r"^Over 400 lines: \S", ast.get_docstring(ast.parse(text)) or "", re.MULTILINE)


def test_every_room_of_the_table_exists() -> None:
    assert set(TABLE) == {room_of(file) for file in files()} - {"__init__"}


def modules_after(statement: str) -> set[str]:
    """Return the modules that `statement` adds to a bare interpreter's, without site-packages and their hooks."""
    code = (
        "import sys, json; before = set(sys.modules); sys.path[:0] = json.loads(sys.argv[1])\n"
        f"{statement}\nprint(json.dumps(sorted(set(sys.modules) - before)))"
    )
    path = [str(ROOT / "src"), *(entry for entry in sys.path if entry.endswith("site-packages"))]
    result = subprocess.run(
        [sys.executable, "-S", "-c", code, json.dumps(path)], check=True, capture_output=True, text=True, timeout=60
    )
    return set(json.loads(result.stdout))


def test_importing_hutch_loads_one_module_of_it_and_little_of_the_standard_library() -> None:
    loaded = modules_after("import hutch")
    assert {name for name in loaded if name.partition(".")[0] not in sys.stdlib_module_names} == {"hutch"}
    assert "importlib.metadata" not in loaded
    assert len(loaded) <= 40, sorted(loaded)


def test_connecting_imports_no_engine_but_the_one_named_and_no_driver_of_another() -> None:
    loaded = modules_after("import hutch; hutch.connect('memory://').close()")
    packages = {name.partition(".")[0] for name in loaded} - set(sys.stdlib_module_names)
    assert {name for name in packages if not name.startswith("hutch_plugin_")} == {"hutch", "isal", "ormsgpack"}
    own = {name.partition(".")[2] for name in loaded if name.startswith("hutch_plugin_") and "." in name}
    assert own == {"commits", "data", "storage"}
    assert not loaded & {"sqlite3", "dbm", "shelve", "asyncio", "http"}


def test_a_store_is_opened_and_read_without_loading_what_it_does_not_need(tmp_path: Path) -> None:
    use = f"with hutch.connect({'lmdb://' + str(tmp_path / 'store')!r}) as store, store.open('core') as core: core"
    made = modules_after(f"import hutch\n{use}['k'] = 1")
    own = modules_after(f"import hutch\n{use}['k']") - modules_after("import lmdb, ormsgpack, isal.isal_zlib")
    stdlib = {name for name in own if name.partition(".")[0] in sys.stdlib_module_names}
    # Each of these brings many more, or takes longer than LMDB to open a store.
    heavy = {"importlib.metadata", "email", "zipfile", "tempfile", "shutil", "random", "hashlib", "pickle", "difflib"}
    heavy |= {"decimal", "fractions", "configparser", "traceback", "json", "logging", "asyncio", "subprocess", "socket"}
    assert not (made | stdlib) & heavy
    assert len(stdlib) <= 26, sorted(stdlib)
    packages = {name.partition(".")[0] for name in own - stdlib}
    assert {name for name in packages if not name.startswith("hutch_plugin_")} == {"hutch", "lmdb"}
    # Nor of hutch what only its other engines, codecs, layers and commands need.
    others = ("cli", "layers", "hooks", "aio", "bridges", "testing", "transfer", "integrity", "codec.pickle")
    assert not {name for name in own if name.startswith(tuple(f"hutch.{room}" for room in others))}
    # An import inside a verb would make them fewer: but a signal handler that raises in it can leave the lock of the
    # module taken, for ever.
    assert len(own - stdlib) <= 72, sorted(own - stdlib)
    assert not {name for name in own if name.startswith("hutch_plugin_") and name.endswith((".integrity", ".pages"))}


@pytest.mark.parametrize(("url", "needs"), [("sqlite://{}/kv.db", set()), ("shelf://{}", {"pickle"})])
def test_the_other_engines_of_files_load_no_more_either(url: str, needs: set[str], tmp_path: Path) -> None:
    use = f"with hutch.connect({url.format(tmp_path)!r}) as store, store.open('core') as core: core['k'] = 1"
    loaded = modules_after(f"import hutch\n{use}")
    heavy = {"importlib.metadata", "tempfile", "random", "hashlib", "pickle", "difflib", "logging", "traceback", "json"}
    assert loaded & heavy == needs


def test_every_public_name_has_a_docstring_and_is_where_it_says() -> None:
    for name in hutch.__all__:
        value = getattr(hutch, name)
        if name not in {"MISSING", "__version__", "hookimpl"}:
            assert value.__doc__, name
        assert name in dir(hutch)


@pytest.mark.parametrize("file", files(), ids=lambda file: str(file.relative_to(ROOT)))
def test_no_weak_container_runs_python_code_in_the_garbage_collector(file: Path) -> None:
    """The collector runs it within any verb, and what a signal handler raises there is dropped: use `WeakRefs`."""
    names = {name for module, names in imports_of(file) for name in [module, *names]}
    names |= {node.attr for node in ast.walk(ast.parse(file.read_text("utf-8"))) if isinstance(node, ast.Attribute)}
    assert not names & {"WeakSet", "WeakValueDictionary", "WeakKeyDictionary"}
