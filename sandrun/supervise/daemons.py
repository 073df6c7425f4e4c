"""Daemons of tools: how to recognize each, which command ends it, and how a run does without it.

The table is data: `tried` is the version that a row was tried with; otherwise only the source was
read. A process that a run left behind is reported with the command that would have ended it. The
variables by which a run makes daemons unnecessary are in `lifecycle.DAEMONLESS`, which costs no
import.

A match is a hint for people and proves nothing: no process is ended because of one.
"""

import os

from sandrun.model import SCCACHE_SOCKET
from sandrun.platform import processes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from sandrun.config.settings import Settings
    from sandrun.model import Process


class Daemon:
    """A row of the table.

    `shows`: patterns of its command line, the program without its directory; `*` is any text.
    `ends`: the command that ends it, or that works without it. `instead`: the setting by which the
    tool does the work itself. `tried`: the version that was tried. `serves`: the builds that it
    works for: `project` (the project of its directory or command line), `user` (all of the user's),
    or '' (none). `variable`: the variable that a run sets to make it unnecessary. `idle`: the part
    of a processor that it may use while it has no work: more than was measured.
    """

    __slots__ = (
        "ends",
        "idle",
        "instead",
        "name",
        "serves",
        "shows",
        "source",
        "tried",
        "variable",
    )

    def __init__(
        self,
        name: str,
        shows: "tuple[str, ...]",
        ends: str,
        tried: str,
        source: str,
        instead: str = "",
        serves: str = "",
        variable: str = "",
        idle: float = 0.001,
    ) -> None:
        self.name = name
        self.shows = shows
        self.ends = ends
        self.tried = tried
        self.source = source
        self.instead = instead
        self.serves = serves
        self.variable = variable
        self.idle = idle

    def way_out(self) -> str:
        """How to end it or do without it, for a hint."""
        return self.ends + (f", or {self.instead}" if self.instead else "")


SERVER = "sccache"
FSMONITOR = "git's fsmonitor"
_NOT = "not tried"
_JVM = 0.004

