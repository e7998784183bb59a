"""Run the conformance suite on any plugin, without a test file; `hutch test-plugin` prints one result per promise.

pytest runs in a separate process: no config, plugin or warning filter of the caller reaches it, and an engine that
hangs or crashes the interpreter fails one promise, not the run.
"""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import tempfile
from collections.abc import Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal

import hutch

from ..discovery.load import load_factory
from .conformance.child import same_imports
from .session import FRESH, Job

# The run ends after this many promises that hang or kill the process.
_MAX_DEATHS = 3
# Exit codes of pytest: all passed, some failed, no tests left.
_ENDED = (0, 1, 5)
_INI = "[pytest]\npython_classes = TestPromises\npython_functions = test_*\nverbosity_assertions = 2\n"


@dataclass(frozen=True, slots=True)
class PromiseResult:
    """The result of one promise."""

    #: The promise in one sentence.
    promise: str
    outcome: Literal["passed", "failed", "skipped"]
    #: Why it was skipped or how it failed; may have several lines.
    detail: str = ""


def run_conformance(
    target: str, config: object | None = None, *, skip: Iterable[str] = ()
) -> Generator[PromiseResult, None, None]:
    """Test a plugin against every promise and yield each result as soon as it is known.

    `target` is the plugin's name, its ``.plug`` file, or the folder of that file, which must have no other. `config`
    is any form that `hutch.connect` takes. In a URL or mapping, ``{fresh}`` stands for a new name per test:
    ``redis://localhost/0?prefix={fresh}``. A config without it must lead to an empty storage; data that the tests
    leave there is dropped. Without `config` the plugin gets a temporary folder as the option that takes a URL's path.
    Tests named in `skip` are left out, without a result.

    Raises, before the first result, PluginNotFoundError, PluginConflictError, PluginLoadError, and ConfigError if the
    config selects another plugin, leads to data, or is missing but needed.
    """
    info, folder = _find(target)
    environ = same_imports()
    if folder is not None:
        already = environ.get("HUTCH_PLUGIN_PATH")
        environ["HUTCH_PLUGIN_PATH"] = os.pathsep.join([str(folder), *([already] if already else [])])
    with tempfile.TemporaryDirectory(prefix="hutch-check-", ignore_cleanup_errors=True) as scratch:
        # The caller's own pytest settings must not affect this run.
        environ = {name: value for name, value in environ.items() if not name.startswith("PYTEST_")}
        environ |= {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "HYPOTHESIS_STORAGE_DIRECTORY": scratch}
        job = Job(info.name, _own_config(info, scratch) if config is None else config, scratch, tuple(skip))
        Path(scratch, "pytest.ini").write_text(_INI)
        yield from _results(job, environ)


def _find(target: str) -> tuple[Any, Path | None]:
    """Return the PluginInfo of `target`, and its folder if `target` is a path. Raises as `run_conformance` does."""
    path = Path(target)
    if path.suffix != ".plug" and not path.is_dir():
        return hutch.find_plugins().find(target), None
    path = path.absolute()
    folder = path if path.is_dir() else path.parent
    plugins = hutch.find_plugins(hutch.StoreConfig("none", extra_plugin_dirs=(folder,)))
    everything: list[Any] = [*plugins.plugins, *plugins.broken]
    wanted = [item for item in everything if path in (item.path, item.path.parent)]
    if not wanted:
        raise hutch.PluginNotFoundError(
            f"{path}: {'no descriptor (.plug) lies there' if path.is_dir() else 'no such file'}"
        )
    if len(wanted) > 1:
        raise hutch.PluginNotFoundError(
            f"{path} holds {len(wanted)} descriptors; name one: {', '.join(p.path.name for p in wanted)}"
        )
    if reason := getattr(wanted[0], "reason", None):
        raise hutch.PluginLoadError(f"{wanted[0].path}: {reason}", path=str(wanted[0].path))
    return plugins.find(str(wanted[0].name)), folder


def _own_config(info: Any, scratch: str) -> dict[str, object]:
    """Return a config for an engine that needs at most a path. Raises ConfigError if it needs anything else."""
    declared: Mapping[str, hutch.Option] | None = getattr(load_factory(info), "OPTIONS", None)
    place = str(Path(scratch, FRESH))
    if declared is None:
        # Options are not validated then, so all usual names may be given.
        options = dict.fromkeys(("path", "basedir", info.url_option), place)
    else:
        options = {name: place for name, option in declared.items() if option.kind is Path and option.required}
        option = declared.get(info.url_option)
        if option is not None and not info.whole_url:
            options[info.url_option] = place if option.kind is Path else FRESH
        missing = [name for name, option in declared.items() if option.required and name not in options]
        if missing or info.whole_url:
            wanted = f"the option {missing[0]!r}" if missing else f"a URL, such as {info.schemes[0]}://...{FRESH}"
            raise hutch.ConfigError(
                f"the {info.name} engine cannot be checked without a config: give {wanted}, where {FRESH} stands for "
                "a new name for each test"
            )
    return {"STORAGE": info.name, "STORAGE_CONFIG": options}


def _results(job: Job, environ: dict[str, str]) -> Iterator[PromiseResult]:
    for _ in range(_MAX_DEATHS):
        with tempfile.TemporaryFile() as stderr, _start(job, environ, stderr) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            begun: dict[str, str] = {}
            done: list[str] = []
            try:
                with process.stdin:
                    pickle.dump(job, process.stdin)
                for line in process.stdout:
                    message = json.loads(line)
                    if "error" in message:
                        raise getattr(hutch, message["error"])(message["message"])
                    if message["outcome"] == "begun":
                        begun = message
                    else:
                        done.append(message["name"])
                        begun = {}
                        yield PromiseResult(message["promise"], message["outcome"], message["detail"])
                code = process.wait()
            finally:
                process.kill()
            stderr.seek(0)
            printed = stderr.read().decode(errors="replace")[-3000:].strip()
        if not begun:
            if code not in _ENDED:
                raise hutch.PluginError(f"the test run of {job.name!r} stopped (exit code {code}): {printed}")
            return
        yield PromiseResult(begun["promise"], "failed", f"the process hung or died (exit code {code}): {printed}")
        job = job.without(*done, begun["name"])
    yield PromiseResult("The check comes to its end.", "failed", f"given up after {_MAX_DEATHS} promises hung or died")


def _start(job: Job, environ: dict[str, str], stderr: IO[bytes]) -> subprocess.Popen[bytes]:
    options = ["-p", "hutch.testing.session", "--pyargs", "hutch.testing.session", "-qq", "--tb=short", "--capture=sys"]
    isolation = ["--noconftest", "-p", "no:cacheprovider", "-p", "no:faulthandler", "--rootdir", job.scratch]
    return subprocess.Popen(
        [sys.executable, "-m", "pytest", *options, *isolation, "-c", str(Path(job.scratch, "pytest.ini"))],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=stderr,
        env=environ,
    )
