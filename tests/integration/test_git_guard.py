"""`sandrun git`: waiting for a turn and for lock files, and when it does not wait."""

import hashlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from sandrun.platform import processes
from tests.gitbox import GIT, GitBox, heard, is_free, is_queued, wait_for, watches
from tests.harness import SCALE


@pytest.fixture
def box(tmp_path: Path) -> Iterator[GitBox]:
    made = GitBox(tmp_path)
    yield made
    made.close()


def _lock(box: GitBox, name: str = "index.lock") -> Path:
    path = box.repo / ".git" / name
    path.touch()
    return path


# Waiting


def test_a_guarded_git_waits_for_another(box: GitBox) -> None:
    first = box.guarded("commit", "--allow-empty", GIT_EDITOR=box.editor("one"))
    box.reached("one")
    (box.repo / "b").write_text("b")
    second = box.guarded("add", "b")
    wait_for(lambda: is_queued(second), "add queues behind commit")
    # Long enough for the line that says so, which names the process.
    line = heard(second)
    assert line.startswith(f"sandrun: {box.repo}: waiting for git commit --allow-empty (pid ")
    assert f"(pid {first.pid}, for" in line
    assert second.poll() is None
    box.let("one")
    assert box.end(first)[0] == 0
    assert box.end(second) == (0, ""), "one line in all"
    assert "A  b" in box.bare("status", "--short")


def test_a_guarded_git_waits_for_a_foreign_lock(box: GitBox) -> None:
    (box.repo / "a").write_text("two\n")
    foreign = box.start(GIT, "commit", "-a", GIT_EDITOR=box.editor("one"))
    box.reached("one")
    assert (box.repo / ".git/index.lock").exists()
    (box.repo / "b").write_text("b")
    second = box.guarded("add", "b")
    wait_for(lambda: watches(second), "add waits by inotify")
    assert second.poll() is None
    box.let("one")
    assert box.end(foreign)[0] == 0
    code, said = box.end(second)
    assert (code, "b" in box.bare("ls-files")) == (0, True), said


@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("HEAD.lock", ["commit", "--allow-empty", "-qm", "x"]),
        ("refs/heads/main.lock", ["commit", "--allow-empty", "-qm", "x"]),
        ("packed-refs.lock", ["branch", "-D", "old"]),
        ("config.lock", ["config", "a.b", "c"]),
        ("index.lock", ["rm", "-q", "a"]),
        ("shallow.lock", ["fetch", "-q", "."]),
        ("reftable/tables.list.lock", ["branch", "new"]),
        ("objects/maintenance.lock", ["maintenance", "run"]),
        ("objects/pack/multi-pack-index.lock", ["multi-pack-index", "write"]),
        ("objects/info/commit-graph.lock", ["commit-graph", "write", "--reachable"]),
        ("gc.pid.lock", ["gc", "-q"]),
    ],
)
def test_each_lock_is_waited_for(box: GitBox, name: str, args: list[str]) -> None:
    box.bare("branch", "old")
    box.bare("pack-refs", "--all")
    box.bare("repack", "-adq")
    (box.repo / ".git/reftable").mkdir()
    lock = _lock(box, name)
    process = box.guarded(*args)
    wait_for(lambda: watches(process), f"{args[0]} waits for {name}")
    lock.unlink()
    code, said = box.end(process)
    assert code == 0, said


def test_the_reftable_of_a_linked_worktree_is_waited_for(box: GitBox) -> None:
    """Its HEAD is there."""
    other = box.root / "other"
    box.bare("worktree", "add", "-q", other, "-b", "side")
    lock = box.repo / ".git/worktrees/other/reftable/tables.list.lock"
    lock.parent.mkdir()
    lock.touch()
    process = box.guarded("commit", "-q", "--allow-empty", "-m", "x", cwd=other)
    wait_for(lambda: watches(process), "the commit waits for reftable's lock")
    lock.unlink()
    assert box.end(process)[0] == 0


