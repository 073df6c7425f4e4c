"""`sandrun doctor` on Linux and macOS. A backend passes if it ended a process at its limit.

The probe is a real run of a process that allocates three times its limit. It is started from a
child with a state directory and a home of its own, so that it joins no queue, leaves no record, and
cannot move `sandrun doctor` into its group.
"""

import json
import os
import stat
import sys
import tempfile

from sandrun import __version__, backends
from sandrun.config import project, settings
from sandrun.doctor.report import CAUTION, FAIL, PASS, UNUSED, Check, state, trusted
from sandrun.git import guard
from sandrun.lifecycle import contain_daemons, runner
from sandrun.model import DARWIN, MIB, SandrunError, size_text
from sandrun.platform import processes, spawn
from sandrun.queue import Queue, RunLock
from sandrun.queue.state import SHARED_QUEUES, shared_queue, state_path
from sandrun.supervise import daemons, outside

assert sys.platform != "win32"

_PROBE_LIMIT = 32 * MIB
_PROBE = "import time; b = bytearray(b'x') * (96 << 20); time.sleep(20)"


def _probe(name: str) -> Check:
    """Run the probe in a backend. The run changes this process, so only a child may call this."""
    caller = spawn.capture()
    root = project.working_directory()
    flags = {"backend": name, "memory": _PROBE_LIMIT, "timeout": 15.0, "grace": 0.5, "git_wait": 0}
    chosen = settings.resolve({**flags, "check_interval": 1.0, "quiet": 3, "verbose": 0}, root)
    command = [sys.executable, "-I", "-S", "-c", _PROBE]
    try:
        outcome = runner.run(command, chosen, root, caller)
    except backends.NoUsableBackend as error:
        _, text, hint = error.refused[-1]
        return Check(name, FAIL, text, hint)
    except SandrunError as error:
        return Check(name, FAIL, error.text, error.hint)
    peak = size_text(outcome.usage.peak)
    if outcome.reason != "memory":
        return Check(name, FAIL, f"a probe of 96 MiB ended as {outcome.reason}, not at its limit")
    by = "the kernel" if backends.named(name).kernel else "polling"
    peak += ", sampled" if outcome.usage.sampled else ""
    text = f"ended a probe of 96 MiB at 32 MiB, by {by} (peak {peak})"
    if sys.platform == "linux" and name == "systemd":
        from sandrun.doctor import linux

        text += linux.without_slice()
    return Check(name, PASS, text)


def probe(name: str) -> Check:
    """Run the probe in a child process with a home and a state directory of its own."""
    with tempfile.TemporaryDirectory(prefix="sandrun-doctor-") as scratch:
        read_end, write_end = os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                os.environ.update(SANDRUN_STATE_DIR=scratch, XDG_STATE_HOME=scratch)
                os.environ.update(XDG_CONFIG_HOME=scratch, SANDRUN_POOL="off")
                check = _probe(name)
            except BaseException as error:
                check = Check(name, FAIL, f"the probe failed: {type(error).__name__}: {error}")
            os.write(write_end, json.dumps(vars(check)).encode())
            os._exit(0)
        os.close(write_end)
        with os.fdopen(read_end) as pipe:
            result = pipe.read()
        os.waitpid(pid, 0)
    return Check(**json.loads(result)) if result else Check(name, FAIL, "the probe was killed")


def _backends() -> "list[Check]":
    """One probe per backend. If a backend of the kernel passes, no other one is needed."""
    checks = [probe(name) for name in backends.ORDER]
    enforced = any(c.status == PASS and backends.named(c.name).kernel for c in checks)
    for check in checks:
        if check.status == FAIL and enforced:
            check.status, check.fix = UNUSED, ""
        if check.name == "rlimit" and check.status == PASS and not enforced:
            check.status = CAUTION
            check.evidence += "; a fast leak can exceed the limit for an instant"
    return checks


