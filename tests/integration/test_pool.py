"""The memory budget that all projects share."""

import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.harness import Box, launcher, wait_for, without_note


@pytest.fixture
def pool(make_box: "Callable[[str], Box]") -> Box:
    """A box whose runs are contained and share 300 MiB, 100 each."""
    box = make_box("auto")
    box.env |= {"SANDRUN_POOL": "300M", "SANDRUN_MEMORY": "100M"}
    return box


def project(box: Box, name: str) -> Path:
    path = box.root / f"project-{name}"
    path.mkdir()
    return path


def hold(box: Box, name: str, *options: str) -> "subprocess.Popen[str]":
    process = box.start(*options, "--", *box.job(name), cwd=project(box, name))
    box.begun(name)
    return process


def wait(box: Box, name: str, *options: str) -> "subprocess.Popen[str]":
    process = box.start(*options, "--", *box.job(name), cwd=project(box, name))
    wait_for(lambda: "waiting for memory" in box.heard(process), 20, f"{name} waits for the pool")
    return process


def test_a_run_whose_limit_does_not_fit_waits_and_reports_why(pool: Box) -> None:
    for name in ("one", "two"):
        hold(pool, name, "--memory", "150M")
    third = pool.start("--", *pool.job("three"), cwd=project(pool, "three"))
    wait_for(lambda: "waiting for memory: 100 MiB of the pool's 300 MiB" in pool.heard(third), 20)
    assert "150 MiB by sh -c" in pool.heard(third)
    pool.let("one")
    pool.let("three")
    assert pool.finish(third).returncode == 0
    assert ("end", "two") not in pool.events()


def test_first_in_first_out_across_projects(pool: Box) -> None:
    """A small run does not overtake a large one that arrived before it."""
    hold(pool, "one")
    hold(pool, "two")
    wait(pool, "large", "--memory", "250M")
    wait(pool, "small", "--memory", "100M")  # does not fit beside the large one
    pool.let("one")
    pool.let("two")
    pool.let("large")
    pool.let("small")
    begun = [name for what, name in pool.events() if what == "begin"]
    assert begun == ["one", "two", "large", "small"]


def test_a_killed_run_ends_its_reservation(pool: Box) -> None:
    first = pool.start("--memory", "300M", "--", *pool.job("one"), cwd=project(pool, "one"))
    pool.begun("one")
    wait(pool, "two")
    first.send_signal(signal.SIGKILL)
    pool.let("two")


def test_a_limit_above_the_pool_takes_it_whole_and_warns(pool: Box) -> None:
    done = pool.run("--memory", "400M", "--", "true")
    assert done.returncode == 0
    assert "takes the whole pool" in done.stderr
    assert pool.records()[-1]["limit"] == 400 << 20


def test_the_default_limit_is_lowered_to_a_small_pool(pool: Box) -> None:
    del pool.env["SANDRUN_MEMORY"]
    done = pool.run("--", "true")
    assert (done.returncode, without_note(done.stderr)) == (0, "")
    assert pool.records()[-1]["limit"] == 300 << 20
    assert "memory limit 300 MiB instead of 2.0 GiB" in pool.run("-v", "--", "true").stderr


def test_pool_off_shares_nothing(pool: Box) -> None:
    hold(pool, "one", "--memory", "300M")
    done = pool.run("--pool", "off", "--", "true", cwd=project(pool, "two"))
    assert done.returncode == 0


def test_nested_runs_are_charged_to_the_outer_one(pool: Box) -> None:
    inner = " ".join(launcher())
    done = pool.run("--memory", "300M", "--", "sh", "-c", f"{inner} --memory 200M -- echo hi")
    assert (done.returncode, done.stdout) == (0, "hi\n")


def test_no_wait_and_wait_timeout_hold_for_the_pool_too(pool: Box) -> None:
    hold(pool, "one", "--memory", "300M")
    for option in (["--no-wait"], ["--wait-timeout", "0.2"]):
        where = pool.root / "second"
        where.mkdir(exist_ok=True)
        assert pool.run(*option, "--", "true", cwd=where).returncode == 75
    pool.let("one")


def test_a_stopped_waiter_for_memory_does_not_stall_the_next(pool: Box) -> None:
    hold(pool, "one", "--memory", "300M")
    stopped = wait(pool, "two", "--memory", "300M")
    wait(pool, "three", "--memory", "300M")
    stopped.send_signal(signal.SIGSTOP)
    pool.let("one")
    pool.let("three", 40)


def test_a_circle_through_the_pool_does_not_hang(pool: Box) -> None:
    """A has the memory and waits inside for queue B, whose head waits for memory."""
    inner = " ".join(launcher())
    os.mkfifo(pool.root / "gate-a")
    script = f"echo begin a $$ >>{pool.log}; read _ <{pool.root}/gate-a; {inner} --queue b -- true"
    outer = pool.start("--memory", "300M", "--", "sh", "-c", script)
    pool.begun("a")
    head = pool.start("--queue", "b", "--", *pool.job("head"))
    wait_for(lambda: "waiting for memory" in pool.heard(head), 20)
    pool.let("a")
    done = pool.finish(outer)
    assert done.returncode == 125
    assert "deadlock:" in done.stderr
    pool.let("head")
    assert pool.finish(head).returncode == 0


def test_removing_the_pool_under_waiters_loses_nobody(pool: Box) -> None:
    hold(pool, "one", "--memory", "300M")
    waiter = wait(pool, "two", "--memory", "200M")
    (state,) = pool.state.glob("sandrun-pool-*")
    for file in state.iterdir():
        file.unlink()
    state.rmdir()
    pool.let("one")
    pool.let("two")
    assert pool.finish(waiter).returncode == 0