def test_other_indexes_have_other_locks(box: GitBox) -> None:
    _lock(box)
    box.bare("read-tree", "HEAD", GIT_INDEX_FILE=".git/other")
    code, said = box.git("update-index", "--refresh", GIT_INDEX_FILE=".git/other")
    assert (code, said) == (0, "")
    other = _lock(box, "other.lock")
    process = box.guarded("update-index", "--refresh", GIT_INDEX_FILE=".git/other")
    wait_for(lambda: watches(process), "the lock of the other index is waited for")
    other.unlink()
    assert box.end(process)[0] == 0


def test_at_the_deadline_git_reports_the_lock_itself(box: GitBox) -> None:
    _lock(box)
    plain = box.end(box.start(GIT, "add", "a"))
    code, said = box.git("add", "a", SANDRUN_GIT_WAIT="0.6")
    assert code == plain[0] == 128
    assert said.endswith(plain[1])
    first, second, hint, _ = said.split("\n", 3)
    assert first.startswith(f"sandrun: {box.repo}: waiting for an unknown process, which has held")
    assert second.endswith("; running git anyway")
    assert hint.endswith(f"if no git is active there: sandrun git -C {box.repo} unlock")


def test_git_runs_exactly_once(box: GitBox) -> None:
    """Also at the deadline, when git fails, and through an alias."""
    count = box.root / "count"
    box.hook("pre-commit", f"echo run >>{count}; exit 1")
    box.bare("config", "alias.ci", "commit --allow-empty -m x")
    _lock(box, "HEAD.lock")  # which the hook comes before
    assert box.git("ci", SANDRUN_GIT_WAIT="0.5")[0] == 1
    assert count.read_text() == "run\n"


def test_git_wait_0_does_not_wait(box: GitBox) -> None:
    _lock(box)
    code, said = box.git("add", "a", SANDRUN_GIT_WAIT="0")
    assert code == 128
    assert "sandrun" not in said


def test_turns_are_granted_in_order_of_arrival(box: GitBox) -> None:
    holder = box.guarded("commit", "--allow-empty", GIT_EDITOR=box.editor("one"))
    box.reached("one")
    waiters = []
    for number in range(6):
        waiters.append(box.guarded("commit", "-q", "--allow-empty", "-m", f"w{number}"))
        wait_for(lambda: is_queued(waiters[-1]), f"waiter {number} queues")
    box.let("one")
    assert [box.end(process)[0] for process in [holder, *waiters]] == [0] * 7
    subjects = box.bare("log", "--reverse", "--format=%s").split()
    assert subjects == ["first", "edited", *(f"w{number}" for number in range(6))]


def _wake_ups(pid: int) -> str:
    status = Path(f"/proc/{pid}/status").read_text()
    return status.partition("\nvoluntary_ctxt_switches:")[2]


def test_the_status_line_does_not_cost_the_place_in_the_queue(box: GitBox) -> None:
    """A waiter that leaves the kernel's queue loses its place, so it must not wake up."""
    holder = box.guarded("commit", "--allow-empty", GIT_EDITOR=box.editor("one"))
    box.reached("one")
    waiter = box.guarded("add", "a")
    wait_for(lambda: is_queued(waiter), "the waiter queues")
    wait_for(lambda: processes.Stat(waiter.pid).state == "S", "and sleeps")
    before = _wake_ups(waiter.pid)
    assert "waiting for" in heard(waiter)
    assert _wake_ups(waiter.pid) == before != ""
    box.let("one")
    assert [box.end(process)[0] for process in (holder, waiter)] == [0, 0]


def test_git_runs_although_our_message_goes_to_a_closed_pipe(box: GitBox) -> None:
    holder = box.guarded("commit", "--allow-empty", GIT_EDITOR=box.editor("one"))
    box.reached("one")
    (box.repo / "new").touch()
    waiter = box.sandrun("--git-wait", "0.3", "git", "add", "new")
    assert waiter.stdout
    waiter.stdout.close()
    assert waiter.wait(30 * SCALE) == 0  # after a warning to a closed pipe
    assert "new" in box.bare("ls-files")
    box.let("one")
    assert box.end(holder)[0] == 0


