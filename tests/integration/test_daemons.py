"""Daemons that would do the work of a run outside of it: what keeps that work in the run."""

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sandrun.lifecycle import DAEMONLESS
from sandrun.platform import processes
from sandrun.supervise import daemons
from tests.gitbox import GIT, GitBox
from tests.harness import Box, alive, launcher, wait_for, without_note
from tests.integration.test_git_run import to_be_packed

GIT_SETTINGS = {
    "GIT_CONFIG_COUNT": "2",
    "GIT_CONFIG_KEY_0": "gc.autoDetach",
    "GIT_CONFIG_VALUE_0": "false",
    "GIT_CONFIG_KEY_1": "maintenance.autoDetach",
    "GIT_CONFIG_VALUE_1": "false",
}
ADDED = {**dict(DAEMONLESS), "GRADLE_OPTS": "-Dorg.gradle.daemon=false", **GIT_SETTINGS}
"""What every run adds. sccache's server needs that something ends it with the run."""
SHOW = [
    *(sys.executable, "-c"),
    "import os; print(*map('='.join, os.environ.items()), sep='\\0', end='')",
]
OWN = ("SANDRUN_", "_=", "PWD", "SHLVL", "LC_CTYPE")


def environment(box: Box, *options: str, **env: str) -> "dict[str, str]":
    """What a command finds, but for what is ours in any case."""
    done = box.run(*options, "--", *SHOW, env=env)
    assert done.returncode == 0, done.stderr
    entries = [entry for entry in done.stdout.split("\0") if entry and not entry.startswith(OWN)]
    return dict(entry.split("=", 1) for entry in entries)


def test_exactly_the_known_variables_are_added(box: Box) -> None:
    bare = environment(box, "--daemons", "leave")
    assert not set(bare) & {*ADDED, "SCCACHE_SERVER_PORT", "SCCACHE_SERVER_UDS"}
    assert environment(box) == {**bare, **ADDED}


@pytest.mark.parametrize(
    ("name", "value", "kept"),
    [
        *((name, "theirs", "theirs") for name, _ in DAEMONLESS),
        ("GRADLE_OPTS", "-Dorg.gradle.daemon=true -Xmx1g", "-Dorg.gradle.daemon=true -Xmx1g"),
        ("GRADLE_OPTS", "-Xmx1g", "-Xmx1g -Dorg.gradle.daemon=false"),
        ("GRADLE_OPTS", "", "-Dorg.gradle.daemon=false"),
    ],
)
def test_a_variable_that_the_user_set_is_kept(box: Box, name: str, value: str, kept: str) -> None:
    assert environment(box, **{name: value})[name] == kept


def test_gradles_daemon_may_be_chosen_in_java_opts(box: Box) -> None:
    assert "GRADLE_OPTS" not in environment(box, JAVA_OPTS="-Dorg.gradle.daemon=true")


def test_each_contained_run_has_an_sccache_server_of_its_own(
    make_box: "Callable[[str], Box]",
) -> None:
    box = make_box("auto")
    ports = [environment(box)["SCCACHE_SERVER_PORT"] for _ in "12"]
    assert ports[0] != ports[1]
    assert all(20000 <= int(port) < 32000 for port in ports)
    assert "SCCACHE_SERVER_PORT" not in environment(box, SCCACHE_SERVER_UDS="/tmp/x")
    assert environment(box, SCCACHE_SERVER_PORT="4226")["SCCACHE_SERVER_PORT"] == "4226"
    for way in (("--leftovers", "leave"), ("--leftovers", "wait"), ("--daemons", "leave")):
        assert "SCCACHE_SERVER_PORT" not in environment(box, *way)  # nothing would end it


def test_a_run_inside_a_run_adds_nothing(box: Box) -> None:
    inner = box.run("--", *launcher(), "--", *SHOW).stdout.split("\0")
    assert {entry for entry in inner if entry.startswith("GIT_CONFIG_")} == {
        f"{name}={value}" for name, value in GIT_SETTINGS.items()
    }
    assert inner.count("GRADLE_OPTS=-Dorg.gradle.daemon=false") == 1