def _second_lock_file() -> Check:
    """The path of the lock file that also excludes runs with another state directory."""
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
        return Check(name, PASS, f"run lock in {path}")
    return Check(name, CAUTION, f"{note}: runs that share only the checkout are not excluded")


def _named(queue: str) -> Check:
    """Whether other users share a named queue."""
    if not shared_queue(queue):
        fix = f"install -d -m 2770 -g GROUP {SHARED_QUEUES}/{queue}"
        return Check("queue", CAUTION, f"{queue}: excludes your own runs only", fix)
    try:
        lock = RunLock(Queue(state_path("", queue)), root="/", name=queue)
        lock.prepare()
        path, note = lock.second_path(), lock.note
        lock.drop()
    except SandrunError as error:
        return Check("queue", FAIL, error.text, error.hint)
    if note:
        return Check(
            "queue", CAUTION, f"{queue}: {note}", "become one of its users: ls -ld " + path
        )
    return Check("queue", PASS, f"{queue}: shared, by {path}")


def _proc() -> "list[Check]":
    """A caution if /proc does not show our own processes; no check if it does, as nearly always."""
    if DARWIN or processes.PROC != processes.NO_PROC:
        return []
    text = "shows no processes of our pid namespace, so none can be examined or named"
    return [Check("proc", CAUTION, text, processes.MOUNT_PROC)]


def _daemons(chosen: settings.Settings) -> "list[Check]":
    """A caution about the user's daemons that would do a run's work outside of its limits."""
    env = dict(os.environ)
    if chosen.daemons == "contain":
        contain_daemons(env, chosen, "0")
    root = project.find(project.working_directory())
    found = [p for p in map(daemons.describe, outside.serving(root, env)) if p]
    if not found:
        return (
            [] if DARWIN else [Check("daemons", PASS, "none outside of runs does their work here")]
        )
    text = ", ".join(f"{p.daemon} (pid {p.pid})" for p in found[:5])
    text += ": does the work of runs outside of them, beyond their limits and their end"
    status = PASS if chosen.daemons == "leave" else CAUTION  # "leave" is the user's choice
    return [Check("daemons", status, text, daemons.ways_out(found))]


_DOCKER = ("/run/docker.sock", "/var/run/docker.sock")


def _docker() -> "list[Check]":
    """A caution that docker's daemon is outside of every run. No check if there is no docker."""
    host = os.environ.get("DOCKER_HOST", "")
    rootless = f"{os.environ.get('XDG_RUNTIME_DIR', '')}/docker.sock"
    found = host or next(filter(_is_socket, (*_DOCKER, rootless)), "")
    if not found:
        return []
    text = (
        f"{found}: its daemon starts containers outside of runs, beyond their limits and their end"
    )
    fix = "docker run --rm --memory SIZE, or --cgroup-parent a slice that has limits"
    return [Check("docker", CAUTION, text, fix)]


def _is_socket(path: str) -> bool:
    try:
        return stat.S_ISSOCK(os.stat(path).st_mode)
    except OSError:
        return False


def _git() -> Check:
    passed, evidence, fix = guard.leak_check()
    return Check("git", PASS if passed else CAUTION, evidence, fix)


def examine(chosen: settings.Settings) -> "list[Check]":
    """Run all checks, in order, with the settings `chosen` here."""
    host = os.uname()
    probes = _backends()
    versions = f"Python {sys.version.split()[0]}, sandrun {__version__}"
    of_kernel: list[Check] = []
    of_host: list[Check] = []
    if sys.platform == "linux" and not DARWIN:
        from sandrun.doctor import linux

        of_kernel = [linux.hierarchy(), *linux.features()]
        of_host = [*linux.logout(probes), linux.prctl(), linux.private()]
    return [
        Check("versions", PASS, f"{versions}, {host.sysname} {host.release}"),
        *of_kernel,
        *_proc(),
        *probes,
        *of_host,
        state(),
        trusted(chosen),
        *([_named(chosen.queue)] if chosen.queue else [_second_lock_file()]),
        _git(),
        *_daemons(chosen),
        *_docker(),
    ]
