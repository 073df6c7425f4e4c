"""The one path of a run; every entry point comes through `run`.

    settings -> project -> ticket in queue -> (head) run lock -> pool -> git guard
             -> backend opens container -> child enters it, then exec -> supervise
             -> outcome -> kill what is left -> close container -> record -> release

Only this module knows both queues and backends. A run inside a run of the same queue takes no
ticket: it starts at once, in a container inside the outer one (`sandrun.queue.nesting`).
"""

import os
import sys
import time

from sandrun import backends, history, messages
from sandrun.config import project as projects
from sandrun.config import settings as settled
from sandrun.git import guard
from sandrun.lifecycle import module_files
from sandrun.lifecycle.admission import Place, Refused, take
from sandrun.model import EXIT_HANGUP, EXIT_SANDRUN, RUNS_VARIABLE, SCCACHE_SOCKET, Outcome
from sandrun.platform import spawn
from sandrun.supervise import Supervisor

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from sandrun.backends.protocol import Backend, Container
    from sandrun.config.settings import Settings
    from sandrun.queue import RunLock
    from sandrun.supervise.keeper import Keeper
    from sandrun.types import Record

_KILLED = ("signal", "timeout", "cpu-time", "idle", "parent", "memory", "escaped")
"""Ends that may leave git's locks behind: the run's processes had no time to clean up."""

PROJECT_VARIABLE = "SANDRUN_PROJECT"
"""In the command's environment: the project whose queue the innermost such run has joined. With
the former it tells a shim or a Makefile, without a start of sandrun, that it need not queue."""


class Run:
    """One run: what was asked, its place in the queue, and the record that it will leave."""

    def __init__(
        self, command: "list[str]", settings: "Settings", project: str, caller: spawn.CallerState
    ) -> None:
        self.id = os.urandom(4).hex()
        self.command = command
        self.settings = settings
        self.project = project
        self.caller = caller
        self.state = projects.state_path(project, settings.queue)
        self.mark = f"{self.state}/{self.id}"
        self.around = os.environ.get(RUNS_VARIABLE, "")
        self.place = Place()
        self.log: history.Log | None = None
        self.keeper: Keeper | None = None
        self.line = b""
        """What the run lock's file says of the run, once it has a container."""
        self.unkillable: list[int] = []
        self.record: Record = {
            "id": self.id,
            "pid": os.getpid(),
            "project": settings.queue or project,
            "cwd": projects.working_directory(),
            "command": history.bounded(command),
        }

    def environment(self) -> "dict[str, str]":
        """The command's environment: the caller's, and the mark of this run."""
        mark = self.mark
        marks = {RUNS_VARIABLE: f"{self.around}{os.pathsep}{mark}" if self.around else mark}
        if not self.settings.source["queue"].startswith("-"):  # a flag's queue is not the project's
            marks[PROJECT_VARIABLE] = self.project
        env = spawn.environment(marks)
        if self.settings.clean_git_env:
            guard.clean(env, guard.is_hook(self.command))
        if self.settings.daemons == "contain":
            contain_daemons(env, self.settings, self.id)
            if self.record.get("backend") in _OF_V2:  # not known before the wait
                env.setdefault("CONTAINERS_CONF_OVERRIDE", _PODMAN)
            guard.keep_housekeeping(env, self.project)
        return env


_OF_V2 = ("cgroup2", "systemd")
_PODMAN = f"{os.path.dirname(__file__)}/podman.conf"
"""Has podman (4.4 and newer) put containers into the run's group instead of beside it, on cgroup
v2. A file of the package: a run writes none, and one that is killed leaves none."""
DAEMONLESS = (
    ("NX_DAEMON", "false"),
    ("PANTS_PANTSD", "false"),
    ("DISABLE_SPRING", "1"),
    ("MSBUILDDISABLENODEREUSE", "1"),
)
"""Variables by which a tool does its work itself, in the run, instead of asking a daemon that may
be outside of it. `sandrun.supervise.daemons` has their sources; here they cost no import."""
_GRADLE = "-Dorg.gradle.daemon="