def test_a_stopped_waiter_stalls_nobody(box: GitBox) -> None:
    holder = box.guarded("commit", "--allow-empty", GIT_EDITOR=box.editor("one"))
    box.reached("one")
    stopped = box.guarded("commit", "-q", "--allow-empty", "-m", "stopped")
    wait_for(lambda: is_queued(stopped), "the first waiter queues")
    third = box.guarded("commit", "-q", "--allow-empty", "-m", "third")
    wait_for(lambda: is_queued(third), "the second waiter queues")
    os.kill(stopped.pid, signal.SIGSTOP)
    box.let("one")
    assert box.end(holder)[0] == 0
    assert box.end(third)[0] == 0
    os.kill(stopped.pid, signal.SIGCONT)
    assert box.end(stopped)[0] == 0


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_signal_ends_a_waiter_as_it_would_end_git(box: GitBox, signum: int) -> None:
    holder = box.guarded("commit", "--allow-empty", GIT_EDITOR=box.editor("one"))
    box.reached("one")
    waiter = box.guarded("add", "a")
    wait_for(lambda: is_queued(waiter), "the waiter queues")
    waiter.send_signal(signum)
    assert box.end(waiter)[0] == -signum
    box.let("one")
    assert box.end(holder)[0] == 0


def test_a_killed_holder_frees_its_turn_at_once(box: GitBox) -> None:
    holder = box.guarded("commit", "--allow-empty", GIT_EDITOR=box.editor("one"))
    box.reached("one")
    waiter = box.guarded("add", "a")
    wait_for(lambda: is_queued(waiter), "the waiter queues")
    holder.kill()
    code, said = box.end(waiter)
    assert code == 0, said


# What does not wait


FOREIGN = {
    "a shell alias": ("lg", "!f() {{ git log | {pager}; }}; f"),
    "a program": ("cola", ""),
    "an alias to it": ("c", "cola"),
}


@pytest.mark.parametrize("how", FOREIGN)
def test_a_foreign_command_waits_and_holds_no_turn(box: GitBox, how: str) -> None:
    """`git lg` may be a pager, `git cola` a window: they live as long as they are used."""
    word, alias = FOREIGN[how]
    programs = box.root / "programs"
    programs.mkdir()
    for name in ("pager", "git-cola"):
        text = f"#!/bin/sh\n{box.gate(name)}\n"
        (programs / name).write_text(text + "git commit -q --allow-empty -m inner\n")
        (programs / name).chmod(0o755)
    if alias:
        box.bare("config", f"alias.{word}", alias.format(pager=programs / "pager"))
    path = f"{programs}:{box.env['PATH']}"
    holder = box.guarded("commit", "--allow-empty", GIT_EDITOR=box.editor("one"))
    box.reached("one")
    window = box.guarded(word, PATH=path)
    wait_for(lambda: is_queued(window), "it waits before it starts")
    box.let("one")
    assert box.end(holder)[0] == 0
    gate = "pager" if alias.startswith("!") else "git-cola"
    box.reached(gate)
    assert all(is_free(box.repo / ".git", byte) for byte in range(4))
    for line in ("commit -q --allow-empty -m outer", "branch new", "gc -q"):
        assert box.git(*line.split(), SANDRUN_GIT_WAIT="999") == (0, "")
    box.let(gate)
    assert box.end(window) == (0, "")
    assert box.bare("log", "--format=%s", "-2").split() == ["inner", "outer"]


def test_git_commands_below_a_foreign_one_take_turns_with_all_others(box: GitBox) -> None:
    """The foreign command holds no turn, so its children take turns with all others."""
    programs = box.root / "programs"
    programs.mkdir()
    (programs / "git-cola").write_text(
        f"#!/bin/sh\n{box.gate('cola')}\nexec {box.sandrun_text()} git add a\n"
    )
    (programs / "git-cola").chmod(0o755)
    window = box.guarded("cola", PATH=f"{programs}:{box.env['PATH']}")
    box.reached("cola")
    holder = box.guarded("commit", "--allow-empty", GIT_EDITOR=box.editor("one"))
    box.reached("one")
    box.let("cola")
    assert "waiting for git commit" in heard(window)
    box.let("one")
    assert [box.end(process)[0] for process in (holder, window)] == [0, 0]