def test_what_ends_a_daemon_that_was_left_is_said(gitbox: GitBox) -> None:
    credential = "protocol=https\nhost=example.org\nusername=u\npassword=p\n"
    leave = f"printf '{credential}\n' | {GIT} credential-cache store; "
    run = gitbox.sandrun("--", "sh", "-c", leave, SANDRUN_BACKEND="rlimit")
    code, said = gitbox.end(run)
    assert code == 0
    assert "that the command left behind: " in said
    assert "sandrun: hint: git's credential cache: git credential-cache exit\n" in said
    run = gitbox.sandrun("--", "sh", "-c", "sleep 100 &", SANDRUN_BACKEND="rlimit")
    code, said = gitbox.end(run)
    assert (code, "left behind: sleep 100" in said, "hint: " in said) == (0, True, False)
    run = gitbox.sandrun("--leftovers", "leave", "--", "sh", "-c", leave, SANDRUN_BACKEND="rlimit")
    code, said = gitbox.end(run)
    assert (code, "hint: git's credential" in said) == (0, False)  # that is what the user wants


def test_the_table_knows_what_every_run_sets() -> None:
    said = " ".join(row.way_out() for row in daemons.TABLE)
    assert all(f"{name}={value}" in said for name, value in DAEMONLESS)
    assert "GRADLE_OPTS=-Dorg.gradle.daemon=false" in said
    assert "SCCACHE_SERVER_PORT" in said


def test_the_folder_of_a_user_called_ray_is_no_ray(tmp_path: Path) -> None:
    script = tmp_path / "ray/serve.py"
    script.parent.mkdir()
    script.write_text("input()\n")
    with subprocess.Popen([sys.executable, str(script)], stdin=subprocess.PIPE) as process:
        assert daemons.known(process.pid) is None
        process.communicate(b"\n")


# daemons outside

OUTSIDE = (
    "worked during the run but was started outside of it: "
    "the run's limits and end do not apply to it"
)
WORKER = """
import sys, time
for line in sys.stdin:
    end = time.process_time() + float(line)
    while time.process_time() < end:
        pass
    open(sys.argv[-1], "w").write("done")
"""


class Worker:
    """A daemon by its command line that works when it is told, from within a run."""

    def __init__(self, box: Box, shows: str, cwd: "Path | None" = None, **env: str) -> None:
        program, _, script = shows.partition(" ")
        path = box.root / "lib" / script
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(WORKER)
        self.orders, self.done = box.root / "orders", box.root / "done"
        os.mkfifo(self.orders)
        self.process = subprocess.Popen(
            [program, str(path), str(self.done)],
            executable=sys.executable,
            env={**box.env, **env},
            cwd=cwd or box.project,
            stdin=os.open(self.orders, os.O_RDWR),
        )
        box.started.append(self.process)  # type: ignore[arg-type]

    def asked(self, seconds: float = 0.3, pause: float = 0.5) -> "list[str]":
        """A command that has it work so long; the first half second is the look's."""
        script = 'sleep $4; echo "$1" >"$2"; until [ -e "$3" ]; do sleep 0.01; done'
        words = [str(seconds), str(self.orders), str(self.done), str(pause)]
        return ["sh", "-c", script, "sh", *words]


DMYPY, NX, WATCHMAN = "python3 bin/dmypy", "node nx/a/daemon/server/start.js", "watchman x"


def said_outside(box: Box, worker: Worker, *options: str, **env: str) -> bool:
    done = box.run(*options, "--", *worker.asked(), env=env)
    assert done.returncode == 0, done.stderr
    return OUTSIDE in done.stderr


