"""The conformance kit notices an engine that signal handlers, finalizers or other threads of its process can break."""

from __future__ import annotations

import signal

import pytest

from tests.testing.test_conformance_kit import the_only_test

pytestmark = [
    pytest.mark.usefixtures("unmeasured"),
    pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="this system has no interval timers"),
]

FAULTS_INSIDE = {
    "LeaksALockWhenInterrupted": "A handler may raise at any point of a verb",
    "SwallowsWhatAHandlerRaises": "An exception of a signal handler leaves each verb",
    "ChangesWhatAHandlerRaises": "An exception of a signal handler leaves each verb",
    "CatchesMoreThanOneCall": "A handler may raise at any point of a verb",
    "ReadsASecondTime": "A handler may raise at any point of a verb",
    "StarvesAWriter": "While one thread writes in a tight loop",
    "WaitsForItselfWhenNested": "A signal handler may set",
    "LosesANestedWrite": "A signal handler may set",
    "DeadlocksInAFinalizer": "A finalizer, which the collector",
    "KeepsAReservation": "A handler may raise at any point of a verb",
    "LeavesFilesOpen": "A handler may raise at any point of a verb",
    "KeepsFilesInTracebacks": "A handler may raise at any point of a verb",
}


@pytest.mark.parametrize("fault", FAULTS_INSIDE)
def test_an_engine_that_breaks_within_one_process_is_caught(fault: str) -> None:
    result = the_only_test(fault, FAULTS_INSIDE[fault])
    assert (result.outcome, bool(result.detail)) == ("failed", True)


@pytest.mark.parametrize("message", sorted({*FAULTS_INSIDE.values()}))
def test_the_same_engine_without_the_fault_passes(message: str) -> None:
    result = the_only_test("Sound", message)
    assert (result.outcome, result.detail) == ("passed", "")
