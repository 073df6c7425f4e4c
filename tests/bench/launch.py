"""What `sandrun -- true` costs beside the bare start of its interpreter, flock(1) and timeout(1).

    python3 tests/bench/launch.py [ROUNDS [BACKEND...]]

Prints for each command the median of its wall times in one interleaved run (a round starts each
command once, so noise hits all alike), the ratio to `python3 -c pass`, and the ratio to
`--backend none`. Without a BACKEND: of all that work here. Run it on an installed wheel: a
checkout's finder costs more than what is measured. Exits with 0 however slow they are.
"""

import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

REACH = {"none": 1.3, "cgroup2": 1.8, "systemd": 1.8, "cgroup1": 1.8}
"""The ratios to the bare start that the design wants."""


BACKENDS = ["rlimit", "cgroup1", "cgroup2", "systemd"]


def usable(sandrun: str, env: "dict[str, str]") -> "list[str]":
    """The backends that run a command here."""
    return [
        name
        for name in BACKENDS
        if subprocess.run(
            [sandrun, "-qq", "--backend", name, "--", "true"], env=env, check=False
        ).returncode
        == 0
    ]


def measure(commands: "dict[str, list[str]]", rounds: int, env: "dict[str, str]") -> None:
    """Time the commands in turn and print the table."""
    times: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(rounds):
        for name, command in commands.items():
            began = time.perf_counter()
            subprocess.run(command, env=env, check=True)
            times[name].append(time.perf_counter() - began)
    median = {name: statistics.median(values) for name, values in times.items()}
    print(f"Python {sys.version.split()[0]}")
    print(f"{'command':24} {'median ms':>9}  {'/ bare':>6}  {'/ none':>6}  reach")
    for name, value in median.items():
        reach = REACH.get(name.removeprefix("sandrun "))
        print(
            f"{name:24} {value * 1000:9.2f}  {value / median['python3 -c pass']:6.2f}  "
            f"{value / median['sandrun none']:6.2f}  {f'<= {reach}' if reach else ''}"
        )


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 40
    sandrun = shutil.which(
        "sandrun", path=f"{os.path.dirname(sys.executable)}:{os.environ['PATH']}"
    )
    if sandrun is None:
        sys.exit("launch.py: sandrun is not installed beside this interpreter nor on PATH")
    with tempfile.TemporaryDirectory() as scratch:
        env = {"PATH": os.environ["PATH"], "HOME": scratch, "SANDRUN_STATE_DIR": scratch}
        os.chdir(scratch)
        commands = {
            "python3 -c pass": [sys.executable, "-c", "pass"],
            "python3 -I -S -c pass": [sys.executable, "-I", "-S", "-c", "pass"],
        }
        for name in ["none", *(sys.argv[2:] or usable(sandrun, env))]:
            commands[f"sandrun {name}"] = [sandrun, "--backend", name, "--", "true"]
        commands["flock FILE true"] = ["flock", f"{scratch}/lock", "true"]
        commands["timeout 10 true"] = ["timeout", "10", "true"]
        measure(commands, rounds, env)


if __name__ == "__main__":
    main()