def test_a_daemon_outside_that_works_for_the_project_is_named(
    make_box: "Callable[[str], Box]",
) -> None:
    box = make_box("auto")
    worker = Worker(box, DMYPY)
    done = box.run("--", *worker.asked())
    assert f"sandrun: dmypy (pid {worker.process.pid}) {OUTSIDE}\n" in done.stderr
    assert "hint: dmypy: dmypy stop, or mypy; to accept that: --daemons leave\n" in done.stderr
    worker.done.unlink()
    assert not said_outside(box, worker, "--daemons", "leave")
    assert OUTSIDE not in box.run("--", "sleep", "0.2").stderr  # it did not work


def test_a_daemon_of_another_project_is_not_named(make_box: "Callable[[str], Box]") -> None:
    box = make_box("auto")
    (box.root / "project2").mkdir()
    assert not said_outside(box, Worker(box, DMYPY, box.root / "project2"))


def test_one_that_serves_all_projects_is_named(make_box: "Callable[[str], Box]") -> None:
    box = make_box("auto")
    assert said_outside(box, Worker(box, WATCHMAN, box.root))


def test_one_of_another_run_is_not_named(make_box: "Callable[[str], Box]") -> None:
    box = make_box("auto")
    assert not said_outside(box, Worker(box, WATCHMAN, box.root, SANDRUN_RUNS="/x/y"))


def test_one_that_the_run_does_without_is_not_named(make_box: "Callable[[str], Box]") -> None:
    box = make_box("auto")
    worker = Worker(box, NX)
    assert not said_outside(box, worker)
    worker.done.unlink()
    assert said_outside(box, worker, NX_DAEMON="true")  # the user wants it


def test_doctor_lists_the_daemons_outside(box: Box) -> None:
    assert "none outside of runs does their work here" in box.run("doctor").stdout
    worker = Worker(box, DMYPY)
    said = box.run("doctor").stdout
    assert f"CAUTION  daemons   dmypy (pid {worker.process.pid}): " in said
    assert "         fix: dmypy: dmypy stop, or mypy\n" in said
    said = box.run("doctor", env={"SANDRUN_DAEMONS": "leave"}).stdout
    assert "PASS     daemons   dmypy (pid" in said


@pytest.mark.parametrize(
    ("title", "name"),
    [
        ("eslint_d - /home/u/my project", "eslint_d"),
        ("/home/u/my tools/prettierd", "prettierd"),
        ("bazel(my project)", "bazel"),
        ("buck2d[project]", "buck2"),
        ("pantsd [/home/u/project]", "pants"),
        ("/usr/bin/ssh-agent", "ssh-agent"),
        ("/usr/bin/gpg-agent", "gpg-agent"),
        ("/opt/ray/core/src/ray/raylet/raylet", "ray"),
        ("ray::IDLE", "ray"),
        ("/usr/bin/watchman", "watchman"),
        ("ruby -I /gems/lib -e require 'spring/application/boot'", "spring"),
        ("my-eslint_d", ""),
    ],
)
def test_a_daemon_is_known_by_its_title_too(title: str, name: str) -> None:
    with subprocess.Popen(
        [title, "-c", "input()"], executable=sys.executable, stdin=subprocess.PIPE
    ) as process:
        wait_for(lambda: processes.arguments(process.pid)[:1] == [title])
        row = daemons.known(process.pid)
        assert (row.name if row else "") == name
        process.communicate(b"\n")


# real tools


def tool(name: str) -> str:
    path = shutil.which(name)
    if not path:
        pytest.skip(f"needs {name}")
    return path


