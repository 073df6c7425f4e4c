"""A project's file: limits take effect at once, other settings after `sandrun trust`, and none
loosens what the user set. Whose markers count where a checkout is shared.
"""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from sandrun.config import options
from sandrun.model import MIB
from tests.harness import Box, launcher, wait_for

OTHER = 65534
USER = 12345
HELD = {
    "backend": "rlimit",
    "require": "kernel",
    "pool": "off",
    "queue": "deploy",
    "priority": "high",
    "quiet": "1",
    "verbose": "1",
    "grace": "77",
    "kill_signal": "USR1",
    "detach": "1",
    "leftovers": "leave",
    "daemons": "leave",
    "clean_git_env": "1",
    "private_tmp": "1",
    "private_ipc": "1",
    "slots": "7",
    "cpu_weight": "7",
    "io_weight": "7",
    "check_interval": "77",
    "no_wait": "1",
    "history_age": "77",
    "history_size": "77M",
    "metrics_textfile": "/var/lib/node-exporter/sandrun.prom",
    "color": "always",
}
"""For each setting that needs trust a value that is not the default."""
LIMITS = {
    "memory": ("100M", "200M"),
    "timeout": ("100", "0"),
    "cpu_time": ("100", "200"),
    "idle_timeout": ("100", "0"),
    "swap": ("0", "100M"),
    "pids": ("100", "200"),
    "cpus": ("1.5", "2.5"),
    "io_read_bps": ("100", "200"),
    "io_write_bps": ("100", "200"),
    "io_read_iops": ("100", "200"),
    "io_write_iops": ("100", "200"),
    "wait_timeout": ("100", "0"),
    "git_wait": ("0", "100"),
}
"""For each limit a tight and a loose value."""


def config(box: Box, *args: str, cwd: "Path | None" = None) -> "dict[str, tuple[str, str]]":
    """`sandrun config` as key -> (value, source)."""
    done = box.run(*args, "config", cwd=cwd, env={"SANDRUN_BACKEND": ""})
    assert done.returncode == 0, done.stderr
    rows = [line for line in done.stdout.splitlines() if not line.startswith("#")]
    return {r.split()[0]: (r.split(maxsplit=1)[1].rsplit(maxsplit=1)[0].strip(), r.split()[-1])
            for r in rows}  # fmt: skip


def project_file(box: Box, text: str) -> str:
    file = box.project / "sandrun.toml"
    file.write_text(text)
    return str(file)


def user_file(box: Box, text: str) -> str:
    file = box.home / "config/sandrun/config.toml"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    return str(file)


def line(key: str, value: str) -> str:
    return f'{key} = "{value}"\n'


def test_every_setting_has_a_class() -> None:
    keys = {option.key for option in options.OPTIONS if option.scope == "all"}
    assert {option.key for option in options.OPTIONS if option.is_limit} == set(LIMITS)
    assert keys - set(LIMITS) == set(HELD)


@pytest.mark.parametrize("key", HELD)
def test_a_setting_that_is_no_limit_needs_trust_and_yields_to_the_users_own(
    box: Box, key: str
) -> None:
    default = config(box)[key]
    assert default[1] == "default"
    mine = project_file(box, line(key, HELD[key]))
    done = box.run("config", env={"SANDRUN_BACKEND": ""})
    assert config(box)[key] == default
    assert f"# {mine} is not trusted; not in force: {key} = {HELD[key]}" in done.stdout
    assert f"trusted {mine}: {key} = {HELD[key]}" in box.run("trust").stdout
    value, source = config(box)[key]
    assert source == mine
    assert value != default[0]
    with open(mine, "a") as file:
        file.write("pids = 999\n")
    assert config(box)[key] == default, "an edited file waits again"
    box.run("trust")
    assert config(box)[key][1] == mine
    assert box.run("trust", "--revoke").stdout == f"revoked {mine}\n"
    assert config(box)[key] == default
    box.run("trust")
    users = user_file(box, line(key, HELD[key]))
    assert config(box)[key][1] == users, "the user's own file comes first, trusted or not"


