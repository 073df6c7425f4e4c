"""`sandrun doctor`: what can enforce limits here, found out by really running over one.

One check per line: PASS, CAUTION, FAIL, or `-` for what is not needed here; the evidence; and the
command that mends it. A backend passes when a probe (a real run of a process that takes three
times its limit) was ended at the limit. Each probe has a process, a state directory and a home of
its own: it joins no queue, leaves no record, and cannot move the examiner into its group.
"""

import json
import os
import stat
import sys
import tempfile
from collections.abc import Callable

from sandrun import __version__, backends
from sandrun.backends import cgroup2_placement, cgroup_common
from sandrun.config import project, settings
from sandrun.doctor import report
from sandrun.doctor.report import CAUTION, FAIL, PASS, UNUSED, Line, state, trusted
from sandrun.git import guard
from sandrun.lifecycle import contain_daemons, namespaces, runner
from sandrun.model import DARWIN, MIB, SandrunError, Unusable, size_text
from sandrun.platform import processes, spawn
from sandrun.queue import Queue, RunLock
from sandrun.queue.state import SHARED_QUEUES, shared_queue, state_path
from sandrun.supervise import daemons, outside

assert sys.platform != "win32"

_PROBE_LIMIT = 32 * MIB
_PROBE = "import time; b = bytearray(b'x') * (96 << 20); time.sleep(20)"
_V2_FEATURES = (
    ("memory.peak", "5.19", "the peak is sampled"),
    ("cgroup.kill", "5.14", "processes are frozen and killed one by one"),
    ("memory.pressure", "4.20 with PSI", "how long memory was waited for is not told"),
)
_WANTED = ("memory", "pids", "cpu", "io")


def _probe(name: str) -> Line:
    """Run the probe on a backend, in this process, which nothing else uses afterwards."""
    caller = spawn.capture()
    root = project.working_directory()
    flags = {"backend": name, "memory": _PROBE_LIMIT, "timeout": 15.0, "grace": 0.5, "git_wait": 0}
    chosen = settings.resolve({**flags, "check_interval": 1.0, "quiet": 3, "verbose": 0}, root)
    command = [sys.executable, "-I", "-S", "-c", _PROBE]
    try:
        outcome = runner.run(command, chosen, root, caller)
    except backends.NoBackend as error:
        _, text, hint = error.refused[-1]
        return Line(name, FAIL, text, hint)
    except SandrunError as error:
        return Line(name, FAIL, error.text, error.hint)
    peak = size_text(outcome.usage.peak)
    if outcome.reason != "memory":
        return Line(name, FAIL, f"a probe of 96 MiB ended as {outcome.reason}, not at its limit")
    by = "the kernel" if backends.named(name).kernel else "polling"
    peak += ", sampled" if outcome.usage.sampled else ""
    return Line(name, PASS, f"ended a probe of 96 MiB at 32 MiB, by {by} (peak {peak})")


def probe(name: str) -> Line:
    """`_probe` in a child with a home of its own."""
    with tempfile.TemporaryDirectory(prefix="sandrun-doctor-") as scratch:
        read_end, write_end = os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                os.environ.update(SANDRUN_STATE_DIR=scratch, XDG_STATE_HOME=scratch)
                os.environ.update(XDG_CONFIG_HOME=scratch, SANDRUN_POOL="off")
                line = _probe(name)
            except BaseException as error:
                line = Line(name, FAIL, f"the probe failed: {type(error).__name__}: {error}")
            os.write(write_end, json.dumps(vars(line)).encode())
            os._exit(0)
        os.close(write_end)
        with os.fdopen(read_end) as pipe:
            said = pipe.read()
        os.waitpid(pid, 0)
    return Line(**json.loads(said)) if said else Line(name, FAIL, "the probe was killed")