NX_ENV = {"NX_DAEMON": "true", "NX_NO_CLOUD": "true", "NX_TUI": "false"}
MANY_FILES = "for i in $(seq 1500); do echo >f$$.$i; done"
DAEMONS = {
    # Its name: start, work, stop, environment.
    "dmypy": ("dmypy run -- a.py", "echo z$$: int = 1 >>a.py; dmypy run -- a.py", "dmypy stop", {}),
    "eslint_d": ("eslint_d a.js", "eslint_d a.js", "eslint_d stop", {}),
    "prettierd": ("prettierd a.js <a.js", "prettierd a.js <a.js", "prettierd stop", {}),
    "nx": (
        *("nx run p:hello", f"{MANY_FILES}; nx run p:hello --skip-nx-cache", "nx daemon --stop"),
        NX_ENV,
    ),
    "turbo": ("turbo daemon start", f"{MANY_FILES}; turbo run hello", "turbo daemon stop", {}),
    "watchman": ("jest", f"{MANY_FILES}; jest", "watchman shutdown-server", {}),
    "bazel": ("bazel build a", 'echo "#" >>BUILD; bazel build a', "bazel shutdown", {}),
    "gradle": (
        *("gradle -q --offline b", "gradle -q --offline b", "gradle --stop"),
        {"GRADLE_OPTS": "-Dorg.gradle.daemon=true"},
    ),
    "spring": (
        *("bin/rails runner 1", "bin/rails runner w.rb", "spring stop"),
        {"DISABLE_SPRING": "0"},
    ),
}
SECONDS = 60  # a JVM, on a busy machine
BIG = {"bazel", "gradle", "spring"}
NEEDS = {"watchman": "jest"}
PROJECT = {
    "a.py": "x: int = 1\n",
    "a.js": "var a = 1;\n",
    "eslint.config.js": "module.exports = [];\n",
    "package.json": '{"name": "p", "version": "1.0.0", "packageManager": "npm@11.0.0",'
    ' "scripts": {"hello": "true"}, "nx": {}}',
    "nx.json": "{}",
    "turbo.json": '{"tasks": {"hello": {}}}',
    ".watchmanconfig": "{}",
    "a.test.js": "test('a', () => {});\n",
    "WORKSPACE": "",
    "BUILD": 'genrule(name = "a", outs = ["a.txt"], cmd = "echo >$@")\n',
    "build.gradle": "task b { doLast { (1..99999).sum() } }\n",
    "w.rb": "9999999.times { }\n",
}


def modules(name: str) -> Path:
    """The node_modules that a tool of npm's is in."""
    path = Path(tool(name)).resolve()
    return next(folder for folder in path.parents if folder.name == "node_modules")


def prepare(box: Box, name: str) -> None:
    tool(NEEDS.get(name, name))
    (box.home / "state").mkdir()
    if name == "spring":
        script = "rails new . -qMCJSG --skip-{bundle,puma,listen,bootsnap,test,javascript}"
        assert box.run("-c", script, argv=["bash"]).returncode == 0
        (box.project / "Gemfile").write_text("gem 'rails'\ngem 'sqlite3'\ngem 'spring'\n")
        assert box.run("lock", "--local", argv=["bundle"]).returncode == 0
    for file, text in PROJECT.items():
        (box.project / file).write_text(text)
    if name in ("nx", "turbo"):
        (box.project / "node_modules").symlink_to(modules(name))


def is_gone(pid: int) -> bool:
    """Reaps it where it is ours: `bazel shutdown` waits for that."""
    try:
        return bool(os.waitpid(pid, os.WNOHANG)[0])
    except ChildProcessError:
        return not alive(pid)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.big] * (name in BIG)) for name in DAEMONS]
)
def test_a_real_daemon_outside_is_named_and_ended_as_the_hint_says(
    make_box: "Callable[[str], Box]", name: str
) -> None:
    start, work, stop, env = DAEMONS[name]
    box = make_box("auto")
    prepare(box, name)
    times = range(2 if name in ("dmypy", "eslint_d", "prettierd") else 1)  # the others take long
    for _ in times:  # the second one finds it ready
        done = box.run("-c", start, argv=["sh"], env=env, seconds=SECONDS)
        assert done.returncode == 0, done.stderr
    for _ in times:
        # What is done before the look, which comes late on a busy machine, is not seen.
        done = box.run("--", "sh", "-c", f"sleep 0.5; {work}", env=env, seconds=SECONDS)
        assert done.returncode == 0, done.stderr
        assert f"sandrun: {name} (pid " in done.stderr
        assert OUTSIDE in done.stderr
    if name in ("nx", "gradle", "spring"):  # without the user's word the run does without it
        again = box.run("--", "sh", "-c", f"sleep 0.5; {work}", seconds=SECONDS)
        assert (again.returncode, OUTSIDE in again.stderr) == (0, False)
    ends = "bin/spring stop" if name == "spring" else stop
    assert f"hint: {name}: {ends}" in done.stderr
    pid = int(done.stderr.partition(f"{name} (pid ")[2].partition(")")[0])
    stopping = subprocess.Popen(["sh", "-c", stop], cwd=box.project, env={**box.env, **env})
    wait_for(lambda: is_gone(pid), 60, f"{name} ends")
    assert stopping.wait() == 0
    done = box.run("--", "sh", "-c", start, env=env, seconds=SECONDS)
    assert OUTSIDE not in done.stderr
    assert "that the command left behind: " in done.stderr
    assert f"hint: {name}: {ends}" in done.stderr
    assert not box.leftovers()