@pytest.mark.parametrize("key", LIMITS)
def test_a_limit_takes_effect_at_once_but_loosens_none_of_the_users(box: Box, key: str) -> None:
    tight, loose = LIMITS[key]
    mine = project_file(box, line(key, loose))
    assert config(box)[key][1] == mine, "the user set none"
    users = user_file(box, line(key, tight))
    assert config(box)[key][1] == users
    assert f"not in force: {key} = {loose}" in box.run("config").stdout
    box.run("trust")
    assert config(box)[key][1] == mine
    project_file(box, line(key, tight))
    user_file(box, line(key, loose))
    assert config(box)[key][1] == mine, "a tighter one needs no trust"
    flag = next(option for option in options.OPTIONS if option.key == key).flags[-1]
    project_file(box, line(key, tight))
    assert config(box, flag, loose)[key][1] == flag


def test_a_projects_memory_is_at_most_the_pool(box: Box) -> None:
    project_file(box, 'memory = "9T"\n')
    env = {"SANDRUN_BACKEND": "rlimit"}
    done = box.run("--pool", "64M", "--", "echo", "ran", env=env)
    assert (done.returncode, done.stdout) == (0, "ran\n"), done.stderr
    assert "takes the whole pool" not in done.stderr
    assert box.records()[-1]["limit"] == 64 * MIB
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGESIZE")
    assert box.run("--pool", "off", "--", "true", env=env).returncode == 0
    assert int(str(box.records()[-1]["limit"])) <= memory
    box.run("trust")
    assert "takes the whole pool" in box.run("--pool", "64M", "--", "true", env=env).stderr


@pytest.mark.parametrize(
    ("flags", "variables", "user", "code"),
    [
        (["--backend", "none", "-m", "64M"], {}, "", 125),
        (["-m", "64M"], {"SANDRUN_BACKEND": "none"}, "", 0),
        (["--pids", "9"], {}, 'backend = "none"\n', 125),
        ([], {"MEMORY_LIMIT_MB": "64"}, 'backend = "none"\n', 125),
        ([], {}, 'backend = "none"\nmemory = "64M"\n', 125),
        (["--backend", "none"], {"MEMORY_LIMIT_MB": "64"}, "", 0),
        (["--backend", "none"], {}, 'memory = "64M"\n', 0),
        ([], {}, 'backend = "none"\n', 0),
        (["--backend", "none", "-t", "1h"], {}, "", 0),
    ],
)
def test_backend_none_does_not_cancel_a_limit_that_was_set_as_directly(
    box: Box, flags: "list[str]", variables: "dict[str, str]", user: str, code: int
) -> None:
    """`none` is refused like every backend that cannot enforce a limit that was set as directly.
    The project's file, here, is less direct than all of these."""
    project_file(box, 'memory = "64M"\n')
    if user:
        user_file(box, user)
    done = box.run(*flags, "--", "echo", "ran", env={"SANDRUN_BACKEND": "", **variables})
    assert (done.returncode, done.stdout) == (code, "" if code else "ran\n"), done.stderr
    assert code == 0 or "nothing would enforce" in done.stderr


def test_ignored_settings_are_reported_once_and_always_with_v(box: Box) -> None:
    mine = project_file(box, 'leftovers = "leave"\nmemory = "500M"\n')
    box.env["SANDRUN_BACKEND"] = "rlimit"
    text = (f"sandrun: {mine} is not trusted; not in force: leftovers = leave; to allow it: "
            f"sandrun trust {mine}\n")  # fmt: skip
    assert text not in box.run("-q", "--", "true").stderr
    assert text in box.run("--", "true").stderr
    assert text not in box.run("--", "true").stderr
    assert text in box.run("-v", "--", "true").stderr
    project_file(box, 'leftovers = "wait"\n')
    assert "leftovers = wait" in box.run("--", "true").stderr, "that is news"
    box.run("trust")
    assert "not trusted" not in box.run("-v", "--", "true").stderr


