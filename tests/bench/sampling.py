"""What sampling costs: the CPU time of a quiet run's supervisor, with samples and without.

    python3 tests/bench/sampling.py [SECONDS [ROUNDS [OTHER_SANDRUN]]]

Runs `sandrun -- sleep SECONDS` with each backend that works here, in interleaved rounds: with
samples; without, because the state directory cannot be written; and by another build, if one is
given. Prints the median of the CPU time of sandrun with its helpers and the command, its share of a
core, and what the samples add as a share of a core. Exits with 0 whatever they are.
"""

import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.bench.launch import usable

REACH = 0.01
"""The share of a core that the design allows to sampling."""


def cpu_of(argv: "list[str]", env: "Mapping[str, str]") -> float:
    """The CPU time of a command and all its children that were waited for."""
    process = subprocess.Popen(argv, env=dict(env))
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0
    return used.ru_utime + used.ru_stime


def main() -> None:
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 10.0
    rounds = int(sys.argv[2]) if len(sys.argv) > 2 else 3
    path = f"{os.path.dirname(sys.executable)}:{os.environ['PATH']}"
    sandrun = shutil.which("sandrun", path=path)
    if sandrun is None:
        sys.exit("sampling.py: sandrun is not installed beside this interpreter nor on PATH")
    with tempfile.TemporaryDirectory() as scratch:
        env = {"PATH": os.environ["PATH"], "HOME": scratch, "SANDRUN_STATE_DIR": scratch}
        os.chdir(scratch)
        ways = {"with samples": (sandrun, scratch), "without": (sandrun, "/dev/null/none")}
        if len(sys.argv) > 3:
            ways["other build"] = (sys.argv[3], scratch)
        print(f"{'backend':10} {'way':14} {'CPU ms':>8} {'% of a core':>12}")
        for backend in usable(sandrun, env):
            used: dict[str, list[float]] = {way: [] for way in ways}
            for _ in range(rounds):
                for way, (program, state) in ways.items():
                    argv = [program, "-qq", "--backend", backend, "--", "sleep", str(seconds)]
                    used[way].append(cpu_of(argv, {**env, "XDG_STATE_HOME": state}))
            median = {way: statistics.median(times) for way, times in used.items()}
            for way, cpu in median.items():
                print(f"{backend:10} {way:14} {cpu * 1000:8.1f} {cpu / seconds * 100:12.2f}")
            more = (median["with samples"] - median["without"]) / seconds
            print(f"{backend:10} samples add {more * 100:.2f} % of a core (reach {REACH:.0%})")


if __name__ == "__main__":
    main()
