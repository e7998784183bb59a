"""Test what users install: the wheel, the sdist and an editable install, each in its own empty environment."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

from tests.servers import RedisServer

ROOT = Path(__file__).parents[1]
ENGINES_WITHOUT_SERVER = ["lmdb", "memory", "shelf", "sqlite"]
# All tests here share one worker's build.
pytestmark = [pytest.mark.xdist_group("packaging"), pytest.mark.timeout(300)]

ROUND_TRIP = """
import sys
from pathlib import Path
import hutch

found = hutch.find_plugins()
assert not found.broken, found.broken
print("package", Path(hutch.__file__).resolve().parent)
for engine, url in (argument.split("=", 1) for argument in sys.argv[1:]):
    with hutch.connect(url) as store, store.open("core") as core:
        core["k"] = {"since": (1, 2), "tags": {3}}
        assert core["k"] == {"since": (1, 2), "tags": {3}}, core["k"]
        assert store.namespaces() == ["core"]
        print(engine, found.find(engine).path.resolve().parent.parent)
"""


def run(*command: str | Path, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run `command` as a user would: nothing of this test run's own environment reaches it."""
    private = ("PYTHON", "HUTCH_", "VIRTUAL_ENV", "COV", "PYTEST")
    environ = {name: value for name, value in os.environ.items() if not name.startswith(private)}
    result = subprocess.run(command, check=False, capture_output=True, text=True, timeout=280, cwd=cwd, env=environ)
    if result.returncode and command[0] == UV[0]:
        pytest.fail(f"{' '.join(map(str, command))} failed: {result.stderr}")
    return result


def find_uv() -> list[str]:
    found = shutil.which("uv", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]))
    return [found or "uv"]


UV = find_uv()


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the sdist, and the wheel built from that sdist."""
    folder = tmp_path_factory.mktemp("dist")
    run(*UV, "build", "--quiet", "--python", sys.executable, "--out-dir", folder, ROOT)
    return folder


@pytest.fixture(scope="module", params=["wheel", "sdist", "editable"])
def installed(request: pytest.FixtureRequest, built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the interpreter of an environment with only hutch and its four dependencies."""
    wanted: dict[str, list[str | Path]] = {
        "wheel": [*built.glob("*.whl")],
        "sdist": [*built.glob("*.tar.gz")],
        "editable": ["--editable", ROOT],
    }
    environment = tmp_path_factory.mktemp(request.param) / "venv"
    python = environment / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    run(*UV, "venv", "--quiet", "--python", sys.executable, environment)
    run(*UV, "pip", "install", "--quiet", "--python", python, *wanted[request.param])
    return python


def test_every_engine_that_needs_no_server_works_where_hutch_alone_is_installed(
    installed: Path, tmp_path: Path
) -> None:
    urls = [f"{engine}=memory://" if engine == "memory" else f"{engine}={engine}://{tmp_path.as_posix()}/{engine}"
            for engine in ENGINES_WITHOUT_SERVER]  # fmt: skip
    result = run(installed, "-W", "error", "-c", ROUND_TRIP, *urls, cwd=tmp_path)
    assert (result.returncode, result.stderr) == (0, "")
    (_, package), *engines = (line.split(" ", 1) for line in result.stdout.splitlines())
    assert [engine for engine, _ in engines] == ENGINES_WITHOUT_SERVER
    editable = Path(package) == ROOT / "src" / "hutch"
    plugins = ROOT / "plugins" if editable else Path(package) / "plugins"
    assert {Path(folder) for _, folder in engines} == {plugins}
    assert editable or installed.parent.parent in Path(package).parents
    assert (Path(package) / "py.typed").is_file()  # without it a type checker sees no types of hutch


def test_an_engine_without_its_driver_says_which_extra_brings_it(installed: Path, tmp_path: Path) -> None:
    code = (
        "import hutch\ntry: hutch.connect('redis://localhost:1/0')\nexcept hutch.PluginLoadError as error: print(error)"
    )
    result = run(installed, "-c", code, cwd=tmp_path)
    assert 'pip install "hutch[redis]"' in result.stdout, result


