"""The one path of a run; every entry point calls `run`.

    settings -> project -> ticket in queue -> (head) run lock -> pool -> git guard
             -> backend opens container -> child enters it, then exec -> supervise
             -> outcome -> kill what is left -> record -> release -> close container

A run inside a run of the same queue starts at once, in an inner container (`queue.nesting`).
"""

import os
import sys
import time

from sandrun import backends, history, messages
from sandrun.config import project as projects
from sandrun.git import guard
from sandrun.lifecycle import Request, module_files
from sandrun.lifecycle.admission import Admission, Refused
from sandrun.model import DARWIN, EXIT_HANGUP, EXIT_SANDRUN, Outcome, SandrunError
from sandrun.platform import folders, spawn
from sandrun.supervise import Supervisor

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from sandrun.backends.protocol import Backend, Container
    from sandrun.config.settings import Settings
    from sandrun.supervise.keeper import Keeper
    from sandrun.types import Record

_KILLED = ("signal", "timeout", "cpu-time", "idle", "parent", "memory", "escaped")
"""Reasons after which git's locks may be left: the run's processes may not have cleaned up."""


def run(
    command: "list[str]", settings: "Settings", project: str, caller: spawn.CallerState
) -> Outcome:
    """Run `command` in the queue of `project` and in a container, and return its outcome.

    Raises SandrunError when sandrun fails before the command was started, and errors.Interrupted
    when a signal ends sandrun before that.
    """
    owner = projects.foreign_owner(project)
    if settings.untrusted or owner >= 0:
        from sandrun.config import trust

        trust.notify(settings.untrusted.items(), project, owner)
    request = Request(command, settings, project, caller)
    if settings.backend == "none":  # refused before the wait
        backends.choose("none", request.id, settings.limits(project), False)
    if settings.private_tmp or settings.private_ipc:
        _check_isolation(request)
    return Run(request).execute()


def _check_isolation(request: Request) -> None:
    """Raise SandrunError unless the run can have its own /tmp or IPC."""
    if sys.platform != "linux" or DARWIN:
        raise SandrunError(
            "--private-tmp and --private-ipc need Linux: this system has no namespaces",
            "leave them out: private_tmp, private_ipc, SANDRUN_PRIVATE_TMP, SANDRUN_PRIVATE_IPC",
        )
    from sandrun.lifecycle import isolation

    isolation.check(request)


