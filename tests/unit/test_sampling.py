"""What is noted on the way to the limit."""

import os
import subprocess

from sandrun.model import MIB, Process
from sandrun.sampling import Sampler


def test_a_look_into_the_kill_changes_nothing() -> None:
    sampler = Sampler(96 * MIB)
    for held in (50, 90, 25):
        sampler.note(held * MIB, {"anon": held})
    assert sampler.kinds == {"anon": 90}


def test_cache_is_no_part_of_the_peak() -> None:
    sampler = Sampler(96 * MIB)
    assert sampler.measure(90 * MIB, 80 * MIB) == 10 * MIB
    assert sampler.measure(40 * MIB, 10 * MIB) == 30 * MIB
    assert sampler.measure(1 * MIB, 2 * MIB) == 0  # read while it changes
    assert sampler.peak_below(96 * MIB) == 30 * MIB
    # More than all the cache that there was can explain: between two samples.
    assert sampler.peak_below(200 * MIB) == 120 * MIB


def seen(sampler: Sampler, held: int, sizes: "dict[int, int]", struck: bool = False) -> "list[int]":
    """Who is named after a look that sees processes of those sizes."""
    found = sampler.look(held * MIB, lambda: [os.getpid()])
    if found:
        found = [Process(pid, size * MIB, "") for pid, size in sizes.items()]
    sampler.keep(found, struck)
    return [process.pid for process in sampler.top()]


def test_who_has_ended_is_named_no_more() -> None:
    sampler = Sampler(100 * MIB)
    assert seen(sampler, 60, {1: 50, 2: 10}) == [1, 2]
    assert seen(sampler, 61, {3: 61}) == [1, 2]  # nothing changed: no look
    assert seen(sampler, 55, {2: 10, 3: 45}) == [3, 2]
    assert seen(sampler, 40, {}) == []
    assert seen(sampler, 55, {4: 55}) == [4]


def test_whom_a_limit_killed_is_named_still() -> None:
    sampler = Sampler(100 * MIB)
    assert seen(sampler, 90, {1: 80, 2: 10}) == [1, 2]
    assert seen(sampler, 60, {2: 15, 3: 45}, struck=True) == [1, 3, 2]
    assert seen(sampler, 10, {}, struck=True) == [1, 3, 2]


def test_a_crowd_is_not_looked_at() -> None:
    sampler = Sampler(100 * MIB)
    assert seen(sampler, 60, {1: 50}) == [1]
    assert sampler.look(80 * MIB, list) is None


def test_the_gone_are_no_processes() -> None:
    child = subprocess.Popen(["true"])
    child.wait()
    sampler = Sampler(100 * MIB)
    (one,) = sampler.look(80 * MIB, lambda: [child.pid, os.getpid()]) or []
    assert one.pid == os.getpid()
