"""Test codecs of other packages: found by descriptor and entry point, made with options, refused with a reason."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import hutch
from hutch.codec.frame import FrameCodec
from hutch.discovery import entry_points
from hutch.testing.conformance.kit import encoded
from tests.pages import run as run_page

EXAMPLE = Path(__file__).parents[2] / "examples" / "zlib_json"
VALUE = {"text": "a" * 1000, "list": [1, 2.5, None, True]}


def config(codec: object, *folders: Path, storage: str = "memory://codecs") -> dict[str, Any]:
    return {"STORAGE": storage, "CODEC": codec, "EXTRA_PLUGIN_DIRS": list(map(str, folders))}


def copy_of(tmp_path: Path, folder: str, **changes: str) -> Path:
    """Return a copy of the example whose descriptor and module have `changes` applied."""
    copy = tmp_path / folder
    shutil.copytree(EXAMPLE, copy, ignore=shutil.ignore_patterns("__pycache__"))
    for file in copy.iterdir():
        text = file.read_text()
        for old, new in changes.items():
            text = text.replace(old, new)
        file.write_text(text)
    return copy


@pytest.mark.parametrize("codec", ["zlib-json", "Zlib-JSON", {"name": "zlib-json", "level": 9}])
def test_a_codec_is_found_by_its_descriptor_and_keeps_its_own_header(tmp_path: Path, codec: object) -> None:
    url = f"sqlite://{tmp_path / 'store.db'}"
    with hutch.connect(config(codec, EXAMPLE, storage=url)) as store, store.open("core") as core:
        core["k"] = VALUE
        core.update({"a": 1, "b": [2]})
        assert core["k"] == VALUE
        assert dict(core.items()) == {"k": VALUE, "a": 1, "b": [2]}
        stored = encoded(store, "core").read("k")
        assert stored is not None
        assert stored[0] == 0x80
        assert len(stored) < 200
        with pytest.raises(hutch.ValueTypeError, match="JSON would change, in a tuple"):
            core["t"] = (1,)


def test_a_url_names_a_codec_of_a_plugin_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HUTCH_PLUGIN_PATH", str(EXAMPLE))
    with hutch.connect(f"lmdb://{tmp_path / 's'}?codec=zlib-json") as store, store.open("core") as core:
        core["k"] = VALUE
        assert core["k"] == VALUE


def test_every_codec_reads_what_msgpack_and_json_wrote(tmp_path: Path) -> None:
    url = f"sqlite://{tmp_path / 'store.db'}"
    for codec in ("msgpack", "json"):
        with hutch.connect(config(codec, storage=url)) as store, store.open("core") as core:
            core[codec] = VALUE
    with hutch.connect(config("zlib-json", EXAMPLE, storage=url)) as store, store.open("core") as core:
        assert dict(core) == {"msgpack": VALUE, "json": VALUE}


def test_a_frame_of_a_codec_that_is_not_configured_names_it_and_the_way_out(tmp_path: Path) -> None:
    url = f"sqlite://{tmp_path / 'store.db'}"
    with hutch.connect(config("zlib-json", EXAMPLE, storage=url)) as store, store.open("core") as core:
        core["k"] = "hush-hush"
    with (
        hutch.connect(config("msgpack", EXAMPLE, storage=url)) as store,
        store.open("core") as core,
        pytest.raises(hutch.CorruptValueError, match=r"written with the zlib-json codec.*msgpack.*set CODEC") as raised,
    ):
        core["k"]
    assert "hush" not in str(raised.value)
    with hutch.connect(url) as store, store.open("core") as core:
        with pytest.raises(hutch.CorruptValueError, match=r"header byte 0x80 is unknown; .* not installed"):
            core["k"]
        with pytest.raises(hutch.CorruptValueError, match="'k'"):
            dict(core.items())


def test_an_unknown_codec_names_the_nearest_and_all() -> None:
    with pytest.raises(hutch.ConfigError, match=r"no codec is called 'zlib-jsn'. Did you mean 'zlib-json'. Choose msg"):
        hutch.connect(config("zlib-jsn", EXAMPLE))
    with pytest.raises(hutch.ConfigError, match=r"the zlib-json codec has no option 'levl'.*'level'"):
        hutch.connect(config({"name": "zlib-json", "levl": 1}, EXAMPLE))
    with pytest.raises(hutch.ConfigError, match="from 0 to 9"):
        hutch.connect(config({"name": "zlib-json", "level": 10}, EXAMPLE))


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"import zlib\n": "import zlib, no_such_module\n"}, hutch.PluginLoadError, "no_such_module"),
        ({"hutch.Codec": "object"}, hutch.PluginLoadError, "not a codec: a codec is a subclass of hutch.Codec"),
        ({"def decode": "def decode_it"}, hutch.PluginLoadError, "lacks decode"),
        ({"0x80": "0x54"}, hutch.PluginLoadError, "0x54 is reserved"),
        ({"0x80": "0x92"}, hutch.PluginLoadError, "0x92 is reserved"),
        ({"Headers = 0x80": "Headers = 0x81"}, hutch.PluginLoadError, "must agree"),
        ({"Headers = 0x80": "Headers = 128"}, hutch.PluginLoadError, r"\[Codec\] Headers = '128': expected"),
        ({"self._level = level": "raise RuntimeError('no')"}, hutch.PluginLoadError, "RuntimeError: no"),
        ({"self._level = level": "raise ValueError('no')"}, hutch.ConfigError, "did not accept its options"),
    ],
)
def test_a_codec_that_cannot_be_used_says_why(
    tmp_path: Path, changes: dict[str, str], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        hutch.connect(config("zlib-json", copy_of(tmp_path, "copy", **changes)))


def test_two_codecs_of_one_header_or_one_name_are_a_conflict(tmp_path: Path) -> None:
    other = copy_of(tmp_path, "other", **{"zlib-json": "other"})
    for name in ("zlib-json", "other"):
        with pytest.raises(hutch.PluginConflictError, match="both write header byte 0x80"):
            hutch.connect(config(name, EXAMPLE, other))
    twin = copy_of(tmp_path, "twin")
    with pytest.raises(hutch.PluginConflictError, match="2 codecs are named 'zlib-json'"):
        hutch.connect(config("zlib-json", EXAMPLE, twin))


def test_an_entry_point_names_a_codec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site = tmp_path / "site"
    shutil.copytree(EXAMPLE, site / "hutch_zlib")
    metadata = site / "hutch_zlib-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: hutch-zlib\nVersion: 1.0\n")
    points = metadata / "entry_points.txt"
    points.write_text("[hutch.codecs]\nfolder = hutch_zlib\n")
    monkeypatch.syspath_prepend(str(site))
    entry_points._known.clear()
    with hutch.connect(config("zlib-json")) as store, store.open("core") as core:
        core["k"] = VALUE
        assert core["k"] == VALUE
    points.write_text("[hutch.codecs]\nzipped = hutch_zlib.zlib_json:ZlibJsonCodec\n")
    entry_points._known.clear()
    [found] = hutch.find_plugins().codecs
    assert (found.name, found.kind, found.headers) == ("zipped", "codec", b"")
    with hutch.connect(config("zipped")) as store, store.open("core") as core:
        core["k"] = VALUE
    entry_points._known.clear()
    script = (
        "import sys, hutch\n"
        "with hutch.connect('memory://x') as store, store.open('core') as core: core['k'] = 1\n"
        "assert 'importlib.metadata' not in sys.modules, 'imported'\n"
    )
    subprocess.run([sys.executable, "-S", "-c", f"import sys; sys.path += {sys.path!r}\n{script}"], check=True)


def test_the_codec_of_the_page_works_and_its_test_passes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = run_page(EXAMPLE.parents[1] / "docs" / "howto" / "codec.md", tmp_path, monkeypatch)
    assert page["store"].config.codec.name == "text"
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "codecs"))
    program = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tmp_path / "test_text.py")]
    done = subprocess.run(program, check=False, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_listing_codecs_runs_none_of_their_code(tmp_path: Path) -> None:
    copy = copy_of(tmp_path, "copy", **{"import zlib\n": "raise SystemExit\n"})
    found = hutch.find_plugins(hutch.StoreConfig("memory", extra_plugin_dirs=(copy,)))
    [info] = found.codecs
    assert (info.name, info.kind, info.headers) == ("zlib-json", "codec", b"\x80")
    assert "zlib-json" not in [plugin.name for plugin in found.plugins]


def test_the_command_lists_codecs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HUTCH_PLUGIN_PATH", str(EXAMPLE))
    program = [sys.executable, "-m", "hutch", "plugins"]
    listed = subprocess.run(program, check=True, capture_output=True, text=True).stdout
    assert "zlib-json" in listed


def test_an_empty_body_is_refused_when_it_is_written() -> None:
    class Empty(hutch.Codec):
        headers = b"\x80"
        name = "empty"

        def encode(self, value: object, /) -> tuple[int, bytes]:
            return 0x80, b""

        def decode(self, header: int, body: bytes, /) -> object:
            return None

    with pytest.raises(hutch.PluginError, match="the empty codec wrote an empty body"):
        FrameCodec(Empty(), {}).encode(None)