def test_trust_is_for_a_path_and_is_listed(box: Box) -> None:
    """The same settings in another clone are not trusted."""
    mine = project_file(box, 'backend = "rlimit"\n')
    box.run("trust")
    clone = box.root / "clone"
    shutil.copytree(box.project, clone)
    assert config(box, cwd=clone)["backend"] == ("auto", "default")
    box.run("trust", str(clone / "sandrun.toml"), cwd=box.root)
    assert config(box, cwd=clone)["backend"][0] == "rlimit"
    shutil.rmtree(clone)
    listed = box.run("trust", "--list").stdout
    assert listed.splitlines() == [f"{clone}/sandrun.toml (gone, not in force)", mine]
    assert box.run("trust", "--revoke", str(clone / "sandrun.toml")).returncode == 0
    project_file(box, 'backend = "none"\n')
    assert box.run("trust", "--list").stdout == f"{mine} (changed, not in force)\n"
    assert box.run("trust", str(box.project), cwd=box.root).returncode == 0
    assert box.run("trust", "--list").stdout == f"{mine}\n"
    assert box.run("trust", "nowhere").returncode == 125
    assert box.run("trust", "--revoke", "nowhere").returncode == 125


def test_what_a_killed_trust_of_the_same_pid_left_is_in_nobodys_way(box: Box) -> None:
    mine = project_file(box, 'backend = "rlimit"\n')
    box.run("trust")
    (entry,) = (box.home / "state/sandrun/trusted").iterdir()
    box.run("trust", "--revoke", mine)
    script = 'touch "$0.$$" && exec "$@"'
    done = box.run("trust", argv=["sh", "-c", script, str(entry), *launcher()])
    assert (done.returncode, done.stderr) == (0, "")
    assert box.run("trust", "--list").stdout == f"{mine}\n"
    box.run("trust", "--revoke", mine)
    entry.mkdir()  # what cannot be replaced leaves no file either
    before = set(entry.parent.iterdir())
    assert box.run("trust").returncode == 125
    assert set(entry.parent.iterdir()) == before


@pytest.mark.parametrize("text", [b"x /a\0b\n", b"\xff\0\n", b"", b"x relative\n"])
def test_a_damaged_entry_gives_no_trust(box: Box, text: bytes) -> None:
    project_file(box, 'backend = "rlimit"\n')
    box.run("trust")
    (entry,) = (box.home / "state/sandrun/trusted").iterdir()
    entry.write_bytes(text)
    done = box.run("trust", "--list")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert config(box)["backend"] == ("auto", "default")


def test_a_wrong_setting_is_reported_once(box: Box) -> None:
    project_file(box, "memoryy = 1\n")
    for words in (["trust"], ["trust", "--list"]):
        assert box.run(*words).stderr.count("no such setting") == 1


# Packages of a monorepo


def test_the_nearest_settings_win_and_the_queue_is_the_checkouts(box: Box) -> None:
    subprocess.run(["git", "init", "-q"], cwd=box.project, check=True)
    heavy = box.project / "packages/heavy/src"
    heavy.mkdir(parents=True)
    top = project_file(box, 'memory = "100M"\ntimeout = "50"\n')
    package = heavy.parent / "pyproject.toml"
    package.write_text('[tool.sandrun]\nmemory = "300M"\n')
    found = config(box, cwd=heavy)
    assert found["memory"] == ("300 MiB", str(package))
    assert found["timeout"] == ("50 s", top)
    assert config(box)["memory"] == ("100 MiB", top)
    for place in (heavy, box.project):
        assert box.run("config", cwd=place).stdout.splitlines()[0] == f"# project {box.project}"
    assert config(box, "-C", str(heavy), cwd=box.root)["memory"][0] == "300 MiB"
    box.env["SANDRUN_BACKEND"] = "rlimit"
    assert box.run("--", "true", cwd=heavy).returncode == 0
    assert box.records()[-1]["limit"] == 300 * MIB