def test_an_idle_daemon_outside_is_not_named(make_box: "Callable[[str], Box]") -> None:
    """A JVM that nobody asks for anything uses 0.2 % of a processor."""
    box = make_box("auto")
    worker = Worker(box, "java -cp/org.gradle.launcher.daemon.bootstrap.GradleDaemon")
    done = box.run("--", *worker.asked(0.003, 2), env={"GRADLE_OPTS": "-Dorg.gradle.daemon=true"})
    assert (done.returncode, OUTSIDE in done.stderr) == (0, False)


TO_PARALLEL = """
import sys, numpy
from joblib import Parallel, delayed

def work(array, mib):
    return len(bytearray(mib << 20)) + len(array)

if __name__ == "__main__":
    array = numpy.ones(2_000_000)  # 16 MB, so in a file in /dev/shm
    print(Parallel(n_jobs=2)(delayed(work)(array, int(mib)) for mib in sys.argv[1:]))
"""


@pytest.mark.parametrize("backend", ["rlimit", "auto"])
def test_joblib_leaves_no_shared_memory_and_no_daemon(
    make_box: "Callable[[str], Box]", backend: str
) -> None:
    """Its trackers end last, and by themselves; at a limit they clean up."""
    python = tool("python-joblib")
    box = make_box(backend)
    (box.project / "p.py").write_text(TO_PARALLEL)
    shared = box.root / "shm"  # its own way to say where; else /dev/shm, which others use
    shared.mkdir()
    env = {"JOBLIB_TEMP_FOLDER": str(shared)}
    done = box.run("-m", "500M", "--", python, "p.py", "1", "1", env=env)
    assert (done.returncode, without_note(done.stderr)) == (0, "")
    done = box.run("-m", "300M", "--grace", "20s", "--", python, "p.py", "1", "600", env=env)
    assert done.returncode == 137, done.stderr
    assert "memory limit of 300 MiB reached" in done.stderr
    assert not box.leftovers()
    assert not list(shared.iterdir())


RAY = """
import ray
ray.init(num_cpus=1, include_dashboard=False, object_store_memory=80 << 20, configure_logging=False)
print(ray.get(ray.remote(lambda: 7).remote()))
"""


TWICE = "import subprocess, sys; print(*(subprocess.call(sys.argv[1:]) for _ in '12'))"


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: a pid namespace")
@pytest.mark.parametrize("backend", ["rlimit", "auto"])
@pytest.mark.parametrize("name", ["dmypy", pytest.param("Xvfb", marks=pytest.mark.big)])
def test_a_daemon_can_be_started_again_where_pid_1_does_not_reap(
    make_box: "Callable[[str], Box]", name: str, backend: str
) -> None:
    """By a zombie of the first one, `dmypy run` takes it to live, and can never reach it."""
    tool(name)
    box = make_box(backend)
    (box.project / "a.py").write_text("x: int = 1\n")
    command = {
        "dmypy": "dmypy run -- a.py >&2",
        "Xvfb": "rm -f n; Xvfb -displayfd 3 3>n & until [ -s n ]; do sleep 0.1; done",
    }[name]
    apart = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child", sys.executable]
    argv = [*apart, "-c", TWICE, *launcher()]
    done = box.run("--", "sh", "-c", command, argv=argv, seconds=SECONDS)
    assert done.stdout == "0 0\n", done.stderr
    assert done.stderr.count("that the command left behind: ") == 2
    if name == "Xvfb":
        display = (box.project / "n").read_text().strip()
        assert not Path(f"/tmp/.X{display}-lock").exists(), "it ended as it should"