def _hierarchy() -> Line:
    """Which cgroup hierarchies there are, and what we have of them."""
    v1 = [name for name in ("memory", "pids", "cpu", "blkio", "freezer") if _is_v1(name)]
    try:
        own = cgroup_common.own_group("")
    except Unusable as error:
        if v1:
            return Line("cgroups", PASS, f"v1: {' '.join(v1)}")
        return Line("cgroups", FAIL, error.text, error.hint)
    inside = cgroup2_placement.is_ours(own)
    if inside:  # a run's processes, or a leaf's: what they start gets a group beside theirs
        own = os.path.dirname(own)
    has = processes.read(own + "/cgroup.controllers").decode().split()
    if "memory" in v1:
        return Line("cgroups", PASS, f"hybrid: v1 has {' '.join(v1)}; v2 {' '.join(has) or 'none'}")
    missing = [name for name in _WANTED if name not in has]
    text = f"v2: {own}: {' '.join(has) or 'no controllers'}"
    if not missing:
        return Line("cgroups", PASS, text)
    text += f"; not {'for runs inside this run' if inside else 'delegated to us'}: "
    text += " ".join(missing)
    status = FAIL if "memory" in missing else CAUTION
    return Line("cgroups", status, text, "" if inside else cgroup2_placement.delegation_hint())


def _is_v1(controller: str) -> bool:
    try:
        cgroup_common.own_mount(controller)
        return True
    except Unusable:
        return False


def _features() -> "list[Line]":
    """What this kernel's cgroup v2 lacks, and what is done instead."""
    try:
        mount = cgroup_common.own_mount("")
    except Unusable:
        return []
    # The root group has no limits of its own: its children show the files.
    samples = [entry.path for entry in os.scandir(mount) if entry.is_dir()]
    has = {name for path in samples for name in os.listdir(path)}
    if "memory.max" not in has:
        return []
    lacks = [
        f"no {name} (Linux {since}): {so}" for name, since, so in _V2_FEATURES if name not in has
    ]
    return [Line("kernel", CAUTION if lacks else PASS, "; ".join(lacks) or "has all we use")]


def _backends() -> "list[Line]":
    lines = [probe(name) for name in backends.ORDER]
    enforced = any(line.status == PASS and backends.named(line.name).kernel for line in lines)
    for line in lines:
        if line.status == FAIL and enforced:
            line.status, line.fix = UNUSED, ""
        if line.name == "rlimit" and line.status == PASS and not enforced:
            line.status = CAUTION
            line.evidence += "; a fast leak can pass the limit for an instant"
    return lines


def _logout(lines: "list[Line]") -> "list[Line]":
    """Whether the user's manager, which holds the runs, ends at the last logout."""
    if os.geteuid() == 0 or ("systemd", PASS) not in [(line.name, line.status) for line in lines]:
        return []
    from sandrun.backends import systemd_units

    user = systemd_units.user_name()
    if systemd_units.lingers():
        return [Line("logout", PASS, f"the manager of {user} goes on after the last logout")]
    text = (
        f"the manager of {user} ends at the last logout: under nohup and with --detach, and in "
        "services of the system's, no kernel enforces the limits"
    )
    return [Line("logout", CAUTION, text, systemd_units.linger_hint())]


def _second_home() -> Line:
    """Where runs are excluded that do not share our state directory; never needed, only good."""
    root = project.find(project.working_directory())
    name = "checkout" if project.git_directory(root) else "locks"
    try:
        lock = RunLock(Queue(state_path(root)), root=root)
        lock.prepare()
        path, note = lock.second_path(), lock.note
        lock.drop()
    except SandrunError as error:
        path, note = "", error.text
    if path and not note:
        return Line(name, PASS, f"run lock in {path}")
    return Line(name, CAUTION, f"{note}: who shares the checkout only is not excluded")


def _named(queue: str) -> Line:
    """Whether a named queue is this user's only, or shared."""
    if not shared_queue(queue):
        made = f"install -d -m 2770 -g GROUP {SHARED_QUEUES}/{queue}"
        return Line("queue", CAUTION, f"{queue}: excludes your own runs only", made)
    try:
        lock = RunLock(Queue(state_path("", queue)), root="/", name=queue)
        lock.prepare()
        path, note = lock.second_path(), lock.note
        lock.drop()
    except SandrunError as error:
        return Line("queue", FAIL, error.text, error.hint)
    if note:
        return Line("queue", CAUTION, f"{queue}: {note}", "become one of its users: ls -ld " + path)
    return Line("queue", PASS, f"{queue}: shared, by {path}")