def test_a_marked_directory_below_a_home_worktree_is_a_project(box: Box) -> None:
    subprocess.run(["git", "init", "-q"], cwd=box.home, check=True)
    project = box.home / "src/project"
    (project / "deep").mkdir(parents=True)
    (project / "sandrun.toml").write_text('memory = "300M"\n')
    assert config(box, cwd=project / "deep")["memory"][0] == "300 MiB"
    first = box.run("config", cwd=project / "deep").stdout.splitlines()[0]
    assert first == f"# project {project}"
    assert box.run("config", cwd=box.home / "src").stdout.startswith(f"# project {box.home}\n")


# Other users


def lay(path: Path, text: str, owner: int) -> None:
    path.write_text(text)
    os.chown(path, owner, owner)


def settled(box: Box, cwd: Path, key: str, user: "int | None" = USER, **env: str) -> str:
    done = box.run("config", cwd=cwd, user=user, env=env)
    assert done.returncode == 0, done.stderr
    return next(r.split()[-1] for r in done.stdout.splitlines() if r.startswith(key + " "))


@pytest.mark.parametrize("mode", [0o755, 0o777, 0o1777])
@pytest.mark.parametrize("name", [".git", "sandrun.toml", "pyproject.toml"])
def test_another_users_marker_above_us_chooses_nothing(open_box: Box, name: str, mode: int) -> None:
    """This holds for every mode of the directory."""
    shared = open_box.root / "shared"
    mine = shared / "mine"
    mine.mkdir(parents=True)
    shared.chmod(mode)
    os.chown(mine, USER, USER)
    if name == ".git":
        subprocess.run(["git", "init", "-q"], cwd=shared, check=True)
        subprocess.run(["chown", "-R", f"{OTHER}:{OTHER}", shared / ".git"], check=True)
    else:
        table = "[tool.sandrun]\n" if name == "pyproject.toml" else ""
        lay(shared / name, table + 'memory = "1G"\n', OTHER)
    for place in (mine, shared):
        done = open_box.run("config", cwd=place, user=USER)
        assert done.stdout.startswith(f"# project {place}\n")
        assert settled(open_box, place, "memory") == "default"
    assert not (shared / ".git/sandrun.lock").exists()


def test_all_settings_of_another_users_file_need_trust(open_box: Box) -> None:
    """As root in a user's clone (in a container that mounts it): the user's file sets nothing for
    us, unless that user ran sudo."""
    place = open_box.root / "clone"
    place.mkdir()
    os.chown(place, OTHER, OTHER)
    file = place / "sandrun.toml"
    lay(file, 'memory = "1G"\nbackend = "none"\n', OTHER)
    assert settled(open_box, place, "memory", user=None) == "default"
    assert settled(open_box, place, "memory", user=None, SUDO_UID=str(OTHER)) == str(file)
    assert settled(open_box, place, "memory", SUDO_UID=str(OTHER)) == "default"
    done = open_box.run("--", "true", cwd=place)
    assert f"{file} belongs to uid {OTHER}" in done.stderr
    assert "not trusted; not in force: all of it" in done.stderr
    lay(file, 'memory = "x"\n', OTHER)
    assert "memory is not" not in open_box.run("config", cwd=place).stderr, "it is not even read"
    lay(file, 'memory = "1G"\nbackend = "none"\n', OTHER)
    assert open_box.run("trust", cwd=place).returncode == 0
    for key in ("memory", "backend"):
        assert settled(open_box, place, key, user=None, SANDRUN_BACKEND="") == str(file)
    lay(file, 'memory = "2G"\n', OTHER)
    assert settled(open_box, place, "memory", user=None) == "default"
    assert "belongs to uid" in open_box.run("config", cwd=place).stdout