@pytest.fixture
def short_folder() -> "Iterator[str]":
    """For the sockets of ray, whose paths may have 107 bytes."""
    with tempfile.TemporaryDirectory(prefix="ray", dir="/tmp") as folder:
        yield folder


@pytest.mark.big
def test_ray_leaves_nothing(make_box: "Callable[[str], Box]", short_folder: str) -> None:
    ray = tool("ray")
    box = make_box("auto")
    env = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_TMPDIR": short_folder}
    python = Path(ray).resolve().with_name("python")
    done = box.run("-m", "2G", "--", str(python), "-c", RAY, env=env, seconds=100)
    assert (done.returncode, done.stdout) == (0, "7\n"), done.stderr
    assert not box.leftovers()
    start = "start --head --num-cpus 1 --include-dashboard=false --object-store-memory 80000000"
    done = box.run("-m", "2G", "--", ray, *start.split(), env=env, seconds=100)
    assert done.returncode == 0, done.stderr
    assert "hint: ray: ray stop, or ray.shutdown()\n" in done.stderr
    assert not box.leftovers()


def test_sccache_has_a_server_of_the_runs_own(make_box: "Callable[[str], Box]") -> None:
    sccache = tool("sccache")
    box = make_box("auto")
    (box.project / "a.c").write_text("int main(void) { return 0; }\n")
    env = {"SCCACHE_DIR": str(box.root / "cache"), "SCCACHE_SERVER_UDS": str(box.root / "theirs")}
    assert box.run("--start-server", argv=[sccache], env=env).returncode == 0
    del env["SCCACHE_SERVER_UDS"]
    done = box.run("--", sccache, "cc", "-c", "a.c", "-o", "a.o", env=env)
    assert (done.returncode, without_note(done.stderr)) == (0, "")
    env["SCCACHE_SERVER_UDS"] = str(box.root / "theirs")
    stats = box.run("--show-stats", argv=[sccache], env=env).stdout
    assert "Compile requests                      0" in stats
    assert box.run("--stop-server", argv=[sccache], env=env).returncode == 0


def test_watchman_is_named_with_what_ends_it(make_box: "Callable[[str], Box]") -> None:
    tool("watchman")
    box = make_box("auto")
    (box.home / "state").mkdir()
    done = box.run("--", "watchman", "watch-project", ".")
    assert done.returncode == 0, done.stderr
    assert "hint: watchman: watchman shutdown-server, or jest --no-watchman\n" in done.stderr


def test_gits_fsmonitor_ends_as_git_ends_it(gitbox: GitBox) -> None:
    """A killed one would leave its socket, on which the next git waits."""
    if subprocess.call([GIT, "fsmonitor--daemon", "status"], cwd=gitbox.repo) == 128:
        pytest.skip("needs a git with fsmonitor--daemon")
    gitbox.bare("config", "core.fsmonitor", "true")
    socket = gitbox.repo / ".git/fsmonitor--daemon.ipc"
    script = f"{GIT} fsmonitor--daemon start && test -S {socket}"
    code, said = gitbox.end(gitbox.sandrun("--", "sh", "-c", script, SANDRUN_BACKEND="auto"))
    assert code == 0, said
    assert "hint: git's fsmonitor: git fsmonitor--daemon stop, or core.fsmonitor=false\n" in said
    assert not socket.exists()