TABLE = (
    Daemon(
        "gradle",
        ("java *org.gradle.launcher.daemon.bootstrap.GradleDaemon*",),
        "gradle --stop",
        "4.4.1",
        "https://docs.gradle.org/current/userguide/gradle_daemon.html",
        "GRADLE_OPTS=-Dorg.gradle.daemon=false",
        serves="user",
        variable="GRADLE_OPTS",
        idle=_JVM,
    ),
    Daemon(
        "kotlin",
        ("java *org.jetbrains.kotlin.daemon.KotlinCompileDaemon*",),
        "gradle --stop",
        "1.3.31",
        "https://kotlinlang.org/docs/gradle-compilation-and-caches.html",
        "kotlin.compiler.execution.strategy=in-process in gradle.properties",
        serves="user",
        idle=_JVM,
    ),
    Daemon(
        "mvnd",
        ("java *-Dmvnd.home=*",),
        "mvnd --stop",
        _NOT,
        "https://github.com/apache/maven-mvnd",
        "mvn",
        serves="user",
        idle=_JVM,
    ),
    Daemon(
        "bazel",
        ("bazel(*",),
        "bazel shutdown",
        "2.1.0",
        "https://bazel.build/run/client-server",
        "bazel --batch",
        serves="project",
        idle=_JVM,
    ),
    Daemon(
        "buck2",
        ("buck2d[*",),
        "buck2 kill",
        _NOT,
        "https://buck2.build/docs/concepts/daemon/",
        serves="user",
    ),
    Daemon(
        "nx",
        ("node *nx/*daemon/server/start.js*",),
        "nx daemon --stop",
        "24.0.6",
        "https://nx.dev/docs/concepts/nx-daemon",
        "NX_DAEMON=false",
        serves="project",
        variable="NX_DAEMON",
        idle=0.07,
    ),
    Daemon(
        "turbo",
        ("turbo *daemon*",),
        "turbo daemon stop",
        "2.11.11",
        "https://turborepo.dev/docs/reference/daemon",
        serves="project",
    ),
    Daemon(
        SERVER,
        ("sccache", "sccache --start-server"),
        "sccache --stop-server",
        "0.16.0",
        "https://github.com/mozilla/sccache/blob/main/docs/Configuration.md",
        "a server of its own: SCCACHE_SERVER_PORT",
        serves="user",
        variable="SCCACHE_SERVER_PORT",
    ),
    Daemon(
        "dmypy",
        ("python* */dmypy *", "python* -m mypy.dmypy *", "dmypy *"),
        "dmypy stop",
        "mypy 2.4.1",
        "https://mypy.readthedocs.io/en/stable/mypy_daemon.html",
        "mypy",
        serves="project",
    ),
    Daemon(
        "eslint_d",
        ("eslint_d*", "node */eslint_d/*daemon.js *"),
        "eslint_d stop",
        "15.0.3",
        "https://github.com/mantoni/eslint_d.js",
        "eslint --cache",
        serves="project",
    ),
    Daemon(
        "prettierd",
        ("prettierd*",),
        "prettierd stop",
        "0.29.0",
        "https://github.com/fsouza/prettierd",
        "prettier --cache",
        serves="project",
    ),
    Daemon(
        "pants",
        ("pantsd *",),
        "PANTS_PANTSD=false",
        "2.17.1",
        "https://www.pantsbuild.org/stable/docs/using-pants/key-concepts/pantsd",
        serves="project",
        variable="PANTS_PANTSD",
        idle=0.02,
    ),
    Daemon(
        "spring",
        ("spring server *", "spring app *", "ruby *spring/application/boot*"),
        "bin/spring stop",
        "2.1.1",
        "https://github.com/rails/spring",
        "DISABLE_SPRING=1",
        serves="project",
        idle=0.01,
    ),
    Daemon(
        "MSBuild",
        ("dotnet *MSBuild.dll */nodemode:*",),
        "dotnet build-server shutdown",
        _NOT,
        "https://learn.microsoft.com/dotnet/core/tools/dotnet-build-server",
        "MSBUILDDISABLENODEREUSE=1",
        serves="user",
        variable="MSBUILDDISABLENODEREUSE",
    ),
    Daemon(
        "dotnet's compiler",
        ("dotnet *VBCSCompiler*", "VBCSCompiler*"),
        "dotnet build-server shutdown",
        _NOT,
        "https://learn.microsoft.com/dotnet/core/tools/dotnet-build-server",
        "UseSharedCompilation=false",
        serves="user",
    ),
    Daemon(
        "watchman",
        ("watchman *",),
        "watchman shutdown-server",
        "4.9.0",
        "https://facebook.github.io/watchman/docs/cmd/shutdown-server",
        "jest --no-watchman",
        serves="user",
    ),
    Daemon(
        FSMONITOR,
        ("git fsmonitor--daemon *",),
        "git fsmonitor--daemon stop",
        "2.55.0",
        "git-fsmonitor--daemon(1)",
        "core.fsmonitor=false",
    ),
    Daemon(
        "git's credential cache",
        ("git credential-cache--daemon *", "git-credential-cache--daemon *"),
        "git credential-cache exit",
        "2.39.5",
        "git-credential-cache(1)",
    ),
    Daemon(
        "ssh-agent", ("ssh-agent*",), "ssh-agent -k", "9.2p1", "ssh-agent(1)", "ssh-agent COMMAND"
    ),
    Daemon(
        "ssh's shared connection",
        ("ssh: *[mux]*",),
        "ssh -O exit HOST",
        "9.2p1",
        "ssh_config(5)",
        "ssh -o ControlPersist=no",
    ),
    Daemon(
        "gpg-agent",
        ("gpg-agent *", "keyboxd *", "dirmngr *", "scdaemon *"),
        "gpgconf --kill all",
        "2.2.40",
        "gpgconf(1)",
        "have it started before the run: gpgconf --launch gpg-agent",
    ),
    Daemon(
        "ray",
        ("raylet *", "gcs_server *", "python* */*-packages/ray/*", "ray::*"),
        "ray stop",
        "2.60.0",
        "https://docs.ray.io/en/latest/cluster/cli.html",
        "ray.shutdown()",
        serves="user",
        idle=0.015,
    ),
    Daemon(
        "adb", ("adb *fork-server*",), "adb kill-server", "29.0.6", "https://developer.android.com"
    ),
    Daemon(
        "epmd", ("epmd *-daemon*",), "epmd -kill", "25.2.3", "https://www.erlang.org/doc/man/epmd"
    ),
    Daemon(
        "dbus",
        ("dbus-daemon *--session*", "dbus-launch *"),
        "dbus-run-session -- COMMAND",
        "1.14.10",
        "dbus-run-session(1)",
    ),
    Daemon("Xvfb", ("Xvfb *",), "xvfb-run COMMAND", "21.1.7", "xvfb-run(1)"),
    Daemon("tmux", ("tmux *", "tmux: server*"), "tmux kill-server", "3.3a", "tmux(1)"),
    Daemon(
        "podman's container",
        ("conmon *",),
        "podman stop NAME",
        "5.4.2",
        "podman-run(1)",
        "--leftovers leave",
    ),
    Daemon("redis", ("redis-server *",), "redis-cli shutdown", "7.0.15", "https://redis.io/docs"),
    Daemon("postgres", ("postgres *",), "pg_ctl stop", "15.20", "pg_ctl(1)"),
)