def contain_daemons(env: "dict[str, str]", settings: "Settings", run_id: str) -> None:
    """Have tools work in the run where a variable of theirs does that and the user has not set it.

    sccache cannot work without a server: the run gets one of its own, named by `run_id`, but not
    where nothing would end it with the run. An abstract Unix socket leaves no file and is nobody
    else's; versions that know only the port (before SCCACHE_SERVER_UDS, or not on Linux) get one
    below those that the kernel gives to clients (ip_local_port_range in ip(7)).
    """
    ends = settings.leftovers == "kill" and settings.backend != "none"
    for name, value in DAEMONLESS:
        env.setdefault(name, value)
    options = env.get("GRADLE_OPTS", "")
    if _GRADLE not in options and _GRADLE not in env.get("JAVA_OPTS", ""):
        env["GRADLE_OPTS"] = f"{options} {_GRADLE}false".lstrip()
    if ends and "SCCACHE_SERVER_PORT" not in env and "SCCACHE_SERVER_UDS" not in env:
        env["SCCACHE_SERVER_PORT"] = str(20000 + int(run_id, 16) % 12000)
        if sys.platform == "linux":
            env["SCCACHE_SERVER_UDS"] = SCCACHE_SOCKET + run_id


def run(
    command: "list[str]", settings: "Settings", project: str, caller: spawn.CallerState
) -> Outcome:
    """Run `command` through the queue of `project`, contained; how it ended.

    Raises SandrunError when sandrun fails before the command was started, and errors.Interrupted
    when a signal ended it before that.
    """
    owner = projects.owner(project)
    if settings.waiting or owner >= 0:
        from sandrun.config import trust

        trust.notify(settings.waiting, project, owner)
    this = Run(command, settings, project, caller)
    if settings.backend == "none":  # refused before the wait
        backends.choose("none", this.id, settled.limits(settings, project), False)
    if settings.private_tmp or settings.private_ipc:
        from sandrun.lifecycle import namespaces

        namespaces.check(this)
    began = time.time()
    try:
        this.log = history.Log()  # before the wait, so that no hand-off waits for it
    except OSError:
        pass  # the record will go to the state directory
    for subscriber in messages.subscribers:
        subscriber.queued(this.id)
    module_files.hold()
    try:
        this.place = take(this)
    except Refused as refused:
        return _refused(this, refused.number, began)
    this.record["limit"] = this.settings.memory  # a small pool shrinks the default
    this.record["since"] = since = time.time()
    this.record["wait"] = since - began
    outcome = Outcome("failed", 125)
    try:
        outcome = _guard_git(this) or (
            _contained(this) if _is_wanted(this) else Outcome("parent", EXIT_HANGUP)
        )
        if outcome.reason in _KILLED and not outcome.unkillable and _all_dead(this):
            _surely(lambda: guard.heal_after(project, since, this.id))
    except BaseException as error:
        signum = getattr(error, "signum", 0)
        if signum:
            outcome = Outcome("left", 128 + signum)
        raise
    finally:
        _surely(lambda: _record(this, outcome, time.time() - since))
        if this.keeper and this.unkillable:
            _note_unkillable(this)
            this.keeper.outlast()  # and keeps the run lock: no release empties it
        this.place.release()
        if this.keeper:
            this.keeper.reap()
        if sys.platform != "win32" and this.place.lock and this.place.lock.is_new:
            _surely(lambda: _remove_unused(os.path.dirname(this.state)))
    return outcome


def _surely(step: "Callable[[], None]") -> None:
    """Do what comes after the command's end: whatever goes wrong there, its exit code stands."""
    try:
        step()
    except Exception as error:
        messages.error(
            f"internal error after the command's end: {type(error).__name__}: {error}",
            "the exit code is the run's all the same; this is a bug",
        )


def _remove_unused(root: str) -> None:
    """After the first run of a project: remove the state of projects that are used no more."""
    try:
        others = sum(map(projects.is_state_name, os.listdir(root))) > 1
    except OSError:  # no right to list it
        return
    if others:
        from sandrun.queue import unused_states

        unused_states.remove_some(root)


