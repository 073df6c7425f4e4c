"""cgroup v1: the memory controller limits the run, the kernel's OOM killer enforces it.

The group is made below our own (`sandrun-<id>`), so nested runs are charged to the outer one and
nothing outside our place is touched. v1 kills one process at the limit and not the group: we watch
memory.oom_control and end the rest. Facts: Documentation/admin-guide/cgroup-v1/memory.rst.

The child enters through `tasks` and not `cgroup.procs`: a single thread that moves itself needs
no threadgroup lock, whose writers wait for RCU (2.2 ms for fork, enter, exec against 9.7 ms).

Left to others: groups of runs whose supervisor died are closed by `attach(token)`.
"""

import errno
import os
import time

from sandrun import kernel, messages, sampling, spawn
from sandrun.model import Limits, Process, Unusable, Usage

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from sandrun.protocol import Check

GROUP_PREFIX = "sandrun-"
KILL_SECONDS = 10.0


class Node:
    """What cgroupspy's controllers need to know of a group: where it is."""

    def __init__(self, path: str) -> None:
        self.full_path = os.fsencode(path)


def own_group(controller: str) -> str:
    """The directory of our own group of a v1 controller. Raises Unusable.

    Where only a subtree is mounted (a container), /proc/self/cgroup still tells the whole path;
    mountinfo tells which part of it the mount shows (proc(5), cgroups(7)).
    """
    for line in kernel.read("/proc/self/mountinfo").decode("utf-8", "surrogateescape").split("\n"):
        fields, _, more = line.partition(" - ")
        kind, *rest = more.split(" ")
        if kind == "cgroup" and controller in rest[-1].split(","):
            root, mount = fields.split(" ")[3:5]
            break
    else:
        raise Unusable(f"no cgroup v1 {controller} controller is mounted")
    for line in kernel.read("/proc/self/cgroup").decode("utf-8", "surrogateescape").split("\n"):
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        if controller in controllers.split(","):
            break
    else:
        raise Unusable(f"we are in no cgroup v1 {controller} group")
    inside = path if root == "/" else path.removeprefix(root)
    return os.path.normpath(mount + "/" + inside)


class Cgroup1Container:
    """See `sandrun.protocol.Container`."""

    def __init__(self, path: str, limits: "Limits | None" = None) -> None:
        from cgroupspy.controllers import MemoryController

        self.token = path
        self.keeper = 0
        self.struck = ""
        self.control = MemoryController(Node(path))
        self.limits = limits
        self.events = -1
        self.sampler = sampling.Sampler(limits.memory if limits else 0)

    def create(self) -> None:
        """Make the group and set its limits, read back because v1 rounds and may refuse."""
        assert self.limits
        os.mkdir(self.token)
        try:
            self._set("limit_in_bytes", self.limits.memory)
            took = self.control.limit_in_bytes
            if took > self.limits.memory or took < self.limits.memory - os.sysconf("SC_PAGESIZE"):
                raise Unusable(f"memory.limit_in_bytes took {took} for {self.limits.memory}")
            if os.path.exists(os.path.join(self.token, "memory.memsw.limit_in_bytes")):
                self._set("memsw_limit_in_bytes", self.limits.memory)
            self._watch()
        except BaseException:
            os.rmdir(self.token)
            raise

    def _set(self, name: str, value: int) -> None:
        messages.detail(f"{self.token}: memory {name} = {value}")
        setattr(self.control, name, value)

    def _watch(self) -> None:
        """Ask for an event at each OOM: an eventfd registered in cgroup.event_control."""
        self.events = os.eventfd(0, os.EFD_CLOEXEC)
        control = os.open(os.path.join(self.token, "memory.oom_control"), os.O_RDONLY)
        try:
            self.control.set_property(b"cgroup.event_control", f"{self.events} {control}")
        finally:
            os.close(control)

    def spawn(self, argv: "list[str]", env: "Mapping[str, str]", heritage: spawn.Heritage) -> int:
        return spawn.fork(argv, env, heritage, self._enter)

    def _enter(self) -> None:
        fd = os.open(os.path.join(self.token, "tasks"), os.O_WRONLY | os.O_CLOEXEC)
        os.write(fd, b"0")
        os.close(fd)

    def poll(self) -> "float | None":
        if not self.struck:
            killed = dict(self.control.oom_control or {}).get("oom_kill", 0)
            if killed:
                self.struck = "the kernel ended a process at the limit"
        current = int(self.control.usage_in_bytes)
        self.sampler.look(current, self.pids)
        return self.sampler.due(current)

    def wait_event(self) -> bool:
        if self.events < 0:
            return False
        os.read(self.events, 8)
        return True

    def usage(self) -> Usage:
        stat = self._stat()
        files = stat.get("total_inactive_file", 0) + stat.get("total_active_file", 0)
        try:
            current = max(0, int(self.control.usage_in_bytes) - files)
            return Usage(current, int(self.control.max_usage_in_bytes))
        except OSError:
            return Usage()

    def _stat(self) -> "dict[str, int]":
        try:
            return {key: int(value) for key, value in dict(self.control.stat).items()}
        except (OSError, ValueError):
            return {}

    def top(self) -> "list[Process]":
        return self.sampler.top()

    def pids(self) -> "list[int]":
        found: list[int] = []
        for path, _, _ in os.walk(self.token):
            try:
                found.extend(map(int, kernel.read(os.path.join(path, "cgroup.procs")).split()))
            except OSError:
                continue
        return [pid for pid in found if not kernel.is_zombie(pid)]

    def kill(self) -> None:
        deadline = time.monotonic() + KILL_SECONDS
        pause = 0.001
        while pids := self.pids():
            for pid in pids:
                try:
                    # A pid just read from the group: the gap to reuse is microseconds, and v1
                    # has no atomic kill.
                    os.kill(pid, 9)
                except OSError:
                    continue
            if time.monotonic() > deadline:
                raise TimeoutError(pids)
            time.sleep(pause)
            pause = min(pause * 2, 0.05)

    def close(self) -> None:
        if self.events >= 0:
            os.close(self.events)
            self.events = -1
        # Zombies that nobody reaped yet do not keep a group, dying threads do for an instant.
        deadline = time.monotonic() + 2
        for path, _, _ in os.walk(self.token, topdown=False):
            while True:
                try:
                    os.rmdir(path)
                except OSError as error:
                    if error.errno == errno.EBUSY and time.monotonic() < deadline:
                        time.sleep(0.002)
                        continue
                break


class Cgroup1Backend:
    """See `sandrun.protocol.Backend`."""

    name = "cgroup1"
    kernel = True

    def open(self, run_id: str, limits: Limits) -> Cgroup1Container:
        try:
            group = own_group("memory")
            container = Cgroup1Container(os.path.join(group, GROUP_PREFIX + run_id), limits)
            container.create()
        except ImportError:
            raise Unusable("cgroupspy is not installed", "pip install cgroupspy") from None
        except OSError as error:
            raise Unusable(
                f"cannot make a memory group: {error.filename}: {error.strerror}",
                "run as root, or have an administrator give you that group: "
                f"chown -R $USER {os.path.dirname(str(error.filename))}",
            ) from None
        return container

    def attach(self, token: str) -> Cgroup1Container:
        if not os.path.basename(token).startswith(GROUP_PREFIX):
            raise Unusable(f"{token} is not a group of sandrun's")
        return Cgroup1Container(token)

    def check(self) -> "list[Check]":
        from sandrun.doctor import try_backend

        return try_backend(self)