def test_trust_that_another_user_wrote_does_not_count(open_box: Box) -> None:
    place = open_box.root / "project2"
    place.mkdir()
    os.chown(place, USER, USER)
    lay(place / "sandrun.toml", 'leftovers = "leave"\n', USER)
    assert open_box.run("trust", cwd=place, user=USER).returncode == 0
    (entry,) = (open_box.home / "state/sandrun/trusted").iterdir()
    assert settled(open_box, place, "leftovers") == str(place / "sandrun.toml")
    os.chown(entry, OTHER, OTHER)
    assert settled(open_box, place, "leftovers") == "default"


def checkout(box: Box, owner: int) -> Path:
    subprocess.run(["git", "init", "-q"], cwd=box.project, check=True)
    (box.project / "build").mkdir()
    box.project.chmod(0o755)
    subprocess.run(["chown", "-R", f"{owner}:{owner}", box.project], check=True)
    os.chown(box.project / "build", 0, 0)
    return box.project


def test_root_in_a_users_checkout_joins_its_queue_and_reports_it(open_box: Box) -> None:
    """Also from a directory that root made there, and without SUDO_UID, as in a container."""
    project = checkout(open_box, USER)
    done = open_box.run("--", "sh", "-c", "echo $SANDRUN_PROJECT", cwd=project / "build")
    assert done.stdout == f"{project}\n"
    said = f"the project {project} is a checkout of uid {USER}: your runs and theirs take turns"
    assert said in done.stderr
    assert "checkout of" not in open_box.run("--", "true", cwd=project).stderr, "once"
    assert (project / ".git/sandrun.lock").stat().st_uid == USER
    os.chmod(open_box.log, 0o666)
    first = open_box.start("--", *open_box.job("one"), user=USER)
    os.chmod(open_box.root / "gate-one", 0o666)
    open_box.begun("one")
    second = open_box.start("--", *open_box.job("two"), cwd=project / "build")
    wait_for(lambda: "is held by a run that is not in this queue" in open_box.heard(second), 20)
    open_box.let("one")
    open_box.let("two")
    assert [open_box.finish(run).returncode for run in (first, second)] == [0, 0]


def test_the_owner_cannot_delay_a_user_who_may_only_read_the_checkout(open_box: Box) -> None:
    project = checkout(open_box, OTHER)
    lock = project / ".git/sandrun.lock"
    lay(lock, "", OTHER)
    lock.chmod(0o666)
    holder = open_box.start("-c", f"exec 9<{lock}; flock 9; echo held; exec sleep 1000",
                            argv=["sh"], user=OTHER)  # fmt: skip
    assert holder.stdout and holder.stdout.readline() == "held\n"
    done = open_box.run("-v", "--", "sh", "-c", "echo $SANDRUN_PROJECT", user=USER)
    assert (done.returncode, done.stdout) == (0, f"{project}\n"), done.stderr
    assert "you may not write to it" in done.stderr


def test_a_git_file_that_names_another_users_repository_gives_no_lock(open_box: Box) -> None:
    """git refuses it too (safe.directory): another user owns the git directory."""
    theirs = open_box.root / "theirs"
    theirs.mkdir()
    subprocess.run(["git", "init", "-q"], cwd=theirs, check=True)
    (theirs / ".git").chmod(0o777)
    subprocess.run(["chown", "-R", f"{OTHER}:{OTHER}", theirs], check=True)
    lay(open_box.project / ".git", f"gitdir: {theirs}/.git\n", USER)
    os.chown(open_box.project, USER, USER)
    done = open_box.run("--", "sh", "-c", "echo $SANDRUN_PROJECT", user=USER)
    assert (done.returncode, done.stdout) == (0, f"{open_box.project}\n"), done.stderr
    assert not (theirs / ".git/sandrun.lock").exists()
    subprocess.run(["chown", "-R", f"{USER}:{USER}", theirs], check=True)
    assert open_box.run("--", "true", user=USER).returncode == 0
    assert (theirs / ".git/sandrun.lock").exists(), "else the first half shows nothing"