@pytest.mark.parametrize("command", [["hutch"], ["python", "-m", "hutch"]], ids=["hutch", "python -m hutch"])
def test_the_command_without_its_extra_says_in_one_line_what_to_install(
    installed: Path, command: list[str], tmp_path: Path
) -> None:
    program = shutil.which(command[0], path=str(installed.parent))
    assert program
    result = run(program, *command[1:], "ls", cwd=tmp_path)
    assert result.returncode != 0
    assert 'pip install "hutch[cli]"' in result.stderr
    assert len(result.stderr.splitlines()) == 1, result.stderr


@pytest.mark.parametrize(
    "driver", [("redis==5.1.0",), ("redis>=5.1", "hiredis>=3.1")], ids=["oldest, without hiredis", "as the extra says"]
)
def test_the_redis_engine_works_with_the_drivers_of_its_extra(
    installed: Path, redis_server: RedisServer, tmp_path: Path, driver: tuple[str, ...]
) -> None:
    # After the tests above, which need an environment without the driver.
    run(*UV, "pip", "install", "--quiet", "--upgrade", "--python", installed, *driver)
    extra = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]["redis"]
    assert driver[0].replace("==5.1.0", ">=5.1") == extra[0]
    assert len(driver) == 1 or list(driver) == extra
    url = f"redis={redis_server.url}?prefix={tmp_path.name}"
    result = run(installed, "-W", "error", "-c", ROUND_TRIP, url, cwd=tmp_path)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.splitlines()[1].startswith("redis ")


def test_the_wheel_holds_the_package_its_types_and_its_engines_and_nothing_else(built: Path) -> None:
    with zipfile.ZipFile(next(built.glob("*.whl"))) as wheel:
        names = wheel.namelist()
        metadata = wheel.read(next(name for name in names if name.endswith("METADATA"))).decode()
    assert {name.split("/")[0].split("-")[0] for name in names} == {"hutch"}
    assert "hutch/py.typed" in names
    assert any(name.endswith("licenses/LICENSE") for name in names)
    urls = dict(re.findall(r"^Project-URL: (\w+), (https://\S+)$", metadata, re.MULTILINE))
    assert urls.keys() == {"Documentation", "Source", "Issues", "Changelog"}
    # PyPI shows the README by itself: a relative link would lead nowhere.
    assert re.findall(r"(?:\]\(|^\[[\w-]+\]: |src=\")(?!https://).*", metadata.partition("\n\n")[2], re.MULTILINE) == []
    for descriptor in (ROOT / "plugins").glob("*/*.plug"):
        for file in (descriptor, *descriptor.parent.glob("*.py")):
            assert f"hutch/{file.relative_to(ROOT).as_posix()}" in names
    assert not [name for name in names if "__pycache__" in name or "/tests/" in name]
    required = [line.split(": ")[1] for line in metadata.splitlines() if line.startswith("Requires-Dist")]
    core = {line.partition(">")[0] for line in required if "extra ==" not in line}
    assert core == {"pluggy", "pyyaml", "lmdb", "ormsgpack"}


def test_the_sdist_holds_what_it_takes_to_test_and_document_it(built: Path) -> None:
    with tarfile.open(next(built.glob("*.tar.gz"))) as sdist:
        names = {name.partition("/")[2] for name in sdist.getnames()}
    assert {"Makefile", "mkdocs.yml", "scripts/run-tests", "docs/index.md", "LICENSE", "CHANGELOG.md"} <= names
    assert {"tests/test_packaging.py", "examples/plugin_host.py", "plugins/memory/memory.plug"} <= names
    assert not [
        name for name in names if name.startswith(("examples/state", ".venv", "site/")) or "__pycache__" in name
    ]
