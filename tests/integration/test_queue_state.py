"""State in a shared /tmp, and exclusion that does not depend on it.

What another user could lay for us is laid as another user: those tests need root.
"""

import os
import shutil
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from sandrun.platform import processes
from sandrun.supervise import witness
from tests.harness import Box, launcher, wait_for

OTHER = 65534
USER = 12345


def state_of(box: Box, user: int) -> Path:
    """The state directory that `user` will use for the box's project."""
    digest = subprocess.run(
        ["sh", "-c", "pwd | sha1sum | head -c 8"],
        cwd=box.project,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    return box.state / f"seq-exec-{digest}-{user}"


def lay_directory(state: Path, outside: Path) -> None:
    state.mkdir(0o755)
    os.chown(state, OTHER, OTHER)


def lay_link_to_directory(state: Path, outside: Path) -> None:
    outside.mkdir(0o700)
    os.chown(outside, USER, USER)
    state.symlink_to(outside)
    os.chown(state, OTHER, OTHER, follow_symlinks=False)


def lay_file(state: Path, outside: Path) -> None:
    state.touch()
    os.chown(state, OTHER, OTHER)


def lay_fifo(state: Path, outside: Path) -> None:
    os.mkfifo(state)
    os.chown(state, OTHER, OTHER)


def lay_dangling_link(state: Path, outside: Path) -> None:
    state.symlink_to(outside / "nowhere")
    os.chown(state, OTHER, OTHER, follow_symlinks=False)


def lay_open_directory(state: Path, outside: Path) -> None:
    state.mkdir()
    state.chmod(0o777)
    os.chown(state, USER, USER)


@pytest.mark.parametrize(
    ("lay", "said"),
    [
        (lay_directory, f"belongs to uid {OTHER}, not to you"),
        (lay_link_to_directory, "must be a real directory of yours"),
        (lay_file, "must be a real directory of yours"),
        (lay_fifo, "must be a real directory of yours"),
        (lay_dangling_link, "must be a real directory of yours"),
        (lay_open_directory, "is writable by others (mode 777)"),
    ],
)
def test_a_state_directory_that_is_not_ours_alone_is_refused(
    open_box: Box, lay: "Callable[[Path, Path], None]", said: str
) -> None:
    """One clear line, exit 125, nothing run, and nothing followed or changed."""
    outside = open_box.root / "outside"
    lay(state_of(open_box, USER), outside)
    marker = open_box.home / "ran"
    done = open_box.run("--", "touch", str(marker), user=USER)
    assert done.returncode == 125
    assert said in done.stderr
    assert "hint:" in done.stderr
    assert not marker.exists()
    assert not outside.exists() or list(outside.iterdir()) == []


@pytest.mark.parametrize("words", [["--", "touch", "ran"], ["status"], ["kill", "--all"]])
@pytest.mark.parametrize(
    ("root", "said"),
    [
        ("state", "SANDRUN_STATE_DIR=state is not an absolute path"),
        ("./state", "is not an absolute path"),
        ("~/state", "is not an absolute path"),
        ("open", "everybody may rename entries in it (mode 777, not sticky)"),
        ("file", "Not a directory"),
        ("nowhere", "No such file or directory"),
        ("others", "Permission denied"),
    ],
)
def test_a_state_root_that_cannot_be_one_is_refused(
    open_box: Box, root: str, said: str, words: "list[str]"
) -> None:
    """One line and a hint; a relative one would be another queue in each directory."""
    box = open_box
    box.project.chmod(0o777)
    paths = {name: box.root / name for name in ("open", "file", "nowhere", "others")}
    for name in ("open", "others"):
        paths[name].mkdir()
    paths["open"].chmod(0o777)
    paths["file"].touch()
    value = str(paths.get(root, root))
    done = box.run(*words, user=USER, env={"SANDRUN_STATE_DIR": value})
    if words[0] != "--" and root in ("file", "nowhere", "others"):
        assert done.returncode in (0, 1)  # nothing runs there
        return
    assert (done.returncode, done.stdout) == (125, "")
    first, second = done.stderr.splitlines()
    assert said in first and second.startswith("sandrun: hint: ")
    assert list(box.project.iterdir()) == list(paths["open"].iterdir()) == []


def test_doctor_reports_a_state_root_that_cannot_be_one(box: Box) -> None:
    done = box.run("doctor", env={"SANDRUN_STATE_DIR": "state"}, seconds=60)
    lines = {line.split()[1]: line for line in done.stdout.splitlines() if "  " in line}
    assert lines["state"].startswith("FAIL") and "is not an absolute path" in lines["state"]
    assert "internal error" not in done.stderr


def test_an_empty_state_root_is_none(box: Box) -> None:
    done = box.run("config", env={"SANDRUN_STATE_DIR": ""})
    assert "# queue   /tmp/seq-exec-" in done.stdout


def test_two_users_do_not_see_or_touch_each_others_queue(open_box: Box) -> None:
    """In a project that neither can write: neither can have the second lock file."""
    first = open_box.start("--", *open_box.job("one"), user=USER)
    os.chmod(open_box.log, 0o666)
    os.chmod(open_box.root / "gate-one", 0o666)
    open_box.begun("one")
    state = state_of(open_box, USER)
    assert state.stat().st_uid == USER
    done = open_box.run("--", "true", user=OTHER)
    assert done.returncode == 0
    for words in (["ls", str(state)], ["touch", str(state / "x")], ["rm", "-r", str(state)]):
        assert open_box.run(*words, argv=["env"], user=OTHER).returncode != 0
    assert open_box.run("kill", "--all", user=OTHER).returncode == 1
    open_box.let("one")
    assert open_box.finish(first).returncode == 0


@pytest.mark.parametrize(
    ("name", "said"),
    [("sandrun-pool", "going on without the pool"), ("sandrun-locks", "no second lock file")],
)
def test_an_additional_protection_cannot_be_used_to_block_us(
    open_box: Box, name: str, said: str
) -> None:
    """Another user has our name for the pool, or for the second lock file: the run goes on and
    reports it."""
    lay_directory(open_box.state / f"{name}-{USER}", open_box.root)
    env = {"SANDRUN_BACKEND": "rlimit"}
    done = open_box.run("-v", "--", "echo", "ran", user=USER, env=env)
    assert (done.returncode, done.stdout) == (0, "ran\n"), done.stderr
    assert said in done.stderr
    assert f"belongs to uid {OTHER}" in done.stderr
    assert open_box.run("status", user=USER).stdout.endswith("empty\n")


@pytest.mark.parametrize("name", ["executor.lock", "queue.txt"])
@pytest.mark.parametrize("kind", ["fifo", "link", "hardlink", "directory"])
def test_odd_things_in_place_of_our_files_do_no_harm(box: Box, name: str, kind: str) -> None:
    """Refused in one line, or replaced; what a link points to is never written."""
    box.run("--", "true")
    (state,) = box.directories()
    precious = box.root / "precious"
    precious.write_text("precious")
    odd = state / name
    odd.unlink()
    match kind:
        case "fifo":
            os.mkfifo(odd)
        case "link":
            odd.symlink_to(precious)
        case "hardlink":
            os.link(precious, odd)
        case "directory":
            odd.mkdir()
    done = box.run("--", "true", seconds=20)
    if name == "executor.lock" and kind != "hardlink":
        assert done.returncode == 125
        assert f"hint: inspect it: ls -l {odd}\n" in done.stderr
    else:
        assert done.returncode == 0
    if (name, kind) != ("executor.lock", "hardlink"):  # only we could have laid that one
        assert precious.read_text() == "precious"


def test_a_full_disk_is_reported_and_nothing_runs_unqueued(box: Box) -> None:
    """On a tmpfs without a free inode, in a mount namespace of its own."""
    if os.geteuid() != 0:
        pytest.skip("needs root: mounts a small tmpfs")
    full = box.root / "full"
    full.mkdir()
    script = f"""
        mount -t tmpfs -o nr_inodes=20 none {full} || exit 99
        "$@" -- true || exit 98
        i=0; while touch {full}/$i 2>/dev/null; do i=$((i + 1)); done
        "$@" -- echo ran
    """
    env = {"SANDRUN_STATE_DIR": str(full)}
    done = box.run(*launcher(), argv=["unshare", "-m", "sh", "-c", script, "sh"], env=env)
    assert (done.returncode, done.stdout) == (125, "")
    assert "No space left on device" in done.stderr
    assert "hint: " in done.stderr


def test_a_file_system_without_fifos_is_reported(box: Box) -> None:
    """bpf's: it has directories, and nothing else that anybody could make with mknod(2)."""
    if os.geteuid() != 0:
        pytest.skip("needs root: mounts a file system of bpf's")
    odd = box.root / "odd"
    odd.mkdir()
    script = f'mount -t bpf none {odd} && chmod 700 {odd} && exec "$@"'
    words = ["-m", "sh", "-c", script, "sh", *launcher(), "--", "echo", "ran"]
    done = box.run(*words, argv=["unshare"], env={"SANDRUN_STATE_DIR": str(odd)})
    assert (done.returncode, done.stdout) == (125, "")
    first, second = done.stderr.splitlines()
    assert "cannot add a ticket to the queue" in first
    assert "a local file system that has FIFOs and locks" in second


def test_a_full_disk_costs_only_queue_txt_and_the_record(box: Box) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root: mounts a small tmpfs")
    full = box.root / "full"
    full.mkdir()
    script = f"""
        mount -t tmpfs -o size=64k none {full} || exit 99
        "$@" -- true || exit 98
        cat /dev/zero >{full}/filler 2>/dev/null
        "$@" -- echo ran
    """
    env = {"SANDRUN_STATE_DIR": str(full), "XDG_STATE_HOME": str(full)}
    done = box.run(*launcher(), argv=["unshare", "-m", "sh", "-c", script, "sh"], env=env)
    assert (done.returncode, done.stdout) == (0, "ran\n"), done.stderr


def remove(state: Path) -> None:
    """What `rm -rf` does, until it is through: somebody may be writing the view."""

    def gone() -> bool:
        shutil.rmtree(state, ignore_errors=True)
        return not state.exists()

    wait_for(gone, 20)


@pytest.mark.parametrize("git", [False, True])
def test_exclusion_survives_the_removal_of_the_state_directory(box: Box, git: bool) -> None:
    """rm -rf under a live run and two waiters: nobody overlaps, nobody is lost."""
    if git:
        subprocess.run(["git", "init", "-q"], cwd=box.project, check=True)
    first = box.hold("one")
    waiters = [box.queue_up("two"), box.queue_up("three")]
    (state,) = box.directories()
    remove(state)
    newcomer = box.start("--", *box.job("four"))
    told = "held by a run that is not in this queue"  # by whoever is the head there now
    wait_for(lambda: any(told in box.heard(run) for run in (*waiters, newcomer)), 20)
    assert [name for _, name in box.events()] == ["one"]
    box.let_all(["one", "two", "three", "four"])
    for run in (first, *waiters, newcomer):
        assert box.finish(run).returncode == 0
    events = box.events()
    assert sorted(name for _, name in events[::2]) == ["four", "one", "three", "two"]
    assert all(a == ("begin", b[1]) for a, b in zip(events[::2], events[1::2], strict=True))


def test_removal_under_a_run_whose_supervisor_dies_too(make_box: "Callable[[str], Box]") -> None:
    """The command's tree holds the second lock file; without containment nobody ends it."""
    box = make_box("none")
    first = box.hold("one")
    remove(box.directories()[0])
    first.kill()
    first.wait()
    second = box.start("--", *box.job("two"))
    wait_for(lambda: box.heard(second), 20)
    assert box.events() == [("begin", "one")]
    box.let("one")
    box.let("two")
    assert box.finish(second).returncode == 0


def repository(box: Box) -> Path:
    subprocess.run(["git", "init", "-q"], cwd=box.project, check=True)
    return box.project / ".git/sandrun.lock"


def test_a_checkout_shared_by_two_states_has_one_run(box: Box) -> None:
    """As a container that bind-mounts the checkout: another /tmp, the same git directory."""
    lock = repository(box)
    first = box.hold("one")
    assert lock.exists()
    elsewhere = box.root / "elsewhere"
    elsewhere.mkdir()
    env = {"SANDRUN_STATE_DIR": str(elsewhere)}
    second = box.start("--", *box.job("two"), env=env)
    wait_for(lambda: f"{lock} is held by a run" in box.heard(second), 20)
    assert f"pid {first.pid}" in box.heard(second)
    third = box.start("--", *box.job("three"), env=env)
    wait_for(lambda: "position 2" in box.heard(third), 20)
    fourth = box.queue_up("four")
    box.let_all(["one", "two", "three", "four"])
    for run in (first, second, third, fourth):
        assert box.finish(run).returncode == 0
    events = box.events()
    assert all(a == ("begin", b[1]) for a, b in zip(events[::2], events[1::2], strict=True))


def test_a_second_user_of_the_checkout_is_excluded(open_box: Box) -> None:
    box = open_box
    box.project.chmod(0o755)
    lock = repository(box)
    subprocess.run(["chown", "-R", f"{USER}:{USER}", box.project], check=True)
    first = box.hold("one")  # as root, in a checkout of the user's
    assert (lock.stat().st_uid, lock.stat().st_mode & 0o777) == (USER, 0o600)
    os.chmod(box.log, 0o666)
    second = box.start("--", *box.job("two"), user=USER)
    os.chmod(box.root / "gate-two", 0o666)
    wait_for(lambda: "is held by a run that is not in this queue" in box.heard(second), 20)
    box.let("one")
    box.let("two")
    assert [box.finish(run).returncode for run in (first, second)] == [0, 0]


def test_a_linked_worktree_is_a_project_of_its_own(box: Box) -> None:
    repository(box)
    git = ["git", "-c", "user.name=x", "-c", "user.email=x@x"]
    commit = [*git, "commit", "-q", "--allow-empty", "-m", "x"]
    subprocess.run(commit, cwd=box.project, check=True)
    tree = box.root / "tree"
    subprocess.run(["git", "worktree", "add", "-q", str(tree)], cwd=box.project, check=True)
    box.hold("one")
    assert box.run("--", "true", cwd=tree).returncode == 0
    assert (box.project / ".git/worktrees/tree/sandrun.lock").exists()


def test_a_read_only_checkout_goes_on_without_it(box: Box) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root: mounts the checkout read-only")
    repository(box)
    script = f"mount --bind {box.project} {box.project} && mount -o remount,ro,bind {box.project}"
    script += ' && cd . && exec "$@"'
    words = ["-v", "--", "echo", "ran"]
    done = box.run(*launcher(), *words, argv=["unshare", "-m", "sh", "-c", script, "sh"])
    assert (done.returncode, done.stdout) == (0, "ran\n")
    assert "no second lock file" in done.stderr
    assert "Read-only file system" in done.stderr


@pytest.mark.parametrize("kind", ["fifo", "link", "directory"])
def test_odd_things_in_place_of_the_second_lock_file(box: Box, kind: str) -> None:
    """It is a net only: the run goes on without, and what a link points to is never made."""
    lock = repository(box)
    match kind:
        case "fifo":
            os.mkfifo(lock)
        case "link":
            lock.symlink_to(box.root / "made")
        case "directory":
            lock.mkdir()
    done = box.run("-v", "--", "echo", "ran", seconds=20)
    assert (done.returncode, done.stdout) == (0, "ran\n")
    assert "no second lock file" in done.stderr
    assert not (box.root / "made").exists()


def test_a_run_inside_a_run_with_another_state_does_not_wait_for_itself(box: Box) -> None:
    """The second lock file is proved to be held by an enclosing run, so it is not waited for."""
    repository(box)
    inner = " ".join(launcher())
    elsewhere = box.root / "elsewhere"
    elsewhere.mkdir()
    script = f"SANDRUN_STATE_DIR={elsewhere} {inner} --wait-timeout 20 -- echo inner"
    done = box.run("--", "sh", "-c", script)
    assert (done.returncode, done.stdout) == (0, "inner\n")


def live_processes(box: Box) -> "set[int]":
    """The live ones, but for a run's witness, which comes when the run is 2 ms old."""
    found = set()
    for pid in box.leftovers():
        try:
            if processes.Stat(pid).name != witness.NAME:
                found.add(pid)
        except OSError:
            continue  # it is gone
    return found


def test_a_waiter_for_the_second_lock_file_leaves_at_once_and_leaves_nothing(box: Box) -> None:
    repository(box)
    box.hold("one")
    elsewhere = box.root / "elsewhere"
    elsewhere.mkdir()
    second = box.start("--", "true", env={"SANDRUN_STATE_DIR": str(elsewhere)})
    wait_for(lambda: "is held by a run" in box.heard(second), 20)
    # The message is written before the helper is started.
    wait_for(lambda: len(live_processes(box)) == 4, 20, "a run, its shell, a waiter, its helper")
    second.send_signal(signal.SIGINT)
    assert box.finish(second).returncode == 130
    wait_for(lambda: len(live_processes(box)) == 2, 20, "the first run, its shell, nothing else")


def test_a_killed_waiter_for_the_second_lock_file_leaves_nothing(box: Box) -> None:
    """Its helper sleeps in flock(2) for it, and dies with it."""
    repository(box)
    box.hold("one")
    elsewhere = box.root / "elsewhere"
    elsewhere.mkdir()
    second = box.start("--", "true", env={"SANDRUN_STATE_DIR": str(elsewhere)})
    wait_for(lambda: len(live_processes(box)) == 4, 20, "a run, its shell, a waiter, its helper")
    second.kill()
    box.finish(second)  # its output ends, so the helper does not hold it
    wait_for(lambda: len(live_processes(box)) == 2, 20)
