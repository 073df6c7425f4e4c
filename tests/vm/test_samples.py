"""The samples of a run on a real cgroup v2, with systemd: pressure, the kernel's counters, escapes.

Runs in the laboratory: vagrant/lab run [--user] -- pytest -m vm tests/vm/test_samples.py
"""

import os
import sys
from collections.abc import Callable

import pytest

from sandrun.insight import samples
from tests.harness import Box

LAB = os.environ.get("SANDRUN_LAB", "")
MIB = 1 << 20

pytestmark = [pytest.mark.vm, pytest.mark.skipif(not LAB, reason="runs inside vagrant/lab")]
v2 = pytest.mark.skipif(LAB != "v2", reason="about cgroup v2")
MANAGER = [] if os.geteuid() == 0 else ["--user"]
SCOPE = ["systemd-run", *MANAGER, "-q", "--scope"]
SPIKE = """
import time
time.sleep(1.5)
spike = bytearray(b"x") * (50 << 20)
del spike
time.sleep(1.5)
"""


def only(box: Box, monkeypatch: pytest.MonkeyPatch) -> samples.Samples:
    """The samples of the only run."""
    monkeypatch.setenv("XDG_STATE_HOME", box.env["XDG_STATE_HOME"])
    [record] = box.records()
    found = samples.read(str(record["id"]))
    assert found
    return found


@v2
def test_the_curve(make_box: "Callable[[str], Box]", monkeypatch: pytest.MonkeyPatch) -> None:
    box = make_box("auto")
    done = box.run("-m", "200M", "--require", "kernel", "--", sys.executable, "-c", SPIKE)
    assert done.returncode == 0, done.stderr
    found, [record] = only(box, monkeypatch), box.records()
    assert found.backend in ("systemd", "cgroup2")
    [most] = [point for point in found.points if point.memory == record["peak"]]
    assert most.memory > 50 * MIB
    assert most.t > 1.4
    assert all(point.processes for point in found.points if point.t < 2.5)
    assert (found.points[-1].stalled is None) == (record["stalled"] is None)
    assert abs((found.points[-1].cpu or 0) - float(str(record["cpu"]))) < 0.01
    assert int(str(record["processes"])) >= 1


@v2
def test_the_limit(make_box: "Callable[[str], Box]", monkeypatch: pytest.MonkeyPatch) -> None:
    box = make_box("auto")
    leak = "held = []\nwhile True: held.append(bytearray(b'x') * (1 << 20))"
    done = box.run("-m", "64M", "--require", "kernel", "--", sys.executable, "-c", leak)
    assert done.returncode == 137, done.stderr
    found, [record] = only(box, monkeypatch), box.records()
    [event] = [event for event in found.events if event.kind == "limit"]
    assert event.details["whose"] == "own"
    assert event.details["counters"]["oom_kill"] >= 1
    assert {"low", "high", "max", "oom"} <= event.details["counters"].keys()
    assert max(point.memory for point in found.points) == record["peak"]


@v2
def test_an_escape(make_box: "Callable[[str], Box]", monkeypatch: pytest.MonkeyPatch) -> None:
    box = make_box("auto")
    script = '"$@" & sleep 8'
    done = box.run("--", "sh", "-c", script, "sh", *SCOPE, "sleep", "1000", env=dict(os.environ))
    assert done.returncode == 0, done.stderr
    [event] = [event for event in only(box, monkeypatch).events if event.kind == "escaped"]
    assert event.details["command"].endswith("sleep 1000")
    assert ".scope" in event.details["group"]
    assert event.t < 8
