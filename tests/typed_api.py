"""A program that uses the Python API: checked by mypy (`tests/setup lint`), never run.

Each `type: ignore` marks a mistake that has to be found: mypy complains where there is none.
"""

import subprocess
from pathlib import Path
from typing import assert_type

import sandrun


def right(project: Path) -> None:
    outcome = sandrun.run(["make", "test"], memory="2G", timeout=600, cwd=project)
    assert_type(outcome, sandrun.Outcome)
    assert_type(outcome.peak, int | None)
    assert_type(outcome.peak_with_cache, int | None)
    assert_type(outcome.stdout, str | None)
    usual: sandrun.Options = {"memory": 2 << 30, "env": {"A": "b"}, "stdout": subprocess.PIPE}
    started = sandrun.start(("make", "test"), **usual)
    assert_type(started, sandrun.Run)
    started.cancel()
    try:
        assert_type(started.wait(timeout=1.5), sandrun.Outcome)
    except sandrun.GaveUp as gave_up:
        assert_type(gave_up.hint, str)


async def asynchronous() -> None:
    assert_type(await sandrun.run_async(["true"], no_wait=True), sandrun.Outcome)


def wrong() -> None:
    sandrun.run(["true"], memroy="2G")  # type: ignore[call-arg]
    sandrun.run(["true"], memory=[1])  # type: ignore[arg-type]
    sandrun.run(["true"], cwd=1)  # type: ignore[arg-type]
    sandrun.run(["true"], leftovers="keep")  # type: ignore[arg-type]
    sandrun.run(["true"], backend="cgroup3")  # type: ignore[arg-type]
    sandrun.run([1])  # type: ignore[list-item]
    sandrun.start(["true"]).wait(timeout="1")  # type: ignore[arg-type]
    sandrun.run(["true"]).code = 1  # type: ignore[misc]
