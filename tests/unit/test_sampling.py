"""What samples record on the way to the limit."""

import os
import subprocess

from sandrun.backends.sampler import Sampler
from sandrun.model import MIB, Process


def test_a_sample_during_a_kill_changes_no_kinds() -> None:
    sampler = Sampler(96 * MIB)
    for held in (50, 90, 25):
        sampler.note(held * MIB, {"anon": held})
    assert sampler.kinds == {"anon": 90}


def test_the_peak_excludes_cache() -> None:
    sampler = Sampler(96 * MIB)
    assert sampler.measure(90 * MIB, 80 * MIB) == 10 * MIB
    assert sampler.measure(40 * MIB, 10 * MIB) == 30 * MIB
    assert sampler.measure(1 * MIB, 2 * MIB) == 0  # read while it changes
    assert sampler.peak_working_set(96 * MIB) == 30 * MIB
    # Higher than the largest cache explains: a peak between two samples.
    assert sampler.peak_working_set(200 * MIB) == 120 * MIB
    assert sampler.peak_working_set(29 * MIB) == 29 * MIB, "a refused charge does not count"
    assert sampler.peak_working_set(96 * MIB + 4096, limit_hit=True) == 96 * MIB, (
        "nor does one of a dying process"
    )
    assert sampler.peak_working_set(90 * MIB, limit_hit=True) == 90 * MIB


def seen(sampler: Sampler, held: int, sizes: "dict[int, int]", hit: bool = False) -> "list[int]":
    """The processes named after a sample that finds processes of these sizes."""
    found = sampler.sample(held * MIB, lambda: [os.getpid()])
    if found:
        found = [Process(pid, size * MIB, "") for pid, size in sizes.items()]
    sampler.keep(found, hit)
    return [process.pid for process in sampler.top_consumers()]


GONE = [0, *range(1 << 22, (1 << 22) + 4)]
"""Above PID_MAX_LIMIT (<linux/threads.h>): no process has such a number."""


def test_an_exited_process_is_no_longer_named() -> None:
    sampler = Sampler(100 * MIB)
    assert seen(sampler, 60, {GONE[1]: 50, GONE[2]: 10}) == [GONE[1], GONE[2]]
    assert seen(sampler, 61, {GONE[3]: 61}) == [GONE[1], GONE[2]]  # hardly changed: not listed
    assert seen(sampler, 55, {GONE[2]: 10, GONE[3]: 45}) == [GONE[3], GONE[2]]
    assert seen(sampler, 40, {}) == []
    assert seen(sampler, 55, {GONE[4]: 55}) == [GONE[4]]


def test_a_live_process_that_freed_its_memory_is_named_until_another_grows() -> None:
    """It may allocate as much again between two samples."""
    sampler = Sampler(100 * MIB)
    seen(sampler, 60, {os.getpid(): 50, GONE[1]: 10})
    assert seen(sampler, 40, {}) == [os.getpid()]
    assert seen(sampler, 30, {}, hit=True) == [os.getpid()]
    assert seen(sampler, 70, {GONE[2]: 70}) == [GONE[2]]


def test_a_process_that_has_freed_its_memory_is_not_named() -> None:
    sampler = Sampler(100 * MIB)
    assert seen(sampler, 90, {1: 80, 2: 0}) == [1]
    assert seen(sampler, 60, {2: 0}) == [2], "rather than no process"


def test_a_process_killed_at_the_limit_is_still_named() -> None:
    sampler = Sampler(100 * MIB)
    assert seen(sampler, 90, {1: 80, 2: 10}) == [1, 2]
    assert seen(sampler, 60, {2: 15, 3: 45}, hit=True) == [1, 3, 2]
    assert seen(sampler, 10, {}, hit=True) == [1, 3, 2]


def test_too_many_processes_are_not_examined() -> None:
    sampler = Sampler(100 * MIB)
    assert seen(sampler, 60, {1: 50}) == [1]
    assert sampler.sample(80 * MIB, list) is None


def test_a_reaped_process_is_not_described() -> None:
    child = subprocess.Popen(["true"])
    child.wait()
    sampler = Sampler(100 * MIB)
    (one,) = sampler.sample(80 * MIB, lambda: [child.pid, os.getpid()]) or []
    assert one.pid == os.getpid()
