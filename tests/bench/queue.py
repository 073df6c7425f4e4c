"""The queue's numbers beside its peers': `python -m tests.bench.queue [OPTION...]`.

--quick: fewer waiters and rounds.
--many: also 1,000 waiters (7 GB of memory, some minutes).
--before PROGRAM: another build's `sandrun` as a contender, with the container and with none.
--realtime (root): a real-time priority for all contenders, on a machine that does other things
meanwhile: a waiter is many more instructions than flock(1), thus more often interrupted.

Prints ratios measured in one run, the contenders interleaved, so that a noisy machine hits all of
them. Peers that are not installed are left out and named: flock(1) (util-linux), nq, tsp (Debian's
task-spooler), sem (GNU parallel). Nothing here is a test.

- job to job: from the first act of a job that does nothing to the first of the next one, with 50
  and 200 waiters: what a user waits for. CPU: of all processes of a job, its client's start too.
  Registration: CPU time of the last client from its start until it waits.
- hand-off: from the last act of a job to the first of the next one, with 1, 50 and 500 waiters;
  the best tenth is what remains on a noisy machine when no other process used the processor.
- inversions: jobs that overtook one that was queued before.
- 200 queued `true`, from the first start to the last end.
- CPU of 100 waiters in 20 s (longer than they look around), by the scheduler's own count and by
  the ticks of /proc/PID/stat.
- memory (PSS) of a waiter and of a supervisor beside a bare `python3 -I -S` that sleeps.
"""

import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path

from tests.harness import Box, adopt_orphans, launcher, wait_for

# Records when it ran: `<name> <first act> <last act>` in nanoseconds of CLOCK_MONOTONIC. With a
# third argument it blocks in between until that FIFO is opened, or, if that is "-", does nothing.
JOB = r"""
#include <fcntl.h>
#include <stdio.h>
#include <time.h>
#include <unistd.h>
static long long now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}
int main(int argc, char **argv) {
    long long first = now();
    char line[128];
    struct timespec work = {0, 5000000};
    int log = open(argv[2], O_WRONLY | O_APPEND);
    if (argc > 3 && argv[3][0] != '-') {
        snprintf(line, sizeof line, "%s.begun", argv[3]);
        close(open(line, O_WRONLY | O_CREAT, 0600));
        close(open(argv[3], O_RDONLY));
    }
    if (argc < 4 || argv[3][0] != '-')
        nanosleep(&work, NULL); /* so that the end of the run before does not fall into ours */
    int n = snprintf(line, sizeof line, "%s %lld %lld\n", argv[1], first, now());
    return write(log, line, n) != n;
}
"""


OURS = ("sandrun", "none", "before", "before none")


def _before() -> str:
    """The other build's program; '' if none was given."""
    words = sys.argv
    return words[words.index("--before") + 1] if "--before" in words else ""