class Run:
    """One run: its request, its admission, and the record that it will leave."""

    def __init__(self, request: Request) -> None:
        self.admission = Admission(request, self._open_early)
        self.record: Record = {
            "id": request.id,
            "pid": os.getpid(),
            "project": request.settings.queue or request.project,
            "cwd": request.cwd,
            "command": history.bounded(request.command),
        }
        self._log: history.Log | None = None
        self._keeper: Keeper | None = None
        self._opened: tuple[Backend, Container, list[str]] | None = None
        """The container, its backend, and why better ones are not used: opened before our turn."""
        self._opened_in = b""
        """Our cgroups at that moment."""
        self._container: Container | None = None
        """The container to be closed when the run lock is free."""
        self._line = b""  # the holder's line (`sandrun.queue.holder`), set with the container
        self._unkillable: list[int] = []

    @property
    def request(self) -> Request:
        """What was asked; once admitted, with the effective limits."""
        return self.admission.request

    def execute(self) -> Outcome:
        """Wait for admission, run the command, record the run, and release everything."""
        began = time.time()
        try:
            self._log = history.Log()  # opened before the wait, so that it delays no hand-off
        except OSError:
            pass  # the record will go to the state directory
        for subscriber in messages.subscribers:
            subscriber.queued(self.request.id)
        module_files.hold()
        try:
            self.admission.acquire()
        except BaseException as error:
            if self._container:
                self._container.close()
            if isinstance(error, Refused):
                return self._refuse(error.number, began)
            raise
        request, since = self.request, time.time()
        self.record |= {"limit": request.settings.memory, "since": since, "wait": since - began}
        if since - began >= 1 and self.admission.waits:
            self.record["waited_for"] = self.admission.waited_for()
        outcome = Outcome("failed", EXIT_SANDRUN)
        try:
            outcome = self._guard_git() or self._run_if_wanted()
            if outcome.reason in _KILLED and not outcome.unkillable and self._is_all_dead():
                _guarded(lambda: guard.heal_after(request.project, since, request.id))
        except BaseException as error:
            if signum := getattr(error, "signum", 0):
                outcome = Outcome("left", 128 + signum)
            raise
        finally:
            _guarded(lambda: self._write_record(outcome, time.time() - since))
            self._release()
        return outcome

    def _release(self) -> None:
        keeper, lock = self._keeper, self.admission.lock
        if keeper and self._unkillable:
            if sys.platform != "win32" and lock:
                from sandrun.queue import holder

                holder.note_unkillable(lock, self._line, self._unkillable)
            keeper.outlast()  # it keeps the run lock, which our release then does not free
        self.admission.release()
        if self._container:
            self._container.close()
        if keeper:
            keeper.reap()
        if sys.platform != "win32" and lock and lock.is_new:
            _guarded(self.admission.remove_unused_states)

    def _refuse(self, number: int, began: float) -> Outcome:
        from sandrun.supervise import report

        outcome = report.not_started("X", number, self.request.command)
        self.record |= {"limit": self.request.settings.memory, "since": began, "wait": 0.0}
        self._write_record(outcome, 0.0)
        return outcome

    def _guard_git(self) -> "Outcome | None":
        """Wait for a git at work in the project. Returns an outcome if the command is refused."""
        request, settings = self.request, self.request.settings
        undecided = settings.source["clean_git_env"] == "default"
        if undecided and (leak := guard.leaked(guard.is_hook(request.command))):
            text = "from the environment: every git in this run acts on one repository"
            messages.warn(f"{', '.join(leak)} {text}", guard.LEAK_HINT)
        if not settings.git_wait or guard.is_quiet(request.project):
            return None
        from sandrun.supervise import command_lookup, report

        if number := command_lookup.refusal(request.command[0], request.project, time.time()):
            return report.not_started("X", number, request.command)
        guard.wait_for_git(request.project, settings.git_wait, request.caller.mask)
        return None

    def _parent(self) -> int:
        """The process whose death ends the run; 0: none."""
        return 0 if self.request.settings.detach else self.request.caller.parent

    def _run_if_wanted(self) -> Outcome:
        """Run the command, unless the process whose death ends the run died during the wait."""
        if self._parent() in (0, os.getppid()):
            return self._run_contained()
        messages.status("left the queue: the process that had started sandrun died")
        return Outcome("parent", EXIT_HANGUP)

    def _is_all_dead(self) -> bool:
        """Whether the container proves that no process of the run lives."""
        is_contained = self.record.get("backend", "none") != "none"
        return is_contained and self.request.settings.leftovers != "leave"

    def _open_early(self) -> None:
        """Open the container before our turn, to shorten the time from the turn to the start. If
        that fails, it is opened at our turn, and only then an error is reported."""
        try:
            self._opened = self._open(early=True)
            self._container, self._opened_in = self._opened[1], backends.own_cgroups()
            history.encode(self._container.token)  # imports what quoting line breaks needs
        except SandrunError:
            pass

    def _open(self, early: bool = False) -> "tuple[Backend, Container, list[str]]":
        request, settings = self.request, self.request.settings
        limits = settings.limits(request.project)
        limits.outlives_caller = not request.caller.parent
        strict = settings.require == "kernel"
        return backends.choose(settings.backend, request.id, limits, strict, early)

    def _usable(self) -> "tuple[Backend, Container, list[str]]":
        """What `_open_early` opened, if that can still be used, else a new container."""
        opened = self._opened
        if opened and not backends.is_usable(opened[1], self._opened_in):
            opened[1].close()
            opened = self._container = None
        return opened or self._open()

    def _run_contained(self) -> Outcome:
        """Open a container and run the command in it until no process of the run is left."""
        request, settings, lock = self.request, self.request.settings, self.admission.lock
        backend, container, refused = self._usable()
        others = f" (not {'; not '.join(refused)})" if refused else ""
        messages.decision(f"backend {backend.name}{others}")
        if refused and not backend.kernel and not request.enclosing:
            self.admission.report_fallback()
        container.mark = request.mark
        self.record["backend"] = backend.name
        self._line = self._holder_line(container)
        if lock:
            lock.write_holder(self._line)
        keeper = None
        try:
            if container.token:
                keeper = self._start_keeper(backend, container)
            outcome = self._run_supervised(backend, container, keeper)
            self._unkillable = outcome.unkillable
            if not outcome.is_unremarkable():
                _guarded(lambda: _report_end(outcome, settings, backend))
        except BaseException:
            try:
                container.kill()
            except TimeoutError as error:
                self._unkillable = error.args[0]
            raise
        finally:
            self._keeper = keeper
            # The container is empty, so it is removed after the run lock is free. If we are killed
            # before that, a later run removes it (`cgroup_common.collect`). A job of Windows is
            # closed now.
            self._container = container
            if self._unkillable or sys.platform == "win32":
                container.close()
                self._container = None
            if keeper and not self._unkillable:
                keeper.dismiss()
        return outcome

    def _holder_line(self, container: "Container") -> bytes:
        fields = {
            "v": history.VERSION,
            **self.record,
            "container": container.token,
            "leftovers": self.request.settings.leftovers,
            "state": self.request.state,
        }
        if container.token:
            from sandrun.platform import processes

            if born := processes.start(os.getpid()):
                fields["born"] = born
        return history.encode(fields).encode()

    def _start_keeper(self, backend: "Backend", container: "Container") -> "Keeper":
        from sandrun.supervise.keeper import Keeper

        lock, line = self.admission.lock, self._line

        def finish() -> None:
            from sandrun.lifecycle import recovery

            recovery.finish(container, line, lock)

        private = self.admission.private_descriptors()
        with module_files.Elsewhere(line, lock.descriptors() if lock else []) as later:
            return Keeper(container, private, lock, finish, self._parent(), backend.kernel, later)

    def _run_supervised(
        self, backend: "Backend", container: "Container", keeper: "Keeper | None"
    ) -> Outcome:
        request, settings, caller = self.request, self.request.settings, self.request.caller
        self.admission.make_lock_inheritable()
        if signum := spawn.pending_end_signal(caller):
            from sandrun.errors import Interrupted

            raise Interrupted(signum, waited=False)
        modes = _terminal_modes()
        env = request.environment(backend.name)
        excluded = [request.project, request.cwd]
        if sys.platform == "linux" and (settings.private_tmp or settings.private_ipc):
            from sandrun.lifecycle import isolation

            planned = isolation.plan(request, env)
            caller.isolate = planned.enter
            excluded += [step[0] for step in planned.steps]
        try:
            child = container.spawn(request.command, env, caller)
        except OSError as error:
            return _report_not_started("X", error.errno or 0, request.command)
        # No code may come in between: the terminal's signals now reach the command without us.
        supervisor = Supervisor(child, container, settings, backend.kernel, keeper)
        supervisor.git, supervisor.record = guard, self.record
        supervisor.keep = settings.history_age, settings.history_size
        if sys.platform == "win32":
            from sandrun.queue import windows_queue

            supervisor.end_event = windows_queue.end_event(self.admission.ticket)
        else:
            supervisor.excluded = tuple(excluded)
            # An outer run watches for daemons itself, and `none` contains nothing.
            if settings.daemons == "contain" and container.token and not request.enclosing:
                supervisor.daemon_search = request.project, env
        supervisor.publish = self.admission.publish_queue_file
        outcome = folders.call_in_root(request.cwd, supervisor.run)
        if modes and outcome.reason != "exit":
            _restore_terminal(modes)
        stage, number, what = spawn.failure(caller)
        return _report_not_started(stage, number, request.command, what) if stage else outcome

    def _write_record(self, outcome: Outcome, wall: float) -> None:
        times, usage = os.times(), outcome.usage
        cpu = times.children_user + times.children_system
        self.record |= {
            "wall": wall,
            "exit": outcome.code,
            "reason": outcome.reason,
            "peak": usage.peak,
            "peak_with_cache": usage.peak_with_cache,
            "stalled": usage.stalled,
            "processes": usage.most_tasks,
            "cpu": cpu if usage.cpu is None else usage.cpu,
        }
        try:
            history.append(self.record, self.request.state, self._log)
        except OSError as error:
            messages.decision(f"cannot record the run: {error}")
        for subscriber in messages.subscribers:
            subscriber.ended(self.record)


