"""The test module and pytest plugin of `run_conformance`: the suite as a test class, and a report of each promise."""

from __future__ import annotations

import faulthandler
import json
import os
import pickle
import shutil
import uuid
from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any, Self

import pytest

import hutch

from .conformance.interrupts import SIGNALS
from .suite import StorageSuite

#: The placeholder in a config for a new name per test.
FRESH = "{fresh}"
# Longer than any promise takes on a slow machine, including waits for hanging child processes and threads.
_LONGEST_PROMISE_S = 180.0 + SIGNALS
_MAX_DETAIL_LINES = 40


@dataclass(frozen=True)
class Job:
    """One run: which plugin to test, and how."""

    name: str
    config: Any
    scratch: str
    skip: tuple[str, ...]

    def without(self, *names: str) -> Self:
        """Return a copy that also skips the tests called `names`."""
        return replace(self, skip=(*self.skip, *names))


class TestPromises(StorageSuite):
    @pytest.fixture
    def config(self, request: pytest.FixtureRequest) -> Iterator[Any]:
        job: Job = request.config.stash[_job]
        name = f"check{uuid.uuid4().hex}"
        config = with_name(job.config, name)
        if config != job.config:
            yield config
            shutil.rmtree(Path(job.scratch, name), ignore_errors=True)
            return
        yield config
        with hutch.connect(config) as store:
            for namespace in store.namespaces():
                store.drop(namespace)


def with_name(config: Any, name: str) -> Any:
    """Return `config` with `name` in place of `FRESH` in all its strings."""
    if isinstance(config, str):
        return config.replace(FRESH, name)
    if isinstance(config, Mapping):
        return {key: with_name(value, name) for key, value in config.items()}
    if isinstance(config, list | tuple):
        return [with_name(value, name) for value in config]
    return config


# --- the pytest plugin ---

_job: pytest.StashKey[Job] = pytest.StashKey()
_answers: pytest.StashKey[IO[bytes]] = pytest.StashKey()


@dataclass
class _Promise:
    """The outcomes of one test function with all its parameters."""

    name: str
    promise: str
    outcomes: list[tuple[str, str]]


_current: pytest.StashKey[_Promise] = pytest.StashKey()


def pytest_configure(config: pytest.Config) -> None:
    """Read the job from stdin, and reserve stdout for the answers: what an engine prints goes to stderr."""
    config.stash[_answers] = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    with os.fdopen(os.dup(0), "rb") as orders:
        config.stash[_job] = pickle.load(orders)
    faulthandler.enable(2)


def pytest_sessionstart(session: pytest.Session) -> None:
    """End the session if the config leads to another plugin or to existing data."""
    job = session.config.stash[_job]
    try:
        _refuse_other_plugin_or_data(job)
    except hutch.StoreError as error:
        _send(session.config, error=_public_class(error), message=str(error))
        pytest.exit("refused", returncode=2)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Remove the tests to skip, which include those that ran before a previous process died."""
    items[:] = [item for item in items if _function(item) not in config.stash[_job].skip]


def pytest_runtest_logstart(nodeid: str) -> None:
    """Start the time limit: a test that exceeds it ends the process and prints its stack."""
    faulthandler.dump_traceback_later(_LONGEST_PROMISE_S, exit=True, file=2)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> None:
    """Report the previous test function as complete when a test of a new one begins."""
    stash = item.config.stash
    if _current not in stash or stash[_current].name != _function(item):
        _finish(item.config)
        doc = (getattr(getattr(item, "function", None), "__doc__", None) or _function(item)).strip()
        stash[_current] = _Promise(_function(item), doc.splitlines()[0], [])
        _send(item.config, name=_function(item), promise=stash[_current].promise, outcome="begun")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Record the outcome of each phase."""
    report = yield
    if report.when == "call" or report.outcome != "passed":
        item.config.stash[_current].outcomes.append((report.outcome, _detail(report)))
    return report


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Report the last test function as complete."""
    faulthandler.cancel_dump_traceback_later()
    _finish(session.config)


def _finish(config: pytest.Config) -> None:
    done = config.stash.get(_current, None)
    if done is None:
        return
    del config.stash[_current]
    for outcome in ("failed", "passed", "skipped"):
        details = [detail for ended, detail in done.outcomes if ended == outcome]
        if details:
            _send(config, name=done.name, promise=done.promise, outcome=outcome, detail=details[0])
            return


def _detail(report: pytest.TestReport) -> str:
    if report.outcome == "skipped":
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longreprtext
        return reason.removeprefix("Skipped: ")
    if report.outcome == "passed":
        return ""
    lines = [*report.longreprtext.splitlines(), *report.capstdout.splitlines()[-5:]]
    return "\n".join(lines[-_MAX_DETAIL_LINES:])


def _send(config: pytest.Config, **message: str) -> None:
    answers = config.stash[_answers]
    answers.write(json.dumps(message).encode() + b"\n")
    answers.flush()


def _function(item: pytest.Item) -> str:
    return str(getattr(item, "originalname", item.name))


def _refuse_other_plugin_or_data(job: Job) -> None:
    config = with_name(job.config, f"check{uuid.uuid4().hex}")
    with hutch.connect(config) as store:
        if store.name.casefold() != job.name.casefold():
            raise hutch.ConfigError(
                f"the config selects the {store.name} engine, not {job.name}, which is to be checked"
            )
        if config != job.config:
            return
        try:
            names = store.namespaces()
        except hutch.CapabilityError as error:
            raise hutch.ConfigError(
                f"{error}, so what the tests leave cannot be removed; write {FRESH} into the config where a new name "
                "for each test leads to a new storage"
            ) from error
    if names:
        raise hutch.ConfigError(
            f"the config leads to a storage that holds data, in {len(names)} namespaces; the tests would destroy it. "
            f"Choose an empty one, or write {FRESH} into the config for a new name for each test"
        )


def _public_class(error: hutch.StoreError) -> str:
    names = (cls.__name__ for cls in type(error).__mro__)
    return next(name for name in names if name in hutch.__all__)