class Contender:
    """One way to queue jobs: how to start a client, and how to know that it has its place."""

    def __init__(self, name: str, box: Box, job: Path) -> None:
        self.name = name
        self.box = box
        self.job = job
        self.env = {
            **box.env,
            "NQDIR": str(box.root),
            "TS_SOCKET": f"{box.root}/ts",
            "NQDONEDIR": "",
        }
        self.clients: list[subprocess.Popen[bytes]] = []
        self.registration = float("nan")
        """Milliseconds of CPU time of the last client until it waited."""

    def argv(self) -> list[str]:
        lock = str(self.box.root / "lock")
        return {
            "sandrun": [*launcher(), "-q", "--"],
            "none": [*launcher(), "-q", "--backend", "none", "--"],
            "before": [_before(), "-q", "--"],
            "before none": [_before(), "-q", "--backend", "none", "--"],
            "flock": ["flock", lock],
            "nq": ["nq", "-q"],
            "tsp": ["tsp"],
            "sem": ["sem", "--fg", "--id", str(os.getpid()), "-j1"],
        }[self.name]

    def start(self, *command: "str | Path | int") -> None:
        client = subprocess.Popen(
            [*self.argv(), *map(str, command)],
            env=self.env,
            cwd=self.box.project,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        self.clients.append(client)

    def placed(self, count: int) -> bool:
        """Whether `count` clients are in the queue."""
        asleep = {
            **dict.fromkeys(OURS, ("poll_schedule_timeout", "do_poll", "do_sys_poll")),
            "flock": ("locks_lock_inode_wait", "flock_lock_inode_wait"),
        }.get(self.name)
        if asleep:  # the holder is the first, and waits otherwise
            return all(_sleeps_in(client, asleep) for client in self.clients[1:count])
        return True  # nq and tsp return when they are placed; sem never tells

    def finish(self) -> None:
        for client in self.clients:
            client.wait()
        self.clients.clear()

    def close(self) -> None:
        if self.name == "tsp":
            subprocess.run(["tsp", "-K"], env=self.env, check=False)
        self.box.close()


def _sleeps_in(client: "subprocess.Popen[bytes]", where: "tuple[str, ...]") -> bool:
    try:
        return Path(f"/proc/{client.pid}/wchan").read_text().startswith(where)
    except OSError:
        return False


def handoffs(contender: Contender, waiters: int) -> "tuple[list[float], int]":
    """The gaps in milliseconds between consecutive jobs, and how many were overtaken."""
    rows = drain(contender, waiters)
    gaps = [(after[1] - before[2]) / 1e6 for before, after in pairwise(rows)]
    inversions = sum(after[0] < before[0] for before, after in pairwise(rows))
    return gaps, inversions


def job_to_job(contender: Contender, waiters: int) -> "tuple[list[float], float]":
    """The milliseconds between the first acts of consecutive idle jobs, and CPU time per job."""
    before = os.times()
    rows = drain(contender, waiters, "-")
    after = os.times()
    cpu = after.children_user + after.children_system
    cpu -= before.children_user + before.children_system
    steps = [(then[1] - now[1]) / 1e6 for now, then in pairwise(rows[1:])]
    return steps, cpu * 1000 / (waiters + 1)


def drain(contender: Contender, waiters: int, *work: str) -> "list[list[int]]":
    """Queue `waiters` jobs behind a blocking one and release it: number, first and last act."""
    log, gate = contender.box.root / "times", contender.box.root / "gate"
    log.write_text("")
    begun = contender.box.root / "gate.begun"
    for old in (gate, begun):
        old.unlink(missing_ok=True)
    os.mkfifo(gate)
    contender.start(contender.job, 0, log, gate)
    wait_for(begun.exists, 60)
    for number in range(1, waiters + 1):
        contender.start(contender.job, number, log, *work)
        if contender.name != "sem":
            wait_for(lambda n=number: contender.placed(n + 1), 20)  # type: ignore[misc]
    if contender.name in (*OURS, "flock"):  # the others' clients exit when they are placed
        contender.registration = spent(contender.clients[-1].pid)[0]
    os.close(os.open(gate, os.O_WRONLY))
    wait_for(lambda: log.read_text().count("\n") == waiters + 1, 600)
    contender.finish()
    return [[int(word) for word in line.split()] for line in log.read_text().splitlines()]


def total(contender: Contender, count: int) -> float:
    """Seconds for `count` queued jobs that do nothing, from the first start to the last end."""
    log = contender.box.root / "times"
    log.write_text("")
    began = time.monotonic()
    for number in range(count):
        contender.start(contender.job, number, log)
    wait_for(lambda: log.read_text().count("\n") == count, 600)
    spent = time.monotonic() - began
    contender.finish()
    return spent


def pss(pid: int) -> int:
    """Proportional memory in KiB."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Pss:"))


def spent(pid: int) -> "tuple[float, int]":
    """CPU time so far: milliseconds by the scheduler, and ticks in /proc/PID/stat."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    scheduled = int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) / 1e6
    return scheduled, int(fields[11]) + int(fields[12])


def idle(contender: Contender, waiters: int, seconds: float) -> None:
    """What waiting costs in CPU and memory."""
    gate = contender.box.root / "hold"
    os.mkfifo(gate)
    log = contender.box.root / "times"
    bare = [
        subprocess.Popen([sys.executable, "-I", "-S", "-c", "import time; time.sleep(600)"])
        for _ in range(3)
    ]
    contender.start(contender.job, 0, log, gate)
    wait_for(Path(f"{gate}.begun").exists, 60)
    for number in range(waiters):
        contender.start("true")
        wait_for(lambda n=number: contender.placed(n + 2), 60)  # type: ignore[misc]
    pids = [client.pid for client in contender.clients]
    time.sleep(1)  # what follows a start is not waiting
    before = {pid: spent(pid) for pid in pids[1:]}
    time.sleep(seconds)
    after = {pid: spent(pid) for pid in pids[1:]}
    scheduled = sum(after[pid][0] - before[pid][0] for pid in before)
    ticks = [after[pid][1] - before[pid][1] for pid in before]
    print(f"CPU of {waiters} waiters in {seconds:g} s: {scheduled:.1f} ms in all, "
          f"{sum(ticks)} ticks of /proc/PID/stat in all, {max(ticks)} at most")  # fmt: skip
    base = statistics.median(pss(process.pid) for process in bare)
    waiter = statistics.median(pss(pid) for pid in pids[1:])
    print(f"PSS: bare python3 -I -S {base:.0f} KiB; waiter {waiter:.0f} ({waiter / base:.2f} x); "
          f"supervisor {pss(pids[0])} ({pss(pids[0]) / base:.2f} x)")  # fmt: skip
    for pid in reversed(pids[1:]):
        os.kill(pid, signal.SIGTERM)
    os.close(os.open(gate, os.O_WRONLY))
    contender.finish()
    for process in bare:
        process.kill()
        process.wait()


def main() -> None:
    """Run all and print the table."""
    quick = "--quick" in sys.argv
    if "--realtime" in sys.argv:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(10))
    adopt_orphans()
    with tempfile.TemporaryDirectory(prefix="bench-") as scratch:
        job = Path(scratch) / "job"
        source = Path(scratch) / "job.c"
        source.write_text(JOB)
        subprocess.run(["cc", "-O2", "-o", job, source], check=True)
        contenders: list[Contender] = []
        for name in (*OURS[: 4 if _before() else 2], "flock", "nq", "tsp", "sem"):
            if name not in OURS and not shutil.which(name):
                print(f"{name} is not installed: left out")
                continue
            root = Path(scratch) / name.replace(" ", "-")
            root.mkdir()
            contenders.append(Contender(name, Box(root, "auto"), job))
        try:
            measure(contenders, quick)
        finally:
            for contender in contenders:
                contender.close()


