"""No way around the queue: the same goal started at once in every way there is, and a witness."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.entering import INCLUDE, job_recipe, need, put_on_path, witnessed
from tests.harness import Box, wait_for

SANDBOX = ["unshare", "--user", "--map-root-user", "--pid", "--fork", "--mount-proc"]

WAYS: "dict[str, tuple[str, ...]]" = {
    "include": ("make", "goal", "JOB=include"),
    "shim": ("sh", "-c", "$SHIMS/make -f plain.mk goal JOB=shim"),
    "absolute": ("/usr/bin/make", "goal", "JOB=absolute"),
    "hook": ("git", "commit", "--allow-empty", "-qm", "x"),
    "python": (
        sys.executable,
        "-c",
        "import sandrun; sandrun.run(['make', '-f', 'plain.mk', 'goal', 'JOB=python'])",
    ),
    "nested": ("sandrun", "--", "sh", "-c", "sh -c 'make goal JOB=nested; :'; :"),
    "cron": ("/bin/sh", "-c", "cd project && make goal JOB=cron"),
    "zsh": ("zsh", "-f", "-c", 'eval "$(sandrun shims activate zsh)"; make goal JOB=zsh'),
    "fish": ("fish", "--no-config", "-c", "make goal JOB=fish"),
    "sh": ("sh", "-c", "make goal JOB=sh; exit"),
    "xargs": ("sh", "-c", "printf '%s\\n' JOB=xargs-1 JOB=xargs-2 | xargs -P2 -n1 make goal"),
    "directory": ("make", "-C", "project", "goal", "JOB=directory"),
    "container": (*SANDBOX, "make", "goal", "JOB=container"),
}
JOBS = [name for name in WAYS if name != "xargs"] + ["xargs-1", "xargs-2"]


@pytest.fixture
def crowd(box: Box) -> Box:
    """A project that `sandrun init` has set up, with one goal that runs the job $(JOB)."""
    put_on_path(box)
    box.env["XDG_DATA_HOME"] = str(box.home / "data")
    box.env["SHIMS"] = str(box.home / "data/sandrun/shims")
    box.env |= {f"GIT_{who}_{what}": "t@example.org" for who in ("AUTHOR", "COMMITTER")
                for what in ("NAME", "EMAIL")}  # fmt: skip
    local = box.home / ".local/bin"
    local.mkdir(parents=True)
    (local / "sandrun").symlink_to(box.root / "bin/sandrun")
    assert box.run("init", "-q", argv=["git"]).returncode == 0
    goal = f"goal: ; {job_recipe(box, '$(JOB)')}\n.PHONY: goal\n"
    (box.project / "Makefile").write_text(goal)
    (box.project / "plain.mk").write_text(goal)
    hook = box.project / ".git/hooks/pre-commit"
    hook.parent.mkdir(exist_ok=True)
    hook.write_text("#!/bin/sh\nexec make goal JOB=hook\n")
    hook.chmod(0o755)
    assert box.run("init").returncode == 0
    assert (box.project / "sandrun.mk").read_bytes() == INCLUDE.read_bytes()
    for name in JOBS:
        box.job(name)
    return box


def surroundings(box: Box, way: str) -> "tuple[dict[str, str], Path]":
    """The environment and the directory of a way, instead of the usual ones."""
    if way == "cron":  # what cron has; the state's place is the test's own
        bare = {name: box.env[name] for name in ("HOME", "SANDRUN_STATE_DIR", "SANDRUN_BACKEND")}
        bare |= {
            name: box.env[name] for name in ("PYTHONPATH", "XDG_STATE_HOME") if name in box.env
        }
        return {**bare, "PATH": "/usr/bin:/bin"}, box.root
    return dict(box.env), box.root if way == "directory" else box.project


def can_sandbox() -> bool:
    return bool(shutil.which("unshare")) and not subprocess.call(
        [*SANDBOX, "true"], stderr=subprocess.DEVNULL
    )


@pytest.mark.parametrize(
    "ways", [[way for way in WAYS if way != "container"], ["container", "include", "absolute"]]
)
def test_every_way_at_once_and_no_two_ran_together(crowd: Box, ways: "list[str]") -> None:
    need("zsh", "fish")
    if "container" in ways and not can_sandbox():
        pytest.skip("needs user namespaces")
    jobs = [job for job in JOBS if job.partition("-")[0] in ways]
    runs = {}
    usual = dict(crowd.env)
    for way in ways:
        crowd.env, directory = surroundings(crowd, way)
        runs[way] = crowd.start(argv=list(WAYS[way]), cwd=directory)
        crowd.env = dict(usual)
    wait_for(lambda: len(crowd.view()) == len(jobs), 60, "all are in the queue")
    crowd.let_all(jobs, 60)
    for way, run in runs.items():
        done = crowd.finish(run, 60)
        assert done.returncode == 0, (way, done.stdout, done.stderr)
    assert sorted(witnessed(crowd)) == sorted(jobs)


def test_the_witness_would_have_seen_it(crowd: Box) -> None:
    """Two that are told to do without sandrun do run together."""
    for way in ("include", "absolute"):
        crowd.start(argv=list(WAYS[way]), env={"SANDRUN_MAKE": "off"})
    for way in ("include", "absolute"):
        crowd.begun(way)
    for way in ("include", "absolute"):
        crowd.let(way)
    for run in crowd.started[-2:]:
        crowd.finish(run)
    with pytest.raises(AssertionError):
        witnessed(crowd)
