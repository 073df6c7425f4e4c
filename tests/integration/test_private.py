"""A /tmp and IPC of a run's own: nothing of the run stays there, and all or nothing is in force."""

import errno
import os
import shutil
import signal
import socket
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sandrun.lifecycle import isolation, namespaces
from sandrun.queue.state import state_path
from tests.harness import ON_MACOS, Box, alive, launcher, pretending, wait_for, without_note

PRIVATE = ("--private-tmp", "--private-ipc")
USER = ["--user", "--map-current-user", "--keep-caps"]
OWN = ["unshare", *([] if os.geteuid() == 0 else USER), "--mount", "--ipc"]
"""Namespaces in which a test may change what the kernel allows."""
PLACES = ("/tmp", "/var/tmp", "/dev/shm")
LEAVE = """
import ctypes, os, sys
from pathlib import Path
name, *places = sys.argv[1:]
libc = ctypes.CDLL(None)
key = int(name[:7], 16)
assert libc.shmget(key, 4096, 0o1600) >= 0 and libc.semget(key, 1, 0o1600) >= 0
assert libc.mq_open(b"/" + name.encode(), 0o102, 0o600, None) >= 0
print(*(os.listdir("/dev/mqueue") if os.path.isdir("/dev/mqueue") else [name]))
for place in places:
    print(place, *os.listdir(place))
    Path(place, name).write_text("left")
"""
"""Leaves a file in each of some directories, a SysV segment, semaphores and a message queue."""


@pytest.fixture(params=["auto", "none"])
def own(request: pytest.FixtureRequest, make_box: "Callable[[str], Box]") -> Box:
    """A box in which runs can have a /tmp of their own."""
    if ON_MACOS:
        pytest.skip("not on macOS: no namespaces")
    if subprocess.run([*OWN, "true"], capture_output=True, check=False).returncode:
        pytest.skip("needs namespaces")
    return make_box(request.param)


@pytest.fixture
def name() -> "Iterator[str]":
    """A name that nobody else has; what `LEAVE` left of it outside is removed."""
    found = uuid.uuid4().hex
    yield found
    for place in PLACES:
        Path(place, found).unlink(missing_ok=True)
    key = f"0x{found[:7]}"
    subprocess.run(["ipcrm", "-M", key, "-S", key], capture_output=True, check=False)
    unlink = "import ctypes, sys; ctypes.CDLL(None).mq_unlink(b'/' + sys.argv[1].encode())"
    subprocess.run([sys.executable, "-c", unlink, found], check=True)


def left(name: str) -> "list[str]":
    """What of `LEAVE` there is outside."""
    found = [place for place in PLACES if Path(place, name).exists()]
    for kind in ("shm", "sem"):
        lines = Path(f"/proc/sysvipc/{kind}").read_text().splitlines()[1:]
        found += [kind for line in lines if int(line.split()[0]) == int(name[:7], 16)]
    opened = "import ctypes, sys; print(ctypes.CDLL(None).mq_open(b'/' + sys.argv[1].encode(), 0))"
    done = subprocess.run(
        [sys.executable, "-c", opened, name], capture_output=True, text=True, check=True
    )
    return found + (["mq"] if int(done.stdout) >= 0 else [])


def test_a_run_leaves_nothing(own: Box, name: str, tmp_path: Path) -> None:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    (temporary / "older").touch()
    words = [sys.executable, "-c", LEAVE, name, *PLACES, str(temporary)]
    done = own.run(*PRIVATE, "--", *words, env={"TMPDIR": str(temporary)})
    assert done.returncode == 0, done.stderr
    assert "outlives" not in done.stderr
    assert left(name) == []
    assert list(temporary.iterdir()) == [temporary / "older"]
    queues, *_, last = done.stdout.splitlines()
    assert queues == name, "only its own are listed"
    assert last == str(temporary), "and there was nothing in it"


@pytest.mark.parametrize(
    ("option", "leaves"),
    [("--private-tmp", ["/dev/shm", "shm", "sem", "mq"]), ("--private-ipc", ["/tmp", "/var/tmp"])],
)
def test_each_option_is_about_its_own(own: Box, name: str, option: str, leaves: list[str]) -> None:
    done = own.run(option, "--", sys.executable, "-c", LEAVE, name, *PLACES)
    assert done.returncode == 0, done.stderr
    assert left(name) == leaves


