"""stress-ng's workloads under 200 MiB on each backend: contained, told of, nothing left, nor IPC.

SANDRUN_TEST_FULL=1 gives each ten seconds and more workers.
"""

import os
import shutil
from collections.abc import Callable

import pytest

from tests.harness import Box, launcher, wait_for

FULL = bool(os.environ.get("SANDRUN_TEST_FULL"))
SECONDS, WORKERS = ("10", "4") if FULL else ("1", "1")
# What takes more memory than there is: ended at the limit. The rest ends by itself.
HUNGRY: dict[str, list[str]] = {
    "bigheap": ["--bigheap-growth", str(4 << 20)],  # stress-ng 0.19 takes no suffix here
    "brk": [],
    "mmap": ["--mmap-bytes", "600M"],
    "shm": ["--shm-bytes", "600M", "--shm-objs", "4"],
    "shm-sysv": ["--shm-sysv-bytes", "300M", "--shm-sysv-segs", "8"],
    "memfd": ["--memfd-bytes", "900M", "--memfd-fds", "8"],
    "vm": ["--vm-bytes", "600M", "--vm-keep"],
}
ENDED = ("bigheap", "vm")  # by the limit, however busy the machine is
MODEST: dict[str, list[str]] = {
    "fork": ["--fork-max", "8"],
    "vfork": [],
    "clone": ["--clone-max", "64"],  # many of them in one address space (CLONE_VM)
    "daemon": [],
    "zombie": ["--zombie-max", "64"],
    "pthread": ["--pthread-max", "64"],
    "sigchld": [],
    "kill": [],
    "sem": [],
    "sem-sysv": [],
    "msg": [],
    "mq": [],
}
# IPC outlives every process, but not the namespace in which it was made: what is left can be
# counted there, and no other test's is among it.
APART = """
mkdir "$0/mq" && mount -t tmpfs tmpfs /dev/shm && mount -t mqueue mqueue "$0/mq" || exit 99
"$@"
status=$?
{ tail -qn +2 /proc/sysvipc/*; ls "$0/mq"; ls /dev/shm | grep -v ^sandrun-locks-; } >"$0/left"
exit $status
"""


@pytest.fixture(params=["rlimit", "auto"])
def place(make_box: "Callable[[str], Box]", request: pytest.FixtureRequest) -> Box:
    if not shutil.which("stress-ng"):
        pytest.skip("stress-ng is not installed")
    return make_box(request.param)


def stress(place: Box, name: str, options: "list[str]") -> int:
    words = ["--temp-path", str(place.project), f"--{name}", WORKERS, *options]
    words += ["--timeout", "20" if name in ENDED else SECONDS, "--oomable", "--quiet"]
    apart = ["unshare", "--ipc", "--mount", "sh", "-c", APART, str(place.root), *launcher()]
    # Files of POSIX shared memory that a killed program leaves may be anybody's.
    private = ["--private-ipc"] if name == "shm" and os.geteuid() == 0 else []
    done = place.run(
        "-m", "200M", "-t", "30", "--grace", "0.5", *private, "--",
        "stress-ng", *words, seconds=90,
        argv=apart if os.geteuid() == 0 else None,
    )  # fmt: skip
    if os.geteuid() == 0:
        assert (place.root / "left").read_text() == ""
    wait_for(lambda: not place.leftovers(), 2, f"nothing of {name} is left")
    record = place.last_record()
    assert record["exit"] == done.returncode
    if record["reason"] == "memory":
        assert done.returncode == 137
        assert "memory limit of 200 MiB reached" in done.stderr
        assert "pid" in done.stderr, "it is said who used the memory"
    else:
        assert record["reason"] in ("exit", "signal"), done.stderr
    assert place.run("-q", "--", "true").returncode == 0
    return done.returncode


@pytest.mark.parametrize("name", HUNGRY)
def test_a_hungry_workload_is_contained(place: Box, name: str) -> None:
    code = stress(place, name, HUNGRY[name])
    record = place.records()[-2]
    peak = record["peak"]
    assert isinstance(peak, int)
    # Allocating without writing (fallocate of a memfd) is several times faster than any leak.
    assert peak < (200 << 20) * (3 if record["backend"] == "rlimit" else 1) + 1
    if name in ENDED:
        assert code == 137


@pytest.mark.parametrize("name", MODEST)
def test_a_modest_workload_passes(place: Box, name: str) -> None:
    assert stress(place, name, MODEST[name]) == 0
