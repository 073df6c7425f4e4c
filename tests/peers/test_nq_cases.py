"""nq's own list of 36 checks (its file `tests`), against sandrun.

nq detaches a job and keeps its output in a file named after it; sandrun stays in the foreground,
so `nq cmd` is `sandrun -- cmd &`, `nq -t` (is it done?) is `sandrun status`, `nq -w` is the
shell's `wait`, and the status line in the job's file is the record in the history.

Not applicable, and why:
- "generated a lockfile", "lockfile is not executable", "lockfile contains exec line": a ticket is
  gone with its run, and it holds nothing.
- `fq` (four checks) follows the output of jobs that have none of their own; here each run writes
  to its caller's stdout. What is left of it, which job is being followed, is told by status.
"""

import re
import subprocess

from tests.harness import SCALE, Box, launcher, wait_for


def running(box: Box) -> list[str]:
    return [str(row["command"]) for row in box.status() if row["running"]]


def kill_run(box: Box, process: "subprocess.Popen[str]") -> None:
    """As `kill ${f##*.}`: nq's file names end in the pid."""
    process.terminate()
    process.wait(20 * SCALE)


def test_without_arguments_it_fails(box: Box) -> None:
    assert box.run().returncode == 125


def test_true_succeeds_and_leaves_its_status(box: Box) -> None:
    assert box.run("--", "true").returncode == 0
    (record,) = box.records()
    assert (record["command"], record["exit"], record["reason"]) == (["true"], 0, "exit")


def test_done_running_killed(box: Box) -> None:
    first = box.start("--", "true")
    assert box.finish(first).returncode == 0
    second = box.start("--", "sleep", "500")
    wait_for(lambda: running(box) == ["sleep 500"], 20, "not all jobs are done already")
    kill_run(box, second)
    assert running(box) == []
    assert second.returncode == 128 + 15
    record = box.records()[-1]
    assert (record["exit"], record["reason"]) == (128 + 15, "signal")


def test_the_job_knows_its_id(box: Box) -> None:
    done = box.run("--", "env")
    found = re.search(r"^SANDRUN_RUNS=.*/([0-9a-f]{8})$", done.stdout, re.M)
    assert found and found[1] == box.records()[-1]["id"]


def test_killing_jobs_starts_the_next_ones(box: Box) -> None:
    """Four jobs; the first and the third are killed, the others run one after the other."""
    jobs = [box.start("--", "sleep", "100")]
    wait_for(lambda: len(box.view()) == 1, 20)
    for number, command in enumerate((["sh", "-c", "exit 2"], ["sleep", "300"], ["true"]), 2):
        jobs.append(box.start("--", *command))
        wait_for(lambda n=number: len(box.view()) == n, 20)  # type: ignore[misc]
    assert running(box) == ["sleep 100"]
    kill_run(box, jobs[0])
    assert box.finish(jobs[1]).returncode == 2
    wait_for(lambda: running(box) == ["sleep 300"], 20)
    kill_run(box, jobs[2])
    assert box.finish(jobs[3]).returncode == 0


def test_killing_a_waiting_job_takes_it_out(box: Box) -> None:
    """The first runs and is killed, the fourth is killed while it waits: the third runs next."""
    jobs = [box.start("--", "sleep", "100")]
    wait_for(lambda: len(box.view()) == 1, 20)
    for number, command in enumerate((["echo", "two"], ["sleep", "300"], ["sleep", "400"]), 2):
        jobs.append(box.start("--", *command))
        wait_for(lambda n=number: len(box.view()) == n, 20)  # type: ignore[misc]
    kill_run(box, jobs[3])
    assert jobs[3].returncode == 128 + 15
    kill_run(box, jobs[0])
    assert box.finish(jobs[1]).stdout == "two\n"
    wait_for(lambda: running(box) == ["sleep 300"], 20)
    kill_run(box, jobs[2])
    assert not any(record["command"] == ["sleep", "400"] for record in box.records())


def test_nothing_of_it_needs_the_checks_machinery(box: Box) -> None:
    """As in nq's list: straight from a shell, jobs in the background, `wait` for all."""
    sandrun = " ".join(launcher())
    script = f"for i in 1 2 3; do {sandrun} -q -- sh -c 'echo $0' $i & done; wait"
    done = box.run(script, argv=["sh", "-c"])
    assert sorted(done.stdout.split()) == ["1", "2", "3"]