def test_a_setting_does_the_same(own: Box, name: str) -> None:
    words = ["--", sys.executable, "-c", LEAVE, name, *PLACES]
    own.run(*words, env={"SANDRUN_PRIVATE_TMP": "1", "SANDRUN_PRIVATE_IPC": "yes"})
    assert left(name) == []
    config = own.home / "config/sandrun/config.toml"
    config.parent.mkdir(parents=True)
    config.write_text("private_tmp = true\nprivate_ipc = true\n")
    own.run(*words)
    assert left(name) == []


def test_the_command_is_what_it_would_be(own: Box) -> None:
    """Process, user, rights, directory and ends."""
    script = 'echo $$ $PPID "$(id -u):$(id -g)" "$(pwd)"; grep CapEff /proc/self/status; kill -9 $$'
    (own.project / "here").mkdir()
    run = own.start(*PRIVATE, "--", "sh", "-c", script, cwd=own.project / "here")
    done = own.finish(run)
    assert done.returncode == 137
    first, rights = done.stdout.splitlines()
    _, parent, user, where = first.split()
    assert (int(parent), where) == (run.pid, str(own.project / "here"))
    assert user == f"{os.geteuid()}:{os.getegid()}"
    bare = Path("/proc/self/status").read_text()
    assert rights in bare.splitlines()
    assert own.run(*PRIVATE, "--", "sh", "-c", "exit 7").returncode == 7
    assert own.run(*PRIVATE, "--", "no-such-command").returncode == 127
    other = own.start(*PRIVATE, "--", "sh", "-c", "trap 'exit 9' TERM; echo up; read _", stdin=-1)
    assert other.stdout
    assert other.stdout.readline() == "up\n"
    other.send_signal(signal.SIGTERM)
    assert other.wait(20) == 9


def test_a_user_is_alone_in_a_namespace(own: Box) -> None:
    """Root is not. There set-user-ID programs gain nothing (AT_SECURE in getauxval(3)), and what
    others own is nobody's."""
    script = 'readlink /proc/self/ns/user; stat -c %u /; LD_SHOW_AUXV=1 "$(command -v su)" --help'
    said = own.run(*PRIVATE, "--", "sh", "-c", script).stdout
    namespace, owner, *helped = said.splitlines()
    is_root = os.geteuid() == 0
    assert (namespace == os.readlink("/proc/self/ns/user")) == is_root
    assert (int(owner) == os.stat("/").st_uid) == is_root
    assert any(line.split() == ["AT_SECURE:", "0"] for line in helped)