LOOKS_LIKE_FSMONITOR = """
import os, socket, sys
git, folder = sys.argv[1:]
listener = socket.socket(socket.AF_UNIX)
listener.bind(folder + "/fsmonitor--daemon.ipc")
listener.listen()
r, w = os.pipe()
for fd in (listener.fileno(), w):
    os.set_inheritable(fd, True)
executed, started = os.pipe()
if os.fork() == 0:
    os.dup2(r, 0)
    os.chdir("/")
    if os.environ["AS"]:
        os.setgid(int(os.environ["AS"]))
        os.setuid(int(os.environ["AS"]))
    os.execv(git, ["git fsmonitor--daemon run", "hash-object", "--stdin"])
os.close(started)
os.read(executed, 1)
"""
"""A leftover that is taken for git's fsmonitor of a repository."""


@pytest.mark.parametrize("user", ["", "65534"])
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: runs as two different users")
def test_the_program_of_another_users_fsmonitor_is_not_run(gitbox: GitBox, user: str) -> None:
    """sandrun as root would run what that user gave the name git."""
    trace, git = gitbox.repo / "trace", os.path.realpath(GIT)
    script = [sys.executable, "-c", LOOKS_LIKE_FSMONITOR, git, str(gitbox.repo / ".git")]
    env = {"SANDRUN_BACKEND": "auto", "GIT_TRACE": str(trace), "AS": user}
    code, said = gitbox.end(gitbox.sandrun("--", *script, **env))
    assert code == 0, said
    assert "hint: git's fsmonitor: " in said
    told = trace.exists() and "fsmonitor--daemon stop" in trace.read_text()
    assert told == (not user)


# git's housekeeping


@pytest.fixture
def gitbox(tmp_path: Path) -> "Iterator[GitBox]":
    box = GitBox(tmp_path)
    yield box
    box.close()


def detaches(box: GitBox, *options: str, cwd: "Path | None" = None, **env: str) -> str:
    """What the gits of a run take for gc.autoDetach and maintenance.autoDetach; -: not set."""
    script = f"for s in gc maintenance; do {GIT} config $s.autoDetach || echo -; done"
    code, said = box.end(box.sandrun(*options, "--", "sh", "-c", script, cwd=cwd, **env))
    assert code == 0, said
    return " ".join(said.split())


def test_git_ends_its_housekeeping_in_the_run(gitbox: GitBox) -> None:
    assert detaches(gitbox) == "false false"
    assert detaches(gitbox, "--daemons", "leave") == "- -"


def test_what_the_environment_says_to_git_stays(gitbox: GitBox) -> None:
    theirs = {"GIT_CONFIG_COUNT": "1", "GIT_CONFIG_KEY_0": "a.b", "GIT_CONFIG_VALUE_0": "theirs"}
    run = gitbox.sandrun("--", GIT, "config", "--get-regexp", "a.b|gc.auto|enance.auto", **theirs)
    assert gitbox.end(run)[1].splitlines() == [
        "a.b theirs",
        "gc.autodetach false",
        "maintenance.autodetach false",
    ]
    theirs |= {"GIT_CONFIG_KEY_0": "GC.autodetach", "GIT_CONFIG_VALUE_0": "true"}
    assert detaches(gitbox, cwd=None, **theirs) == "true -"
    for count in ("x", "-1", "99999999999", "\u0664"):  # git itself says what is wrong
        run = gitbox.sandrun("--", "sh", "-c", "echo $GIT_CONFIG_COUNT", GIT_CONFIG_COUNT=count)
        assert gitbox.end(run) == (0, f"{count}\n")
    assert detaches(gitbox, GIT_CONFIG_COUNT="") == "false false"


