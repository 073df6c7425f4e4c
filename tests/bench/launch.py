"""What `sandrun -- true` costs beside the bare start of its interpreter, flock(1) and timeout(1).

    python3 tests/bench/launch.py [ROUNDS [BACKEND...]]

Prints for each command the median of its wall times in one interleaved run (a round starts each
command once, so noise hits all alike), the ratio to `python3 -c pass`, and the ratio to
`--backend none`. A shim outside of a run, `sandrun git` and the make include are among them, each
beside its tool. Then the end: from the time that the command `date` prints to sandrun's exit, less
the same for `date` alone. Then the memory (PSS) of all of sandrun's processes during a run.

Without a BACKEND: of all that work here. Run it on what pip installs: a checkout's finder costs
more than what is measured. Exits with 0 however slow they are.
"""

import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

REACH = {"none": 1.25, "rlimit": 1.5, "cgroup1": 1.5, "cgroup2": 1.5, "systemd": 1.5}
"""The ratios to the bare start that the design wants."""
END, MEMORY = 1.5, 6.5
"""... the milliseconds of the end, and the MB of a run."""


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
    print(f"{'command':28} {'median ms':>9}  {'/ bare':>6}  {'/ none':>6}  reach")
    for name, value in median.items():
        reach = REACH.get(name.removeprefix("sandrun "))
        print(
            f"{name:28} {value * 1000:9.2f}  {value / median['python3 -c pass']:6.2f}  "
            f"{value / median['sandrun none']:6.2f}  {f'<= {reach}' if reach else ''}"
        )


def others(sandrun: str, scratch: str, env: "dict[str, str]") -> "dict[str, list[str]]":
    """Other ways to start sandrun, each beside its tool."""

    def ask(*words: str) -> str:
        return subprocess.run(
            [sandrun, *words], env=env, check=True, capture_output=True, text=True
        ).stdout.strip()

    ask("shims", "add", "true")
    for name, first in (("plain", ""), ("included", f"include {ask('make-include')}\n")):
        with open(f"{scratch}/{name}.mk", "w") as file:
            file.write(f"{first}all:; @true\n")
    asking = ["git", "check-ref-format", "refs/heads/main"]
    return {
        "shim of true": [f"{scratch}/.local/share/sandrun/shims/true"],
        "git check-ref-format": asking,
        "sandrun git check-ref-format": [sandrun, *asking],
        "make": ["make", "-f", "plain.mk", "all"],
        "make, with the include": ["make", "-f", "included.mk", "all"],
    }


def measure_end(commands: "dict[str, list[str]]", rounds: int, env: "dict[str, str]") -> None:
    """Print how long after the command each of these exits."""
    late: dict[str, list[int]] = {name: [] for name in commands}
    for _ in range(rounds):
        for name, command in commands.items():
            date = [*command, "date", "+%s%N"]
            done = subprocess.run(date, env=env, check=True, capture_output=True)
            late[name].append(time.time_ns() - int(done.stdout))
    alone = statistics.median(late.pop("date"))
    for name, values in late.items():
        end = (statistics.median(values) - alone) / 1e6
        print(f"{name:28} {end:9.2f} ms after the command's exit, reach <= {END}")


def pss(pid: int) -> int:
    with open(f"/proc/{pid}/smaps_rollup") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("Pss:"))


def measure_memory(name: str, command: "list[str]", env: "dict[str, str]", state: str) -> None:
    """Print the memory of sandrun's processes: its own, its children's, and that of others that
    hold a run lock below the directory `state`."""
    run = subprocess.Popen([*command, "sleep", "1000"], env=env)
    time.sleep(0.5)
    total = 0
    for pid in filter(str.isdecimal, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/stat") as file:
                called, _, fields = file.read().partition("(")[2].rpartition(") ")
            held = (os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd"))
            ours = run.pid in (int(pid), int(fields.split()[1])) or any(
                path.startswith(state) and path.endswith("/executor.lock") for path in held
            )
            total += pss(int(pid)) if called != "sleep" and ours else 0
        except (OSError, StopIteration):
            continue  # it is gone
    run.terminate()
    run.wait()
    print(f"{name:28} {total / 1000:9.2f} MB during a run, reach <= {MEMORY}")


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
        backends = ["none", *(sys.argv[2:] or usable(sandrun, env))]
        runs = {f"sandrun {name}": [sandrun, "-q", "--backend", name, "--"] for name in backends}
        commands |= {name: [*command, "true"] for name, command in runs.items()}
        commands["flock FILE true"] = ["flock", f"{scratch}/lock", "true"]
        commands["timeout 10 true"] = ["timeout", "10", "true"]
        commands |= others(sandrun, scratch, env)
        measure(commands, rounds, env)
        measure_end({"date": [], **runs}, rounds, env)
        for name, command in runs.items():
            measure_memory(name, command, env, scratch)


if __name__ == "__main__":
    main()
