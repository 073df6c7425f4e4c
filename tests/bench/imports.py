"""What an import costs: the start-up budget of ARCHITECTURE.md in figures.

    python3 tests/bench/imports.py [ROUNDS]

Prints for each module the median CPU time of `python3 -I -S -c "import MODULE"`, less that of the
same interpreter with `pass`; interleaved, so that noise affects all alike. Nothing is asserted.
"""

import resource
import statistics
import subprocess
import sys

MODULES = (
    *("typing", "dataclasses", "subprocess", "pathlib", "json", "re", "signal", "tomllib"),
    *("ctypes", "collections.abc", "click", "psutil", "cgroupspy.controllers"),
)


def cpu_seconds(code: str) -> float:
    """The user and system time of one interpreter that finds the same packages as this one."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    prepare = f"import sys; sys.path[:] = {sys.path!r}; "
    subprocess.run([sys.executable, "-I", "-S", "-c", prepare + code], check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 40
    codes = {"pass": "pass", **{name: f"import {name}" for name in MODULES}}
    times: dict[str, list[float]] = {name: [] for name in codes}
    for _ in range(rounds):
        for name, code in codes.items():
            times[name].append(cpu_seconds(code))
    bare = statistics.median(times["pass"])
    print(f"Python {sys.version.split()[0]}, bare: {bare * 1000:.1f} ms")
    for name in MODULES:
        print(f"{name:24} +{(statistics.median(times[name]) - bare) * 1000:.1f} ms")


if __name__ == "__main__":
    main()
