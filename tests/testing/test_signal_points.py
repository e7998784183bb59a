"""Test `hutch.testing.signal_points`: it visits every point where a handler may run, and no other."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress

import pytest

import tests.testing.signal_points_code as code
from hutch.testing.signal_points import Interrupt, Visit, count_points, places, points, raise_interrupt, run_at


@pytest.mark.parametrize(
    ("work", "kinds"),
    [
        (lambda: code.call_c([]), ["call", "c_return", "c_return"]),
        (lambda: code.call_python(), ["call", "call"]),  # noqa: PLW0108 - this file has no points
        (lambda: code.with_c_lock(threading.Lock()), ["call", "c_return", "c_return"]),
        (lambda: code.acquire_before_try(threading.Lock()), ["call", "c_return", "c_return", "c_return"]),
    ],
    ids=["a C function", "a Python function", "with on a C lock", "acquire before try"],
)
def test_a_point_is_the_start_of_a_function_or_the_return_of_a_c_function(
    work: Callable[[], object], kinds: list[str]
) -> None:
    found = []
    for point in points(work, loops=False):
        visit = Visit(point, raise_interrupt)
        with pytest.raises(Interrupt):
            visit.run(work, loops=False)
        found.append(str(visit.where).rpartition("(")[2].rstrip(")"))
    assert found == kinds


def test_a_loop_has_a_point_for_each_jump_back(unmeasured: None) -> None:
    assert count_points(lambda: code.loop(5)) == count_points(lambda: code.loop(0)) + 5


def test_a_lock_that_is_acquired_before_the_try_is_left_locked_at_one_point() -> None:
    left_locked = []
    for point in points(lambda: code.acquire_before_try(threading.Lock()), loops=False):
        for function in (code.acquire_before_try, code.with_c_lock):
            lock = threading.Lock()
            with suppress(Interrupt):
                run_at(point, raise_interrupt, lambda: function(lock), loops=False)  # noqa: B023 - called at once
            if lock.locked():
                left_locked.append((function.__name__, point))
    assert left_locked == [("acquire_before_try", 2)]


def test_an_action_may_do_anything_and_runs_once() -> None:
    called = []
    assert run_at(2, lambda: called.append(code.call_c([])), lambda: code.call_c([7])) == 2
    assert called == [1]


def test_of_many_points_a_random_choice_is_taken_that_the_seed_repeats() -> None:
    chosen = points(lambda: code.many_calls(100), 10, seed=3, loops=False)
    assert len(set(chosen)) == 10
    assert chosen == points(lambda: code.many_calls(100), 10, seed=3, loops=False) == sorted(chosen)
    assert chosen != points(lambda: code.many_calls(100), 10, seed=4, loops=False)


def test_a_place_is_visited_the_first_time_that_it_is_passed(unmeasured: None) -> None:
    found = places(lambda: code.many_calls(100), code.__file__)
    assert 0 < len(found) < 10
    for place in found:
        visit = Visit(place, raise_interrupt)
        with suppress(Interrupt):
            visit.run(lambda: code.many_calls(100))
        assert visit.where is not None
        assert visit.passed < 10
