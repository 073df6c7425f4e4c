"""What reading a history of a million runs costs, beside other ways to read it.

    tests/setup bench history [RUNS]

Each row is a process of its own: wall time, CPU time and the highest memory (PSS, with its
children) while it reads a generated file (370 bytes a run). Libraries that are not installed
(orjson, duckdb) are left out. The last rows are the commands themselves, `history | head -1`, and
the expected wait of a waiter. Nothing is asserted.
"""

import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

from sandrun import history
from sandrun.queue import ticket_text
from tests.harness import installed_env, launcher

COUNT = "for line in open(sys.argv[1], 'rb'): total += "
READERS = {
    "lines only": f"{COUNT}1",
    "json": f"import json; load = json.loads\n{COUNT}load(line)['wall']",
    "json's C scanner": "from sandrun import history as h; load = h._scanner()\n"
    f"{COUNT}load(line.decode(), 0)[0]['wall']",
    "orjson": f"import orjson; load = orjson.loads\n{COUNT}load(line)['wall']",
    "msgspec, dicts": "import msgspec; load = msgspec.json.Decoder().decode\n"
    f"{COUNT}load(line)['wall']",
    "msgspec, structs of 10 fields": "import msgspec\n"
    "class Row(msgspec.Struct, gc=False):\n"
    " v: int; project: str; command: tuple[str, ...]; since: float; wait: float; wall: float\n"
    " cpu: float; peak: int | None; exit: int; reason: str\n"
    f"load = msgspec.json.Decoder(Row).decode\n{COUNT}load(line).wall",
    "regular expression": "import re; load = re.compile(rb'\"wall\": ([0-9.]+)').search\n"
    f"{COUNT}float(load(line)[1])",
    "part of a line (--since)": "mark = b'\"since\": '\n"
    "for line in open(sys.argv[1], 'rb'):\n"
    " at = line.find(mark); total += float(line[at + 9 : line.index(b',', at)]) > 1e12",
    "duckdb, percentiles per command": "import duckdb; duckdb.sql(\"set memory_limit='200MB'\")\n"
    "duckdb.sql(\"select quantile_cont(wall, [0.5, 0.9, 0.99]) from read_json('%s', format="
    "'newline_delimited', columns={'command': 'VARCHAR[]', 'wall': 'DOUBLE'}) group by command\" "
    "% sys.argv[1]).fetchall()",
    "sqlite, filling an index": "import msgspec, sqlite3; load = msgspec.json.Decoder().decode\n"
    "db = sqlite3.connect(sys.argv[1] + '.db')\n"
    "db.execute('create table run (command, since, wait, wall, cpu, peak)')\n"
    "db.executemany('insert into run values (?, ?, ?, ?, ?, ?)', ((repr(r['command']), r['since'],"
    " r['wait'], r['wall'], r['cpu'], r['peak']) for r in map(load, open(sys.argv[1], 'rb'))))\n"
    "db.commit()",
    "sqlite, sorted by command": "import sqlite3; db = sqlite3.connect(sys.argv[1] + '.db')\n"
    "for row in db.execute('select command, wall from run order by command, wall'): total += 1",
}


def generate(file: Path, runs: int) -> float:
    """Write a history; returns the time of a start that 5,000 runs follow."""
    chance = random.Random(1)
    commands = [["make", "test"], ["make", "-j4", "all"], ["npm", "test"], ["sh", "-c", 'a "b"']]
    commands += [["pytest", f"tests/test_{number}.py"] for number in range(40)]
    since, late = 1.7e9, 0.0
    with file.open("w") as stream:
        for number in range(runs):
            since += chance.expovariate(1 / 60)
            late = since if number == runs - 5000 else late
            reason = chance.choices(["exit", "memory", "timeout", "left"], [95, 2, 1, 2])[0]
            wall, peak = chance.lognormvariate(2, 1.5), int(chance.lognormvariate(19, 1))
            folder = f"/home/me/src/project{number % 20}"
            record = {
                "v": 1,
                "id": f"{chance.getrandbits(32):08x}",
                "pid": number % 32768,
                "project": folder,
                "cwd": folder,
                "command": chance.choice(commands),
                "limit": 2 << 30,
                "since": since,
                "wait": chance.choice([0.0, 7.5]),
                "backend": "cgroup2",
                "wall": wall,
                "exit": 0,
                "reason": reason,
                "peak": peak,
                "peak_with_cache": peak,
                "stalled": 0.0,
                "cpu": wall * 1.3,
            }
            stream.write(history.encode(record) + "\n")
    return late


def tree_pss(process: psutil.Process) -> int:
    total = 0
    for member in (process, *process.children(recursive=True)):
        try:
            total += member.memory_full_info().pss
        except psutil.Error:
            continue
    return total


def measure(argv: "list[str]", env: "dict[str, str]") -> "tuple[float, float, int] | None":
    """Wall and CPU seconds and peak memory of a command; None: it failed."""
    before, began, peak = os.times(), time.perf_counter(), 0
    process = subprocess.Popen(argv, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    watched = psutil.Process(process.pid)
    while process.poll() is None:
        try:
            peak = max(peak, tree_pss(watched))
        except psutil.Error:
            pass
        time.sleep(0.1)  # one check costs as much as 50,000 lines
    wall, after = time.perf_counter() - began, os.times()
    cpu = sum(after[2:4]) - sum(before[2:4])
    return None if process.returncode else (wall, cpu, peak)


def show(name: str, found: "tuple[float, float, int] | None") -> None:
    row = "not installed" if found is None else f"{found[0]:6.2f} s  {found[1]:6.2f} s of CPU"
    print(f"{name:32} {row}" + (f"  {found[2] >> 20:4} MiB" if found else ""), flush=True)


def first_line(env: "dict[str, str]") -> float:
    began = time.perf_counter()
    argv = [*launcher(), "history"]
    with subprocess.Popen(argv, env=env, stdout=subprocess.PIPE) as process:
        assert process.stdout
        process.stdout.readline()
        took = time.perf_counter() - began
        process.stdout.close()
    return took


def main() -> None:
    runs = int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "sandrun/history.jsonl"
        file.parent.mkdir()
        late = generate(file, runs)
        own = {"XDG_STATE_HOME": scratch, "SANDRUN_STATE_DIR": scratch, "HOME": scratch}
        env = installed_env({**os.environ, **own})
        print(f"{runs:,} runs, {file.stat().st_size >> 20} MiB, load {os.getloadavg()[0]:.1f}")
        for name, code in READERS.items():
            script = "import sys; total = 0\n" + code
            show(name, measure([sys.executable, "-c", script, str(file)], env))
        day = time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(late))
        for words in (["stats"], ["history", "--since", day], ["history", "--project", scratch]):
            show("sandrun " + " ".join(words)[:23], measure([*launcher(), *words], env))
        lines = [first_line(env) for _ in range(5)]
        print(f"{'sandrun history | head -1':32} {min(lines):6.2f} s")
        os.environ["XDG_STATE_HOME"] = scratch
        times = []
        for _ in range(20):
            began = time.perf_counter()
            history.durations("/home/me/src/project1", ticket_text)
            times.append(time.perf_counter() - began)
        print(f"{'expected wait of a waiter':32} {statistics.median(times) * 1000:6.2f} ms")


if __name__ == "__main__":
    main()
