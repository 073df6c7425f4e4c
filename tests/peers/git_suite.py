"""git's own test suite through the shim: the same results as without it, test by test.

    python -m tests.peers.git_suite [--quick | --tests t0001,t1400] [--suite SUITE] [--cache DIR]

Gets the source package of the git that is installed, or the one of another suite of the same
distribution (`apt-get source`, with a private configuration: the host's sources with deb-src,
nothing under /etc is touched), builds it once in the cache directory, and runs each test script
twice: with the git that was built, and with a shim in front of that same git, in which `git` is
`sandrun git`. Prints both results side by side; exit 1 if a test script's list of passed and
failed tests differs.

The suite is git's own judge of what git must do, so it finds what we did not think of. It only
sees the shim where it calls `git` from a shell; what git starts itself is git.
"""

import argparse
import os
import platform
import re
import subprocess
import sys
import time
from pathlib import Path

from sandrun.git import shim as shims

ROOT = Path(__file__).resolve().parents[2]
TESTS = "t0001 t1006 t1400 t2400 t3404 t7400 t7503 t7113"
QUICK = "t0001 t1006 t7503 t7113"
"""The bounded part for CI: about half a minute once git is built."""


_SHOWN = 20  # differing lines of a test script; all are in its log


def default_cache() -> Path:
    """Where the source and the build are kept between runs, outside of the repository."""
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(home) / "sandrun-tests" / "git-suite"


def source(cache: Path, suite: str) -> Path:
    """The unpacked source package of git, fetched by apt if it is not there."""
    found = sorted(path for path in cache.glob("git-[0-9]*") if path.is_dir())
    if found:
        return found[-1]
    apt = cache / "apt"
    for name in ("lists/partial", "archives/partial", "sources"):
        (apt / name).mkdir(parents=True, exist_ok=True)
    _sources(apt / "sources", suite)
    options = {
        "Dir::Etc::sourcelist": "/dev/null",
        "Dir::Etc::sourceparts": apt / "sources",
        "Dir::State::lists": apt / "lists",
        "Dir::Cache": apt,
        "Acquire::Languages": "none",
        "APT::Sandbox::User": "",
    }
    words = [word for name, value in options.items() for word in ("-o", f"{name}={value}")]
    subprocess.run(["apt-get", *words, "-qq", "update"], check=True)
    subprocess.run(["apt-get", *words, "-qq", "source", "git"], cwd=cache, check=True)
    return source(cache, suite)


def _sources(folder: Path, suite: str) -> None:
    """The distribution's own entries of the host, as deb-src; for another suite, its main ones."""
    own = platform.freedesktop_os_release()["VERSION_CODENAME"]
    for path in [Path("/etc/apt/sources.list"), *Path("/etc/apt/sources.list.d").glob("*")]:
        between = {".sources": "\n\n", ".list": "\n"}.get(path.suffix, "")
        if not between or not path.is_file():
            continue
        text = path.read_text()
        if "debian" not in text and "ubuntu" not in text:
            continue
        text = re.sub(r"^(Types: )?deb(?= |$)", r"\1deb-src", text, flags=re.MULTILINE)
        if suite:
            main = re.compile(rf"(?<![\w-]){own}(?![\w/-])")
            entries = (main.sub(suite, e) for e in text.split(between) if main.search(e))
            text = re.sub(rf" {own}[/-]\S+", "", between.join(entries))
        (folder / path.name).write_text(text)


def build(tree: Path) -> None:
    """Build git without what needs more libraries; once."""
    if not (tree / "git").exists() or not (tree / "t/helper/test-tool").exists():
        flags = ["NO_CURL=1", "NO_PYTHON=1", "NO_TCLTK=1", "NO_GETTEXT=1", "NO_EXPAT=1"]
        flags.append("NO_OPENSSL=1")  # git has a SHA-1 and a SHA-256 of its own
        jobs = f"-j{os.cpu_count() or 1}"
        log = tree / "build.log"
        with open(log, "w") as file:
            done = subprocess.run(
                ["make", jobs, *flags], cwd=tree, stdout=file, stderr=file, check=False
            )
        if done.returncode:
            sys.exit(f"git does not build here: see {log}")