@pytest.mark.parametrize(
    "where",
    ["repository", "user", "user's other", "system", "worktree", "included", "noted", "large",
     "main worktree's own", "bare"],
)  # fmt: skip
def test_what_the_user_has_set_in_a_file_of_git_stays(gitbox: GitBox, where: str) -> None:
    """Of a whole kind: who has set one of the two has said what they want of both."""
    text = "[Maintenance]\n\tAutoDetach = true\n"
    cwd, env, file = gitbox.repo, {}, gitbox.repo / ".git/config"
    if where == "user":
        file = gitbox.root / "gitconfig"
    elif where == "user's other":
        file, env = gitbox.root / "home/config/git/config", {"GIT_CONFIG_GLOBAL": ""}
    elif where == "system":
        file = gitbox.root / "system"
        env = {"GIT_CONFIG_NOSYSTEM": "", "GIT_CONFIG_SYSTEM": str(file)}
    elif where == "worktree":
        cwd = gitbox.root / "tree"
        gitbox.bare("worktree", "add", "-q", cwd)
    elif where == "included":
        (gitbox.root / "home/work").write_text(text)
        (gitbox.root / "home/more").write_text('[includeIf "gitdir:/x/"] Path = work\n')
        text = '[include]\n\tpath = "~/more"\n'
    elif where == "noted":
        (gitbox.root / "home/work").write_text(text)
        file, text = gitbox.root / "gitconfig", "[include] path = ~/work # of work\n"
    elif where == "main worktree's own":
        gitbox.bare("config", "extensions.worktreeConfig", "true")
        file = gitbox.repo / ".git/config.worktree"
    elif where == "bare":
        cwd = gitbox.root / "bare"
        gitbox.bare("init", "-q", "--bare", cwd)
        file = cwd / "config"
    elif where == "large":
        text = "#" * 99 + "\n" + ("#" + "-" * 98 + "\n") * 999 + text
    file.parent.mkdir(parents=True, exist_ok=True)
    if env.get("GIT_CONFIG_GLOBAL") == "":
        del gitbox.env["GIT_CONFIG_GLOBAL"]
        env = {}
    with open(file, "a") as opened:
        opened.write(text)
    expected = "- -" if where == "included" else "- true"  # its condition does not hold
    assert detaches(gitbox, cwd=cwd, **env) == expected


def test_odd_files_of_git_delay_nothing(gitbox: GitBox) -> None:
    file = gitbox.root / "home/.gitconfig"
    del gitbox.env["GIT_CONFIG_GLOBAL"]
    file.parent.mkdir(exist_ok=True)
    os.mkfifo(file)
    run = gitbox.sandrun("--", "sh", "-c", "echo $GIT_CONFIG_COUNT")
    assert gitbox.end(run) == (0, "2\n")
    file.unlink()
    # git refuses these, in an instant.
    file.write_text("[include] path = .gitconfig\n" * 99 + "[include] path = a\0b\n")
    run = gitbox.sandrun("--", "sh", "-c", "echo $GIT_CONFIG_COUNT")
    assert gitbox.end(run, 10) == (0, "2\n")


def test_git_packs_inside_of_the_run(gitbox: GitBox) -> None:
    """Seen by the command itself: when its git has ended, nothing is left to be done."""
    to_be_packed(gitbox)
    count = f"{GIT} count-objects"
    commit = f"{GIT} commit -qm x && {count}"
    code, said = gitbox.end(gitbox.sandrun("--", "sh", "-c", commit, SANDRUN_BACKEND="auto"))
    assert code == 0, said
    assert "\n0 objects, 0 kilobytes" in f"\n{said}"


def test_doctor_says_that_dockers_daemon_is_outside(box: Box) -> None:
    def told(**env: str) -> "list[dict[str, str]]":
        answer = json.loads(box.run("doctor", "--json", env=env, seconds=60).stdout)
        return [row for row in answer["checks"] if row["name"] == "docker"]

    if not os.path.exists("/run/docker.sock"):
        assert not told()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"{box.home}/docker.sock")  # a rootless daemon's
        (line,) = told(XDG_RUNTIME_DIR=str(box.home))
    assert line["status"] == "CAUTION"
    assert "its daemon starts containers outside of runs" in line["evidence"]
    assert "--cgroup-parent" in line["fix"]
    (line,) = told(DOCKER_HOST="tcp://build:2375")
    assert line["evidence"].startswith("tcp://build:2375: ")