def test_a_daemon_of_a_hook_holds_no_turn(box: GitBox) -> None:
    """It inherits all descriptors of git and outlives it."""
    box.hook("post-commit", f"({box.gate('daemon')}) >/dev/null 2>&1 & echo $! >{box.root}/pid")
    assert box.git("commit", "-q", "--allow-empty", "-m", "x")[0] == 0
    box.reached("daemon")
    daemon = int((box.root / "pid").read_text())
    opened = [os.readlink(f"/proc/{daemon}/fd/{fd}") for fd in os.listdir(f"/proc/{daemon}/fd")]
    assert any(path.endswith("/sandrun-guard") for path in opened), "else this shows nothing"
    assert all(is_free(box.repo / ".git", byte) for byte in range(4))
    code, said = box.git("commit", "-q", "--allow-empty", "-m", "y", SANDRUN_GIT_WAIT="60")
    assert (code, said) == (0, "")
    box.let("daemon")


def test_a_daemon_of_git_holds_no_turn(box: GitBox) -> None:
    """credential-cache--daemon, started by a guarded command."""
    socket = box.root / "home/socket"
    socket.parent.chmod(0o700)
    store = f"credential-cache --timeout=60 --socket={socket}"
    secret = "protocol=https\\nhost=h\\nusername=u\\npassword=p\\n\\n"
    box.bare("config", "alias.keep", f"!printf '{secret}' | git {store} store")
    assert box.git("keep")[0] == 0
    try:
        assert socket.exists(), "the daemon is there"
        assert all(is_free(box.repo / ".git", byte) for byte in range(4))
    finally:
        box.bare(*store.split(), "exit")


def test_gc_in_the_background_holds_no_turn(box: GitBox) -> None:
    """`gc --auto` detaches from the commit that started it; here it is stopped after that."""
    inner = box.root / "exec-path"
    inner.mkdir()
    gate = f'case "$1" in repack) {box.gate("repack")};; esac'
    (inner / "git").write_text(f'#!/bin/sh\n{gate}\nexec {GIT} "$@"\n')
    (inner / "git").chmod(0o755)
    box.bare("config", "gc.auto", "1")
    # gc counts the loose objects in the folder 17 only and multiplies.
    texts = (f"{number}".encode() for number in range(9999))
    named = {hashlib.sha1(b"blob %d\0%s" % (len(text), text)).hexdigest(): text for text in texts}
    for text in [text for name, text in named.items() if name.startswith("17")][:3]:
        (box.repo / "blob").write_bytes(text)
        box.bare("hash-object", "-w", "blob")
    code, said = box.git("commit", "-q", "--allow-empty", "-m", "x", GIT_EXEC_PATH=str(inner))
    assert code == 0, said
    box.reached("repack")
    assert (box.repo / ".git/gc.pid").exists()
    assert all(is_free(box.repo / ".git", byte) for byte in range(4))
    assert box.git("commit", "-q", "--allow-empty", "-m", "y") == (0, "")
    box.let("repack")
    wait_for(lambda: not (box.repo / ".git/gc.pid").exists(), "the collector ends")


def test_a_reading_command_never_waits(box: GitBox) -> None:
    holder = box.guarded("commit", "--allow-empty", GIT_EDITOR=box.editor("one"))
    box.reached("one")
    for name in ("index.lock", "HEAD.lock", "packed-refs.lock", "config.lock"):
        _lock(box, name)
    for line in ("status --short", "log --oneline", "diff", "branch", "tag", "stash list"):
        plain = box.end(box.start(GIT, *line.split()))
        assert box.git(*line.split(), SANDRUN_GIT_WAIT="999") == plain
    box.let("one")
    holder.kill()