def test_what_the_command_needs_is_there(own: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    """Below a directory of the run's own; all else there is out of sight."""
    root = own.root
    subprocess.run(["git", "init", "-q", str(root / "main")], check=True)
    name = "git -c user.name=a -c user.email=a@b"
    commit = f"{name} -C '{root}/main' commit -q --allow-empty -m 1"
    subprocess.run(commit, shell=True, check=True)
    worktree = ["worktree", "add", "-q", str(root / "linked")]
    subprocess.run(["git", "-C", str(root / "main"), *worktree], check=True)
    (root / "venv/bin").mkdir(parents=True)
    (root / "venv/lib").mkdir()
    (root / "venv/lib/data").write_text("data\n")
    for at in ("venv/bin/tool", "program"):
        (root / at).write_text(f"#!/bin/sh\ncat {root}/venv/lib/data\n")
        (root / at).chmod(0o755)
    (root / "hidden").touch()
    (root / "link").symlink_to(own.home)
    with socket.socket(socket.AF_UNIX) as agent:
        monkeypatch.chdir(root)  # a socket's name has 107 bytes at most
        agent.bind("agent")
        agent.listen()
        env = {
            "PATH": f"{root}/venv/bin:{own.env['PATH']}",
            "HOME": f"{root}/link",
            "SSH_AUTH_SOCK": f"{root}/agent",
            "DBUS_SESSION_BUS_ADDRESS": f"unix:path={root}/agent,guid=00",
            "TMPDIR": str(root / "linked/temporary"),
            "TEMP": str(root),
        }
        (root / "linked/temporary").mkdir()
        (root / "linked/temporary/older").touch()
        script = (
            f"set -e; test ! -e ../hidden; tool; test -S {root}/agent; cd ~; "
            f"test ! -e {root}/hidden; cd {root}/linked; git status --short; "
            f"{name} commit -q --allow-empty -m 2; ls $TMPDIR; touch kept $TMPDIR/lost; mktemp"
        )
        linked = root / "linked"
        done = own.run(*PRIVATE, "--", "sh", "-c", script, env=env, cwd=linked)
    assert (done.returncode, without_note(done.stderr)) == (0, ""), done.stdout
    said = done.stdout.splitlines()
    assert said[0] == "data"
    assert said[-1].startswith(f"{root}/linked/temporary/")
    assert sorted(path.name for path in linked.iterdir()) == [".git", "kept", "temporary"]
    assert list((linked / "temporary").iterdir()) == [linked / "temporary/older"]
    assert own.run(*PRIVATE, "--", root / "program", cwd=linked, env=env).stdout == "data\n"


def test_a_socket_of_the_display_is_seen() -> None:
    for display in (":7", "unix:7.1"):
        assert "/tmp/.X11-unix/X7" in isolation.named({"DISPLAY": display})
    assert list(isolation.named({"DISPLAY": "host:7"})) == []


def test_a_directory_that_would_hide_the_project_is_refused(own: Box) -> None:
    done = own.run(*PRIVATE, "--", "touch", "started", env={"TMPDIR": str(own.project)})
    assert done.returncode == 125
    assert done.stderr == (
        f"sandrun: the run cannot have a {own.project} of its own: its project or directory is "
        "there\nsandrun: hint: start in a directory below it, or have TMPDIR name another one\n"
    )
    assert not (own.project / "started").exists()


@pytest.mark.parametrize("variable", ["HOME", "XDG_RUNTIME_DIR", "PATH"])
def test_a_directory_that_is_for_more_than_temporary_files_is_refused(
    own: Box, variable: str
) -> None:
    """What the run writes there would be lost, and what is there could not be found."""
    needed = own.root / "needed"
    needed.mkdir()
    (own.root / "link").symlink_to(needed)
    value = f"{own.env['PATH']}:{needed}" if variable == "PATH" else str(needed)
    env = {variable: value, "TMPDIR": str(own.root / "link")}
    done = own.run("--private-tmp", "--", "touch", needed / "lost", env=env)
    assert done.returncode == 125
    assert done.stderr == (
        f"sandrun: the run cannot have a {needed} of its own: {variable} names it\n"
        "sandrun: hint: have TMPDIR name another one\n"
    )


def test_a_home_in_place_of_tmp_is_refused(own: Box) -> None:
    done = own.run("--private-tmp", "--", "true", env={"HOME": "/tmp"})
    assert done.returncode == 125
    assert done.stderr.startswith("sandrun: the run cannot have a /tmp of its own: HOME names it\n")


def test_other_variables_may_name_a_directory_for_temporary_files(own: Box) -> None:
    """By their names they are about such files."""
    temporary = own.root / "temporary"
    temporary.mkdir()
    env = dict.fromkeys(("TMPDIR", "SLURM_TMPDIR", "RUNNER_TEMP"), str(temporary))
    done = own.run("--private-tmp", "--", "sh", "-c", "touch $RUNNER_TEMP/lost && mktemp", env=env)
    assert done.stdout.startswith(f"{temporary}/"), done.stderr
    assert list(temporary.iterdir()) == []


def test_names_through_links_lead_where_they_led(own: Box) -> None:
    """TMPDIR, HOME and PWD, by links below a directory of the run's own."""
    (own.root / "real/temporary").mkdir(parents=True)
    (own.root / "real/older").touch()
    for name, target in (("link", "real"), ("home-link", own.home), ("here", own.project)):
        (own.root / name).symlink_to(target)
    env = {
        "TEMP": str(own.root),
        "TMPDIR": f"{own.root}/link/temporary",
        "HOME": f"{own.root}/home-link",
        "PWD": f"{own.root}/here",
    }
    script = (
        'set -e; mktemp; readlink "$HOME"; pwd -L; echo kept >"$HOME/kept"; touch "$PWD/kept"; '
        'test "$TMPDIR" -ef ../real/temporary; test ! -e ../real/older'
    )
    done = own.run("--private-tmp", "--", "sh", "-c", script, env=env, cwd=own.root / "here")
    assert done.returncode == 0, done.stderr
    made, *others = done.stdout.splitlines()
    assert made.startswith(f"{own.root}/link/temporary/")
    assert others == [str(own.home), f"{own.root}/here"]
    assert (own.home / "kept").exists()
    assert (own.project / "kept").exists()
    assert list((own.root / "real/temporary").iterdir()) == []


@pytest.mark.parametrize("again", ["", "mkdir ../gone; touch ../gone/other;"])
def test_a_removed_directory_is_no_obstacle(own: Box, again: str) -> None:
    """The command starts there as without the option, also if another one has its name now."""
    tool = own.project / "tool"
    tool.write_text("#!/bin/sh\nreadlink /proc/self/cwd; ls -A; ls -d ../tool; echo end\n")
    tool.chmod(0o755)
    script = f'mkdir gone; cd gone; rmdir ../gone; {again} "$@"; set $?; rm -rf ../gone; exit $1'
    for words in (["sh", "../tool"], ["../tool"]):
        said = []
        for options in ([], ["--private-tmp"]):
            inner = [*launcher(), *options, "--", *words]
            done = own.run(*inner, argv=["sh", "-c", script, "sh"], env={"TEMP": str(own.root)})
            assert done.returncode == 0, done.stderr
            assert "sandrun:" not in without_note(done.stderr)  # a shell may say what it lacks
            said.append(done.stdout)
        assert said[0] == said[1] == f"{own.project}/gone (deleted)\n../tool\nend\n"


@pytest.mark.parametrize("inner", [".", "sub"])
def test_a_project_that_is_renamed_during_the_wait_is_seen(own: Box, inner: str) -> None:
    (own.project / "sub").mkdir()
    (own.project / "sandrun.toml").touch()
    own.hold("first")
    script = 'touch "$1/sandrun.toml.kept" here && pwd -P'
    renamed = own.root / "renamed"
    words = ["--private-tmp", "--", "sh", "-c", script, "sh", str(renamed)]
    waits = own.start(*words, cwd=own.project / inner, env={"TEMP": str(own.root)})
    wait_for(lambda: "waiting" in own.heard(waits), 20)
    own.project.rename(renamed)
    own.let("first")
    done = own.finish(waits)
    assert (done.returncode, done.stdout) == (0, f"{renamed / inner}\n"), done.stderr
    assert (renamed / inner / "here").exists()
    assert (renamed / "sandrun.toml.kept").exists()


def test_nothing_is_mounted_outside(own: Box) -> None:
    """Also where mounts are shared, as below systemd (mount_namespaces(7)): they would stay."""
    script = "cat /proc/self/mountinfo; echo .; $RUN $PRIVATE -- true; cat /proc/self/mountinfo"
    env = {"RUN": " ".join(launcher()), "PRIVATE": " ".join(PRIVATE)}
    shared = [*OWN, "--propagation", "shared", "sh", "-c", script]
    before, _, after = own.run(argv=shared, env=env).stdout.partition(".\n")
    assert before.count(" shared:") > 1
    assert after == before


NO_ACCESS = "-dac_override,-dac_read_search"
NO_RIGHT = ["setpriv", "--bounding-set", "-sys_admin", "--inh-caps", "-sys_admin"]
DROP = [] if os.geteuid() == 0 else ["setpriv", "--ambient-caps", "-all", "--inh-caps", "-all"]


def forbid(switch: str) -> "list[str]":
    """What starts a command where the kernel forbids more namespaces of a kind."""
    own = ["unshare", "--user", *(USER[1:] if DROP else ["--map-root-user"]), "--mount", "sh", "-c"]
    return [*own, f'echo 0 >/proc/sys/user/{switch}; exec "$@"', "sh", *DROP]


@pytest.mark.parametrize("where", ["mounts", "ipc", *(["users"] if DROP else ["no right", "half"])])
def test_where_it_cannot_be_had_nothing_is_started(own: Box, name: str, where: str) -> None:
    """One line and what to do, before the wait; half of it is nothing."""
    others = Path("/dev/shm", name)
    if where == "half":  # /tmp can be had, and this cannot
        others.mkdir(mode=0o700)
        os.chown(others, 65534, 65534)
    own.hold("other", env={"SANDRUN_BACKEND": "none"})
    full = "unshare(2): No space left"
    outer, text, hint = {
        "users": (forbid("max_user_namespaces"), full, "max_user_namespaces=15000"),
        "mounts": (forbid("max_mnt_namespaces"), full, "max_mnt_namespaces=15000"),
        "ipc": (forbid("max_ipc_namespaces"), full, "max_ipc_namespaces=15000"),
        "no right": (NO_RIGHT, "unshare(2): Operation not permitted", "--cap-add SYS_ADMIN"),
        "half": (["setpriv", "--bounding-set", NO_ACCESS], f"{others}: Permission denied", ""),
    }[where]
    options = ["--private-tmp"] if where == "half" else PRIVATE
    words = [*outer, *launcher(), *options, "--", "touch", "started"]
    done = own.run(*words, argv=["env"], env={"TMPDIR": str(others)})
    if where == "half":
        others.rmdir()
    assert done.returncode == 125, done.stderr
    first, second = done.stderr.splitlines()
    assert first.startswith(f"sandrun: a run cannot have a /tmp or IPC of its own here: {text}")
    assert second.startswith("sandrun: hint: ")
    assert hint in second
    assert not (own.project / "started").exists()
    own.let("other")


def test_a_hint_fits_the_error() -> None:
    for number in (errno.ENOENT, errno.EIO):
        hint = namespaces.refusal(number, "mount(2) on /tmp").hint
        assert "SYS_ADMIN" not in hint
        assert "root" not in hint
    assert "again" in namespaces.refusal(errno.ENOENT, "/tmp/sub").hint


@pytest.mark.parametrize("backend", ["auto", "rlimit", "none"])
def test_it_is_had_or_refused_whatever_the_backend(
    make_box: "Callable[[str], Box]", backend: str
) -> None:
    """On every place, also where no namespace can be made."""
    done = make_box(backend).run(*PRIVATE, "--", "true")
    said = without_note(done.stderr)
    assert done.returncode in (0, 125)
    assert (said == "") == (done.returncode == 0)
    assert "internal error" not in said


def test_no_memory_is_left_out_of_account(make_box: "Callable[[str], Box]", own: Box) -> None:
    """What is written to /tmp counts as the run's; the fallback does not see it, and holds it."""
    fill = ["--", "dd", "if=/dev/zero", "of=/tmp/fill", "bs=1M", "count=200"]
    fallback = make_box("rlimit").run("-m", "50M", *PRIVATE, *fill)
    assert fallback.returncode == 1
    assert "No space left on device" in fallback.stderr
    box = make_box("auto")
    if box.run("--require", "kernel", "--", "true").returncode:
        pytest.skip("cgroup1 is not to be had here: nor another kernel backend")
    assert box.run("-m", "50M", *PRIVATE, *fill).returncode == 137


def test_whoever_is_killed_nothing_is_left(own: Box, name: str) -> None:
    """sandrun with its keepers, and what the run left behind on request."""
    script = f'"$@" && exec sh -c \'echo "begin it $$" >>{own.log}; exec sleep 60\''
    words = [sys.executable, "-c", LEAVE, name, *PLACES]
    env = {"LOG": str(own.log)}
    run = own.start(*PRIVATE, "--", "sh", "-c", script, "sh", *words, env=env)
    command = own.begun("it")
    assert os.readlink(f"/proc/{command}/ns/mnt") != os.readlink("/proc/self/ns/mnt")
    run.kill()
    if own.env.get("SANDRUN_BACKEND") == "none":
        os.kill(command, signal.SIGKILL)  # nothing else would end it
    wait_for(lambda: not alive(command), 20)
    assert left(name) == []


def test_a_daemon_that_is_left_keeps_what_is_its_own(own: Box, name: str) -> None:
    script = f'"$@"; (cd /; exec sleep 60 >/dev/null 2>&1) & echo "begin daemon $!" >>{own.log}'
    words = [sys.executable, "-c", LEAVE, name, *PLACES]
    own.run(*PRIVATE, "--leftovers", "leave", "--", "sh", "-c", script, "sh", *words,
            env={"LOG": str(own.log)})  # fmt: skip
    daemon = own.begun("daemon")
    assert alive(daemon)
    assert left(name) == []
    assert Path(f"/proc/{daemon}/root/tmp/{name}").read_text() == "left"
    os.kill(daemon, signal.SIGKILL)


def test_runs_inside_share_the_queue(own: Box) -> None:
    """A run of the same queue starts at once, also one that has a /tmp of its own again; one of
    another project, whose queue is not there yet, is excluded by the run lock."""
    other = own.root / "other"
    subprocess.run(["git", "init", "-q", str(other)], check=True)
    del own.env["SANDRUN_STATE_DIR"]
    own.env |= {"OTHER": str(other), "SANDRUN_POOL": "off", "RUN": " ".join(launcher())}
    try:
        for options in ("", " --private-tmp --private-ipc"):
            script = f'$RUN{options} -- sh -c "echo in; ls -A /var/tmp"'
            done = own.run(*PRIVATE, "--", "sh", "-c", script)
            assert (done.returncode, done.stdout) == (0, "in\n")
            assert "waiting" not in done.stderr
        holder = own.start("--", *own.job("first"), cwd=other)
        own.begun("first")
        second = own.job("second")
        script = 'cd "$OTHER" && exec $RUN "$@"'
        env = {"LOG": str(own.log), "GATE": str(own.root / "gate-second")}
        inner = own.start(*PRIVATE, "--", "sh", "-c", script, "sh", "--", *second, env=env)
        wait_for(lambda: "waiting" in own.heard(inner), 20)
        assert ("begin", "second") not in own.events()
        own.let("first")
        own.let("second")
        assert own.finish(holder).returncode == own.finish(inner).returncode == 0
        assert own.events()[:3] == [("begin", "first"), ("end", "first"), ("begin", "second")]
    finally:
        for directory in (own.project, other):
            shutil.rmtree(state_path(str(directory)), ignore_errors=True)


def test_a_state_directory_that_was_removed_outside_is_no_loop(own: Box) -> None:
    """A run inside finds a name in whose place nothing can be made."""
    del own.env["SANDRUN_STATE_DIR"]
    own.env |= {"SANDRUN_POOL": "off", "RUN": " ".join(launcher())}
    script = f'echo "begin it $$" >>{own.log}; read _; exec $RUN -- touch started'
    env = {"LOG": str(own.log)}
    outer = own.start(*PRIVATE, "--", "sh", "-c", script, env=env, stdin=subprocess.PIPE)
    own.begun("it")
    shutil.rmtree(state_path(str(own.project)))
    done = own.finish(outer, input="\n")
    assert done.returncode == 125
    assert "another process keeps removing the state directory" in done.stderr
    assert not (own.project / "started").exists()


def test_macos_has_no_such_thing(box: Box) -> None:
    env = pretending(box.env, "darwin")
    done = box.run("--private-ipc", "--", "touch", "started", env=env)
    assert done.returncode == 125
    assert done.stderr.startswith("sandrun: --private-tmp and --private-ipc need Linux: ")
    assert len(done.stderr.splitlines()) == 2
    assert not (box.project / "started").exists()


def test_doctor_tells_whether_it_can_be_had(own: Box) -> None:
    def line(*words: str) -> str:
        done = own.run("doctor", argv=[*words, *launcher()])
        return next(line for line in done.stdout.splitlines() if "  private " in line)

    assert line().startswith("PASS")
    forbidden = line(*forbid("max_mnt_namespaces"))
    assert forbidden.startswith("-")
    assert "unshare(2): No space left" in forbidden