def _refused(this: Run, number: int, began: float) -> Outcome:
    from sandrun.supervise import report

    outcome = report.not_started("X", number, this.command)
    this.record |= {"limit": this.settings.memory, "since": began, "wait": 0.0}
    _record(this, outcome, 0.0)
    return outcome


def _is_wanted(this: Run) -> bool:
    """Whether the process whose death ends the run still lives, now that it is our turn."""
    parent = 0 if this.settings.detach else this.caller.parent
    if parent in (0, os.getppid()):
        return True
    messages.status("left the queue: the process that had started sandrun died")
    return False


def _guard_git(this: Run) -> "Outcome | None":
    """Wait for a git at work in the project; the outcome if the command cannot be started."""
    settings = this.settings
    undecided = settings.source["clean_git_env"] == "default"
    if undecided and (leak := guard.leaked(guard.is_hook(this.command))):
        messages.warn(
            f"{', '.join(leak)} from the environment: every git in this run acts on one repository",
            guard.LEAK_HINT,
        )
    if not settings.git_wait or guard.is_quiet(this.project):
        return None
    from sandrun.supervise import command_lookup, report

    if number := command_lookup.refusal(this.command[0], this.project, time.time()):
        return report.not_started("X", number, this.command)
    guard.wait_quiet(this.project, settings.git_wait, this.caller.mask)
    return None


def _note_unkillable(this: Run) -> None:
    if sys.platform != "win32" and this.place.lock:
        from sandrun.queue import holder

        holder.note_unkillable(this.place.lock, this.line, this.unkillable)


def _finish_lost(container: "Container", line: bytes, lock: "RunLock | None") -> None:
    """What a keeper does when the supervisor is dead."""
    from sandrun.lifecycle import recovery

    recovery.finish(container, line, lock)


def _all_dead(this: Run) -> bool:
    """Whether the closed container proves that no process of the run lives."""
    return this.settings.leftovers != "leave" and this.record.get("backend", "none") != "none"


def _contained(this: Run) -> Outcome:
    """Run the command in a container, from opening to closing it."""
    settings, place = this.settings, this.place
    limits = settled.limits(settings, this.project)
    limits.outlives_caller = not this.caller.parent
    backend, container, refused = backends.choose(
        settings.backend, this.id, limits, settings.require == "kernel"
    )
    messages.decision(
        f"backend {backend.name}" + (f" (not {'; not '.join(refused)})" if refused else "")
    )
    if refused and not backend.kernel and not this.around:
        _note_fallback(this)
    container.mark = this.mark
    this.record["backend"] = backend.name
    more = {
        "v": history.VERSION,
        **this.record,
        "container": container.token,
        "leftovers": settings.leftovers,
        "state": this.state,
    }
    if container.token:
        from sandrun.platform import processes

        born = processes.start(os.getpid())
        if born:
            more["born"] = born
    this.line = line = history.encode(more).encode()
    if place.lock:
        place.lock.write_holder(line)
    keeper = None
    try:
        if container.token:
            from sandrun.supervise.keeper import Keeper

            parent = 0 if settings.detach else this.caller.parent
            keeper = Keeper(
                container,
                place.descriptors(),
                place.lock,
                lambda: _finish_lost(container, line, place.lock),
                parent,
                backend.kernel,
            )
        outcome = _supervised(this, backend, container, keeper)
        this.unkillable = outcome.unkillable
        if not outcome.is_unremarkable():
            _surely(lambda: _report(outcome, settings, backend))
    except BaseException:
        try:
            container.kill()
        except TimeoutError as error:
            this.unkillable = error.args[0]
        raise
    finally:
        container.close()
        this.keeper = keeper
        if keeper and not this.unkillable:
            keeper.dismiss()
    return outcome


_NOTED = "fallback-noted"
"""The file that keeps the boot in which a project was told so; of two at once both may say it."""