def _proc() -> "list[Line]":
    """Whether /proc shows our own processes; nothing where it does, as on nearly every host."""
    if DARWIN or processes.PROC != processes.NOWHERE:
        return []
    text = "shows no processes of our pid namespace: none is looked at, named or told by it"
    return [Line("proc", CAUTION, text, processes.MOUNT_PROC)]


def _prctl() -> Line:
    from sandrun.platform import linux_syscalls

    provider = linux_syscalls.prctl_provider()
    if provider == "python-prctl":
        return Line("prctl", PASS, "python-prctl")
    return Line(
        "prctl", PASS, f"{provider} stands in for python-prctl", "apt install python3-prctl"
    )


def _daemons(chosen: settings.Settings) -> "list[Line]":
    """The user's daemons that would do a run's work where no limit of it holds."""
    env = dict(os.environ)
    if chosen.daemons == "contain":
        contain_daemons(env, chosen, "0")
    root = project.find(project.working_directory())
    found = [p for p in map(daemons.describe, outside.serving(root, env)) if p]
    if not found:
        return [] if DARWIN else [Line("daemons", PASS, "none outside works for runs here")]
    text = ", ".join(f"{p.daemon} (pid {p.pid})" for p in found[:5])
    text += ": does the work of runs outside of them, where no limit or end reaches it"
    status = PASS if chosen.daemons == "leave" else CAUTION  # that is what the user wants
    return [Line("daemons", status, text, daemons.ways_out(found))]


def _private() -> Line:
    """Whether a run can have a /tmp and IPC of its own."""
    refused = namespaces.attempt(namespaces.Plan(["/dev/shm", "/tmp"], set(), "/", True))
    if refused is None:
        return Line("private", PASS, "runs can have a /tmp and IPC of their own")
    return Line("private", UNUSED, f"{refused.text} (--private-tmp, --private-ipc)", refused.hint)


_DOCKER = ("/run/docker.sock", "/var/run/docker.sock")


def _docker() -> "list[Line]":
    """That docker's daemon is outside of every run; nothing where there is none to be asked."""
    host = os.environ.get("DOCKER_HOST", "")
    rootless = f"{os.environ.get('XDG_RUNTIME_DIR', '')}/docker.sock"
    found = host or next(filter(_is_socket, (*_DOCKER, rootless)), "")
    if not found:
        return []
    text = f"{found}: its daemon starts containers outside of runs: no limit or end reaches them"
    fix = "docker run --rm --memory SIZE, or --cgroup-parent a slice that has limits"
    return [Line("docker", CAUTION, text, fix)]


def _is_socket(path: str) -> bool:
    try:
        return stat.S_ISSOCK(os.stat(path).st_mode)
    except OSError:
        return False


def _git() -> Line:
    well, evidence, fix = guard.leak_check()
    return Line("git", PASS if well else CAUTION, evidence, fix)


def examine(chosen: settings.Settings) -> "list[Line]":
    """All checks in order; with the settings that were `chosen` here."""
    host = os.uname()
    enforcing = _backends()
    versions = f"Python {sys.version.split()[0]}, sandrun {__version__}"
    return [
        Line("versions", PASS, f"{versions}, {host.sysname} {host.release}"),
        *([] if DARWIN else [_hierarchy(), *_features()]),
        *_proc(),
        *enforcing,
        *([] if DARWIN else [*_logout(enforcing), _prctl(), _private()]),
        state(),
        trusted(chosen),
        *([_named(chosen.queue)] if chosen.queue else [_second_home()]),
        _git(),
        *report.worktrees(),
        *_daemons(chosen),
        *_docker(),
    ]


def main(out: "Callable[[str], None]", as_json: bool, chosen: settings.Settings) -> int:
    """Print the checks; exit code 0, or 1 when no kernel backend works here."""
    return report.show(examine(chosen), out, as_json)
