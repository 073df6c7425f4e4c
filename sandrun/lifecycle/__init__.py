"""A run from its request to its record: admission, the one path, recovery, kill, status.

Promises that every run takes the same path and that a killed run is cleaned up by the next one. The
only room that knows both the queue and supervision. Imports queue, supervise, git, backends, config
and what lies below them. (It is not called run: `sandrun.run` is a public function.)

The request is defined here, and not in a module of its own, because each module costs every start.
"""

import os
import sys

from sandrun.config import project as projects
from sandrun.git import guard
from sandrun.model import RUNS_VARIABLE, SCCACHE_SOCKET
from sandrun.platform import spawn
from sandrun.queue.state import state_path

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

    from sandrun.config.settings import Settings

PROJECT_VARIABLE = "SANDRUN_PROJECT"
"""In the command's environment: the project of the innermost run that is in a project's queue. A
shim or a Makefile reads it and RUNS_VARIABLE to find out, without starting sandrun, that it need
not queue."""
_PODMAN = f"{os.path.dirname(__file__)}/podman.conf"
"""On cgroup v2, makes podman (4.4 and newer) put containers into the run's group instead of beside
it. It is a file of the package, so a run writes none and a killed run leaves none."""
DAEMONLESS = (
    ("NX_DAEMON", "false"),
    ("PANTS_PANTSD", "false"),
    ("DISABLE_SPRING", "1"),
    ("MSBUILDDISABLENODEREUSE", "1"),
)
"""Variables that make a tool do its work itself, in the run, instead of asking a daemon that may be
outside of it. `sandrun.supervise.daemons` has their sources; here they cost no import."""
_GRADLE = "-Dorg.gradle.daemon="


class Request:
    """What was asked: a command, in a project's queue, with settings. Immutable.

    `id` names the run. `caller` is the state in which sandrun was started. `cwd` is the directory
    from which it was started. `state` is the queue's state directory. `enclosing` lists the runs
    that the environment names (RUNS_VARIABLE), which prove nothing (`sandrun.queue.nesting`).
    """

    __slots__ = (
        *("caller", "command", "cwd", "enclosing", "id"),
        *("project", "settings", "state"),
    )
    id: "Final[str]"
    command: "Final[list[str]]"
    settings: "Final[Settings]"
    project: "Final[str]"
    caller: "Final[spawn.CallerState]"
    cwd: "Final[str]"
    state: "Final[str]"
    enclosing: "Final[str]"

    def __init__(
        self, command: "list[str]", settings: "Settings", project: str, caller: spawn.CallerState
    ) -> None:
        self.id = os.urandom(4).hex()
        self.command = command
        self.settings = settings
        self.project = project
        self.caller = caller
        self.cwd = projects.working_directory()
        self.state = state_path(project, settings.queue)
        self.enclosing = os.environ.get(RUNS_VARIABLE, "")

    def replace(self, **changes: object) -> "Request":
        """The same request with other attributes."""
        copy = Request.__new__(Request)
        for name in self.__slots__:
            setattr(copy, name, changes.get(name, getattr(self, name)))
        return copy

    @property
    def mark(self) -> str:
        """The entry of this run in RUNS_VARIABLE: the state directory and the id."""
        return f"{self.state}/{self.id}"

    def environment(self, backend: str = "") -> "dict[str, str]":
        """The environment of the command: the caller's, with the variables that mark this run and
        keep its work inside. `backend` is '' if it is not chosen yet.
        """
        runs = f"{self.enclosing}{os.pathsep}{self.mark}" if self.enclosing else self.mark
        marks = {RUNS_VARIABLE: runs}
        if not self.settings.source["queue"].startswith("-"):  # a flag's queue is not the project's
            marks[PROJECT_VARIABLE] = self.project
        env = spawn.environment(marks)
        if self.settings.clean_git_env:
            guard.clean(env, guard.is_hook(self.command))
        if self.settings.daemons == "contain":
            contain_daemons(env, self.settings, self.id)
            if backend in ("cgroup2", "systemd"):
                env.setdefault("CONTAINERS_CONF_OVERRIDE", _PODMAN)
            guard.keep_housekeeping(env, self.project)
        return env


def contain_daemons(env: "dict[str, str]", settings: "Settings", run_id: str) -> None:
    """Set each variable that makes a tool work in the run, unless the user has set it.

    sccache cannot work without a server, so the run gets a server of its own, named by `run_id`, if
    the server is ended with the run. An abstract Unix socket leaves no file and cannot be another
    user's. Versions that know only the port (before SCCACHE_SERVER_UDS, or not on Linux) get one
    below those that the kernel gives to clients (ip_local_port_range in ip(7)).
    """
    is_ended = settings.leftovers == "kill" and settings.backend != "none"
    for name, value in DAEMONLESS:
        env.setdefault(name, value)
    options = env.get("GRADLE_OPTS", "")
    if _GRADLE not in options and _GRADLE not in env.get("JAVA_OPTS", ""):
        env["GRADLE_OPTS"] = f"{options} {_GRADLE}false".lstrip()
    if is_ended and "SCCACHE_SERVER_PORT" not in env and "SCCACHE_SERVER_UDS" not in env:
        env["SCCACHE_SERVER_PORT"] = str(20000 + int(run_id, 16) % 12000)
        if sys.platform == "linux":
            env["SCCACHE_SERVER_UDS"] = SCCACHE_SOCKET + run_id
