"""What containment is worth, and costs: beside a naive psutil loop, as most home-made guards are.

    python3 tests/bench/contain.py [OTHERS]

1. A leak of so many MiB a second under a limit of 400 MiB: how far past the limit it was when it
   died, and after how many milliseconds there. `hidden` is a memfd that nobody maps. A leak that
   nobody stopped ends by itself at 1600 MiB.
2. The CPU time of the guard, as a share of a core, while a tree of 20 processes with 300 MiB does
   nothing, among OTHERS (2000) processes that are not its business.
"""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time

from sandrun.platform import processes

LIMIT = 400
LEAK = """
import os, sys, time
rate, note, kind = int(sys.argv[1]) << 20, sys.argv[2], sys.argv[3]
fd = os.open(note, os.O_RDWR | os.O_CREAT)
STEP = 2 << 20
data, kept, done, crossed, began = b"x" * STEP, [], 0, 0.0, time.monotonic()
memory = os.memfd_create("leak")
while done < 1600 << 20:
    if kind == "hidden": os.write(memory, data)
    else: kept.append(bytearray(data))
    done += STEP
    if not crossed and done >= 400 << 20: crossed = time.monotonic()
    os.pwrite(fd, b"%10d %20.6f" % (done >> 20, crossed), 0)
    ahead = done / rate - (time.monotonic() - began)
    if ahead > 0: time.sleep(ahead)
"""
TREE = """
import os, time
kept = bytearray(b"x") * (280 << 20)
for i in range(19):
    if not os.fork(): time.sleep(1000)
print(flush=True)
time.sleep(1000)
"""
LOOP = """
import subprocess, sys, time, psutil
limit, pause = int(sys.argv[1]) << 20, float(sys.argv[2])
child = psutil.Popen(sys.argv[3:])
while child.poll() is None:
    try:
        tree = [child, *child.children(recursive=True)]
        if sum(p.memory_info().rss for p in tree) > limit:
            for p in tree: p.kill()
    except psutil.Error: pass
    try: child.wait(pause)
    except psutil.TimeoutExpired: pass
"""


def guards(env: "dict[str, str]") -> "dict[str, list[str]]":
    """The ways to start a command under a limit of LIMIT MiB."""
    beside = f"{os.path.dirname(sys.executable)}:{os.environ['PATH']}"
    sandrun = shutil.which("sandrun", path=beside)
    if sandrun is None:
        sys.exit("contain.py: sandrun is not installed beside this interpreter nor on PATH")
    found = {}
    for name in ("cgroup2", "systemd", "cgroup1", "rlimit"):
        argv = [sandrun, "-qq", "--backend", name, "-m", f"{LIMIT}M", "--"]
        if subprocess.run([*argv, "true"], env=env, check=False).returncode == 0:
            found[f"sandrun {name}"] = argv
    for pause in ("5", "1", "0.1"):
        found[f"psutil every {pause} s"] = [sys.executable, "-c", LOOP, str(LIMIT), pause]
    return found


def leak(argv: "list[str]", rate: int, kind: str, env: "dict[str, str]") -> str:
    """Run a leak under a guard: MiB past the limit, milliseconds past it."""
    with tempfile.NamedTemporaryFile() as note:
        command = [sys.executable, "-I", "-S", "-c", LEAK, str(rate), note.name, kind]
        quiet = subprocess.DEVNULL
        subprocess.run([*argv, *command], env=env, check=False, stdout=quiet, stderr=quiet)
        ended = time.monotonic()
        reached, crossed = note.read().split()
    if int(reached) >= 1600:
        return "never"
    late = (ended - float(crossed)) * 1000 if float(crossed) else 0.0
    return f"{max(0, int(reached) - LIMIT):+d} MiB {late:4.0f} ms"


def cpu(pids: "list[int]") -> float:
    return sum(int(processes.read(f"/proc/{pid}/schedstat").split()[0]) for pid in pids) / 1e9


def keepers(state: str) -> "list[int]":
    """Those of the run in a state directory: they have the supervisor's environment, but the
    second one is nobody's descendant."""
    return [int(name) for name in os.listdir("/proc") if name.isdigit() and _keeps(name, state)]


def _keeps(pid: str, state: str) -> bool:
    try:
        environ = processes.read(f"/proc/{pid}/environ")
        return processes.Stat(int(pid)).name == "run-keeper" and os.fsencode(state) in environ
    except OSError:
        return False  # it is gone, or another user's


def cost(argv: "list[str]", seconds: float, env: "dict[str, str]") -> str:
    """The guard's CPU time as a share of a core: of its own process and of its keepers."""
    guard = subprocess.Popen(
        [*argv, sys.executable, "-I", "-S", "-c", TREE], env=env, stdout=subprocess.PIPE
    )
    assert guard.stdout
    guard.stdout.readline()
    time.sleep(3)
    pids = [guard.pid, *keepers(env["SANDRUN_STATE_DIR"])]
    before = cpu(pids)
    time.sleep(seconds)
    share = (cpu(pids) - before) / seconds
    tree = processes.descendants(guard.pid)
    guard.send_signal(signal.SIGTERM)
    for pid in tree:
        try:
            os.kill(pid, signal.SIGTERM)
        except OSError:
            continue
    guard.communicate()
    return f"{share:8.3%} with {len(pids) - 1} keepers"


def main() -> None:
    others = int(sys.argv[1]) if len(sys.argv) > 1 else 2000
    with tempfile.TemporaryDirectory() as scratch:
        env = {"PATH": os.environ["PATH"], "HOME": scratch, "SANDRUN_STATE_DIR": scratch}
        os.chdir(scratch)
        cases = [(100, "private"), (1000, "private"), (1000, "hidden"), (4000, "private")]
        heads = [f"{rate} MiB/s {kind}" for rate, kind in cases]
        ways = guards(env)
        print(f"{'past a limit of 400 MiB':22}" + "".join(f"{head:>22}" for head in heads))
        for name, argv in ways.items():
            cells = [leak(argv, rate, kind, env) for rate, kind in cases]
            print(f"{name:22}" + "".join(f"{cell:>22}" for cell in cells), flush=True)
        script = f"i=0; while [ $i -lt {others} ]; do sleep 1000 & i=$((i+1)); done; echo; wait"
        crowd = subprocess.Popen(
            ["sh", "-c", script], stdout=subprocess.PIPE, start_new_session=True
        )
        assert crowd.stdout
        crowd.stdout.readline()
        try:
            print(f"\nCPU of the guard of 20 processes, among {others} others (share of a core)")
            for name, argv in ways.items():
                # Summed RSS would take the tree, which shares its pages, for 5 GiB.
                wide = ["100000" if word == str(LIMIT) else word for word in argv]
                print(f"{name:22}{cost(wide, 10, env)}", flush=True)
        finally:
            os.killpg(crowd.pid, signal.SIGKILL)
            crowd.wait()


if __name__ == "__main__":
    main()