def _note_fallback(this: Run) -> None:
    """Say that no kernel enforces the limits: once a boot and project, or with -v."""
    from sandrun.platform import processes

    try:
        boot = processes.read("/proc/sys/kernel/random/boot_id").decode().strip()
    except OSError:
        boot = "this one"  # where /tmp is emptied at a boot: macOS
    queue = this.place.queue
    if messages.level < 0 or (messages.level == 0 and queue and queue.read_note(_NOTED) == boot):
        return
    messages.status("a monitor polls the limits, no kernel enforces them here: sandrun doctor")
    if queue:
        queue.write_note(_NOTED, boot)


def _report(outcome: Outcome, settings: "Settings", backend: "Backend") -> None:
    from sandrun.supervise import report

    report.end(outcome, settings, backend)


def _terminal_modes() -> "list[Any] | None":
    if sys.platform == "win32" or not any(map(os.isatty, (0, 1, 2))):
        return None
    from sandrun.platform import posix_terminal

    return posix_terminal.modes()


def _supervised(
    this: Run, backend: "Backend", container: "Container", keeper: "Keeper | None"
) -> Outcome:
    this.place.hand_down()
    signum = spawn.pending_end_signal(this.caller)
    if signum:
        from sandrun.errors import Interrupted

        raise Interrupted(signum, waited=False)
    stage, number, what = "", 0, ""
    modes = _terminal_modes()
    env = this.environment()
    apart = [this.project, this.record["cwd"]]
    if this.settings.private_tmp or this.settings.private_ipc:
        from sandrun.lifecycle import namespaces

        planned = namespaces.plan(this, env)
        this.caller.isolate = planned.enter
        apart += [step[0] for step in planned.steps]
    try:
        child = container.spawn(this.command, env, this.caller)
    except OSError as error:
        stage, number = "X", error.errno or 0
    else:
        # First of all: from now on what the terminal sends reaches the command without us.
        supervisor = Supervisor(child, container, this.settings, backend.kernel, keeper)
        supervisor.apart = tuple(apart)
        # A run inside another one leaves that to the outer one, and `none` contains nothing.
        contains = this.settings.daemons == "contain" and container.token and not this.around
        if contains and sys.platform != "win32":
            supervisor.served = this.project, env
        this.place.show()
        outcome = _elsewhere(this.record["cwd"], supervisor.run)
        if modes and outcome.reason != "exit":
            from sandrun.platform import posix_terminal

            posix_terminal.restore(modes)
        stage, number, what = spawn.failure(this.caller)
    if stage == "N":
        from sandrun.lifecycle import namespaces

        refused = namespaces.refusal(number, what)
        messages.error(refused.text, refused.hint)
        return Outcome("failed", EXIT_SANDRUN)
    if stage:
        from sandrun.supervise import report

        return report.not_started(stage, number, this.command)
    return outcome


def _elsewhere(directory: str, call: "Callable[[], Outcome]") -> Outcome:
    """What `call` returns, called in `/`: the caller's `directory` can be unmounted or removed as
    soon as the command has left it. What follows may need it again, for what the environment names
    by a relative path (GIT_DIR); we come back unless the path leads to another one by now.
    """
    if sys.platform == "win32":
        return call()
    try:
        here = os.stat(os.curdir)
        os.chdir("/")
    except OSError:
        return call()  # no right to search it, or the root
    try:
        return call()
    finally:
        try:
            if os.path.samestat(os.stat(directory), here):
                os.chdir(directory)
        except OSError:
            pass


def _record(this: Run, outcome: Outcome, wall: float) -> None:
    times = os.times()
    this.record["wall"] = wall
    this.record["exit"] = outcome.code
    this.record["reason"] = outcome.reason
    this.record["peak"] = outcome.usage.peak
    this.record["peak_with_cache"] = outcome.usage.peak_with_cache
    this.record["stalled"] = outcome.usage.stalled
    cpu = outcome.usage.cpu
    this.record["cpu"] = times.children_user + times.children_system if cpu is None else cpu
    try:
        history.append(this.record, this.state, this.log)
    except OSError as error:
        messages.decision(f"cannot record the run: {error}")
    for subscriber in messages.subscribers:
        subscriber.ended(this.record)