def measure(contenders: "list[Contender]", quick: bool) -> None:
    for waiters in (50,) if quick else (50, 200, 1000) if "--many" in sys.argv else (50, 200):
        compare(contenders, waiters, 1 if quick else 3)
    rounds: dict[int, int] = {1: 20, 50: 1} if quick else {1: 40, 50: 2, 500: 1}
    for waiters, repeats in rounds.items():
        gaps: dict[str, list[float]] = {c.name: [] for c in contenders}
        overtaken = dict.fromkeys(gaps, 0)
        for _ in range(repeats):
            for contender in contenders:
                if contender.name == "sem" and waiters > 1:
                    continue  # it polls, ever more rarely: 50 were not through in ten minutes
                found, inversions = handoffs(contender, waiters)
                gaps[contender.name] += found
                overtaken[contender.name] += inversions
        peer = sorted(gaps.get("flock") or [float("nan")])
        base, quiet = statistics.median(peer), peer[len(peer) // 10]
        for name, values in gaps.items():
            if values:
                median = statistics.median(values)
                best = sorted(values)[len(values) // 10]
                print(f"hand-off, {waiters:3} waiters: {name:8} median {median:8.2f} ms, "
                      f"{median / base:6.2f} x flock; best tenth {best:8.2f} ms, "
                      f"{best / quiet:6.2f} x flock; "
                      f"{overtaken[name]} inversions of {len(values)}")  # fmt: skip
    every(contenders, 50 if quick else 200)
    idle(contenders[0], 20 if quick else 100, 20)


def compare(contenders: "list[Contender]", waiters: int, repeats: int) -> None:
    """Print the time from job to job, the contenders interleaved."""
    steps: dict[str, list[float]] = {c.name: [] for c in contenders if c.name != "sem"}
    cpu: dict[str, list[float]] = {name: [] for name in steps}
    registration: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(repeats):
        for contender in contenders:
            if contender.name in steps:
                found, used = job_to_job(contender, waiters)
                steps[contender.name] += found
                cpu[contender.name].append(used)
                registration[contender.name].append(contender.registration)
    base = statistics.median(steps.get("flock") or [float("nan")])
    for name, values in steps.items():
        median = statistics.median(values)
        print(f"job to job, {waiters:3} waiters: {name:11} median {median:8.2f} ms, "
              f"{median / base:6.2f} x flock; CPU per job {min(cpu[name]):8.2f} ms; "
              f"registration of the last {min(registration[name]):6.2f} ms of CPU")  # fmt: skip


def every(contenders: "list[Contender]", count: int) -> None:
    for contender in contenders:
        many = min(count, 20) if contender.name == "sem" else count
        print(f"{many} queued: {contender.name:8} {total(contender, many):6.2f} s")


if __name__ == "__main__":
    main()