def known(pid: int) -> "Daemon | None":
    """The row that matches the command line of a live process; None: none does, or it is gone."""
    line = _line(pid)
    return next((row for row in TABLE if any(_is_like(line, p) for p in row.shows)), None)


def _line(pid: int) -> str:
    """The command line, the program without its directory; '': it is gone."""
    try:
        words = processes.arguments(pid)
    except OSError:
        return ""
    if not words:
        return ""
    # A process title that a process set itself is one word: `eslint_d - /a/b`.
    path, space, title = words[0].partition(" ")
    if words[0].startswith("/"):
        path, space, title = words[0], "", ""
    return " ".join([os.path.basename(path) + space + title, *words[1:]])


def cleaning(pids: "list[int]") -> bool:
    """Whether podman cleans up after a container, as it does when `podman run` has returned:
    conmon(8), after the container's processes have exited, starts `podman container cleanup`."""
    lines = [_line(pid) for pid in pids]
    if any(line.startswith("podman ") and " container cleanup " in line for line in lines):
        return True
    return bool(lines) and all(line.startswith("conmon ") for line in lines)


def _is_like(line: str, pattern: str) -> bool:
    """fnmatch's `*`, at a tenth of the cost of its import."""
    first, *rest = pattern.split("*")
    if not rest or not line.startswith(first):
        return line == pattern
    *middle, last = rest
    at = len(first)
    for part in middle:
        at = line.find(part, at) + len(part)
        if at < len(part):
            return False
    return line.endswith(last) and len(line) - len(last) >= at


def describe(pid: int) -> "Process | None":
    """`processes.describe`, with the name of the daemon."""
    row = known(pid)
    process = processes.describe(pid)
    if process and row:
        process.daemon = row.name
    return process


def is_own_server(process: "Process", settings: "Settings") -> bool:
    """Whether it is the run's own sccache server (`contain_daemons`), which needs no report."""
    if process.daemon != SERVER or settings.daemons != "contain" or settings.leftovers != "kill":
        return False
    ours = os.environ.get("SCCACHE_SERVER_UDS", "").startswith(SCCACHE_SOCKET)
    return ours or not ({"SCCACHE_SERVER_PORT", "SCCACHE_SERVER_UDS"} & set(os.environ))


def ways_out(found: "list[Process]") -> str:
    """The commands that would have ended the known daemons, at most three; '': none is known."""
    names = {process.daemon for process in found}
    rows = [row for row in TABLE if row.name in names]
    return "; ".join(f"{row.name}: {row.way_out()}" for row in rows[:3])