READS = """
annotate a | archive HEAD | blame a | branch | branch -a | branch --contains HEAD | cat-file -p HEAD
check-attr -a a | check-ignore a | check-ref-format refs/heads/x | cherry HEAD HEAD | config -l
config user.name | describe --all --dirty | diff | diff HEAD | diff --stat
diff-files | diff-index HEAD | diff-tree HEAD | fast-export HEAD | for-each-ref
format-patch --stdout --root HEAD | fsck | grep one | log -p | ls-files | ls-remote . | ls-tree HEAD
merge-base HEAD HEAD | name-rev HEAD | notes | range-diff HEAD HEAD HEAD | reflog | remote -v
rev-list HEAD | rev-parse HEAD | shortlog HEAD | show | show-branch | show-ref | stash list
status | status --short --branch | submodule status | symbolic-ref HEAD | tag -n9 | tag -l x
tag | var GIT_AUTHOR_IDENT | version | worktree list | clean -n
sparse-checkout list | bisect log | rerere status | hash-object -w a | mktree --missing
commit-tree HEAD^{tree} -m x
"""


def test_reading_commands_work_with_all_locks_held(box: GitBox) -> None:
    """While all of git's locks are held, each prints the same as without."""
    names = ("index", "HEAD", "packed-refs", "config", "refs/heads/main", "shallow", "ORIG_HEAD")
    box.bare("config", "core.fsmonitor", "false")
    os.utime(box.repo / "a", (1, 1))  # makes status and diff refresh the index
    lines = [line.strip() for line in READS.replace("\n", "|").split("|") if line.strip()]
    fixed = {"GIT_AUTHOR_DATE": "1 +0000", "GIT_COMMITTER_DATE": "1 +0000"}
    quiet = {**fixed, "GIT_OPTIONAL_LOCKS": "0"}
    for _ in range(2):  # some write objects, which fsck then reports
        before = {line: box.end(box.start(GIT, *line.split(), **quiet)) for line in lines}
    for name in names:
        _lock(box, name + ".lock")
    for line in lines:
        branch = box.repo / ".git/refs/heads/main.lock"
        branch.unlink() if line == "fsck" else branch.touch()  # since git 2.48 a bad ref to fsck
        assert (line, box.end(box.start(GIT, *line.split(), **quiet))) == (line, before[line])
    assert len([1 for code, _ in before.values() if code == 0]) > len(lines) - 8


def test_worktrees_commit_side_by_side(box: GitBox) -> None:
    other = box.root / "other"
    box.bare("worktree", "add", "-q", other, "-b", "side")
    holder = box.guarded("commit", "--allow-empty", GIT_EDITOR=box.editor("one"))
    box.reached("one")
    code, said = box.git("commit", "-q", "--allow-empty", "-m", "x", cwd=other)
    assert (code, said) == (0, "")
    for line in ("branch new", "tag new", "stash list", "config a.b c", "checkout -q -b newer"):
        assert box.git(*line.split(), cwd=other) == (0, "")
    collector = box.guarded("gc", "-q", cwd=other)  # needs everything for itself
    wait_for(lambda: is_queued(collector), "gc waits for both worktrees")
    box.let("one")
    assert box.end(holder)[0] == 0
    assert box.end(collector)[0] == 0


def test_a_fetch_does_not_delay_commits(box: GitBox) -> None:
    origin = box.make(box.root / "origin")
    box.bare("remote", "add", "origin", origin)
    slow = f"{box.gate('net')}; git-upload-pack"
    fetching = box.guarded("fetch", "-q", f"--upload-pack={slow} #", "origin")
    box.reached("net")
    for line in ("commit -q --allow-empty -m x", "branch new", "checkout -q new"):
        assert box.git(*line.split()) == (0, "")
    second = box.guarded("fetch", "-q", "origin")
    wait_for(lambda: is_queued(second), "a second fetch takes turns with the first")
    fetching.kill()
    assert box.end(second)[0] == 0