def shim(tree: Path, folder: Path) -> Path:
    """A folder of programs with the shim as `git`, for GIT_TEST_INSTALLED."""
    folder.mkdir(parents=True, exist_ok=True)
    real = tree / "bin-wrappers"
    for path in real.iterdir():
        link = folder / path.name
        if link.is_symlink() or link.exists():
            link.unlink()
        if path.name != "git":
            link.symlink_to(path)
    (folder / shims.DIRECTORY_MARK).touch()
    text = shims.text(shims.launch(sys.executable, str(ROOT)))
    # The git next on PATH shall be the one that was built.
    before = f"PATH={folder}:{real}:$PATH\n"
    first, rest = text.split("\n", 1)
    (folder / "git").write_text(f"{first}\n{before}{rest}")
    (folder / "git").chmod(0o755)
    return folder


def run(tree: Path, test: str, installed: "Path | None", work: Path) -> "tuple[list[str], float]":
    """Run one test script; its TAP lines without the details, and the time it took."""
    script = next((tree / "t").glob(f"{test}-*.sh"))
    env = {**os.environ, "SANDRUN_STATE_DIR": str(work / "state")}
    for name in [name for name in env if name.startswith("GIT_")]:
        del env[name]
    work.mkdir(parents=True, exist_ok=True)
    (work / "state").mkdir(exist_ok=True)
    if installed:
        env["GIT_TEST_INSTALLED"] = str(installed)
        env["GIT_TEST_EXEC_PATH"] = str(tree)
    began = time.monotonic()
    done = subprocess.run(
        ["sh", script.name, f"--root={work}"],
        cwd=tree / "t",
        env=env,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    seconds = time.monotonic() - began
    (work / f"{test}.log").write_text(done.stdout + done.stderr)
    lines = [row for row in done.stdout.splitlines() if row.startswith(("ok ", "not ok "))]
    return [*lines, f"exit {done.returncode}"], seconds


def compare(tests: "list[str]", cache: Path, suite: str) -> int:
    """Run the test scripts both ways and print what differs; the exit code."""
    cache.mkdir(parents=True, exist_ok=True)
    tree = source(cache, suite)
    build(tree)
    print(f"{tree.name}{suite and f' of {suite}'}")
    folder = shim(tree, cache / "shim")
    code = 0
    print(f"{'':8}{'git':>24}{'through the shim':>28}")
    for test in tests:
        plain, plain_time = run(tree, test, None, cache / "plain")
        ours, our_time = run(tree, test, folder, cache / "shimmed")
        same = plain == ours
        code = code if same else 1
        print(
            f"{test:8}{_text(plain, plain_time):>24}{_text(ours, our_time):>28}"
            f"  {'same' if same else 'DIFFERENT'}",
            flush=True,
        )
        for line in sorted(set(plain) ^ set(ours))[:_SHOWN]:
            print(f"    {'only plain' if line in plain else 'only shim'}: {line}")
    return code


def _text(lines: "list[str]", seconds: float) -> str:
    passed = sum(line.startswith("ok ") for line in lines)
    return f"{passed}/{len(lines) - 1} in {seconds:.1f} s"


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--tests", default=TESTS, help=f"default: {TESTS}")
    parser.add_argument("--quick", action="store_true", help=f"only {QUICK}, for CI")
    parser.add_argument("--suite", default="", help="such as trixie or sid; default: the host's")
    parser.add_argument("--cache", type=Path, default=default_cache())
    chosen = parser.parse_args()
    tests = QUICK if chosen.quick else chosen.tests.replace(",", " ")
    return compare(tests.split(), chosen.cache.resolve() / chosen.suite, chosen.suite)


if __name__ == "__main__":
    sys.exit(main())
