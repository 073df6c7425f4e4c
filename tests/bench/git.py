"""What the git guard costs: ratios measured side by side in one run.

    python -m tests.bench.git [--rounds N]

Reading: git through the shim (POSIX sh) against bare git; to be at most 1.5. Writing, and reading
that may refresh the index, with nobody in the way: git through the shim against bare git plus one
start of the same interpreter; to be at most 1. `sandrun git` typed by hand is shown beside it. The
rounds of all candidates are interleaved, so that a noisy machine is noisy for all; shown are
medians of wall time, and the ratio of those.
"""

import argparse
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

from tests.gitbox import GIT, GitBox

MAIN = "from sandrun.cli import main; main()"


class Bench:
    """A repository of some size, and commands timed in it."""

    def __init__(self, root: Path, rounds: int) -> None:
        self.rounds = rounds
        self.box = GitBox(root)
        for number in range(1000):
            (self.box.repo / f"file{number}").write_text(f"{number}\n")
        self.box.bare("add", ".")
        self.box.bare("commit", "-qm", "files")
        self.env = {**self.box.env, "PATH": f"{self.box.shims}:{self.box.env['PATH']}"}
        self.null = os.open("/dev/null", os.O_RDWR)

    def once(self, argv: "list[str]") -> float:
        """One timed run, in milliseconds; it must succeed."""
        actions = [(os.POSIX_SPAWN_DUP2, self.null, fd) for fd in (0, 1, 2)]
        began = time.perf_counter()
        pid = os.posix_spawn(argv[0], argv, self.env, file_actions=actions)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        took = time.perf_counter() - began
        assert code == 0, argv
        return took * 1000

    def medians(self, candidates: "dict[str, list[str]]") -> "dict[str, float]":
        """The median of each candidate, all measured in turns."""
        times: dict[str, list[float]] = {name: [] for name in candidates}
        for argv in candidates.values():
            self.once(argv)
        for _ in range(self.rounds):
            for name, argv in candidates.items():
                times[name].append(self.once(argv))
        return {name: statistics.median(values) for name, values in times.items()}

    def compare(self, line: str, reads: bool) -> None:
        """Measure one git command line every way, and print a row."""
        words = line.split()
        found = self.medians(
            {
                "git": [GIT, *words],
                "shim": [str(self.box.shims / "git"), *words],
                "sandrun git": [sys.executable, "-c", MAIN, "git", *words],
                "python": [sys.executable, "-c", "pass"],
            }
        )
        bare, python = found["git"], found["python"]
        if reads:
            goal = f"shim / git = {found['shim'] / bare:.2f} (1.5)"
        else:
            goal = f"shim / (git + python) = {found['shim'] / (bare + python):.2f} (1)"
        cells = " ".join(f"{value:9.2f}" for value in found.values())
        print(f"{line:28} {cells}  {goal}", flush=True)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--rounds", type=int, default=100)
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder), rounds)
        os.chdir(bench.box.repo)
        print(f"{'ms':28} {'git':>9} {'shim':>9} {'sandrun':>9} {'python':>9}  ratio (goal)")
        for line in (
            "rev-parse HEAD",
            "log --oneline -5",
            "--no-optional-locks status -s",
            "diff --cached --stat",
        ):
            bench.compare(line, reads=True)
        for line in (
            "status --short",
            "diff --stat",
            "add file1",
            "update-ref refs/x HEAD",
            "tag -f bench",
            "commit -q --amend -mx",
        ):
            bench.compare(line, reads=False)


if __name__ == "__main__":
    main()