def _guarded(step: "Callable[[], None]") -> None:
    """Do a step after the command's end. A failure in it does not change the exit code."""
    try:
        step()
    except Exception as error:
        messages.error(
            f"internal error after the command's end: {type(error).__name__}: {error}",
            "the exit code is the run's all the same; this is a bug",
        )


def _report_end(outcome: Outcome, settings: "Settings", backend: "Backend") -> None:
    from sandrun.supervise import report

    report.end(outcome, settings, backend)


def _report_not_started(stage: str, number: int, command: "list[str]", what: str = "") -> Outcome:
    """Report why the command was not started. Stage N: the step `what` of its namespaces failed."""
    if sys.platform == "linux" and stage == "N":
        from sandrun.lifecycle import namespaces

        refused = namespaces.refusal(number, what)
        messages.error(refused.text, refused.hint)
        return Outcome("failed", EXIT_SANDRUN)
    from sandrun.supervise import report

    return report.not_started(stage, number, command)


def _terminal_modes() -> "list[Any] | None":
    if sys.platform == "win32" or not any(map(os.isatty, (0, 1, 2))):
        return None
    from sandrun.platform import posix_terminal

    return posix_terminal.modes()


def _restore_terminal(modes: "list[Any]") -> None:
    if sys.platform != "win32":
        from sandrun.platform import posix_terminal
        from sandrun.supervise import witness

        posix_terminal.restore(modes, witness.NAME)
