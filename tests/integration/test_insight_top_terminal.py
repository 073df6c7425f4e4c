"""`sandrun top` and `status --watch` on a real terminal: tmux, whose screen and modes are read."""

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from sandrun.platform import processes
from tests.harness import SCALE, Box, alive, launcher, wait_for

SANDRUN = " ".join(map(shlex.quote, launcher()))
COLOR = re.compile(r"\x1b\[(?:[0-9;]*;)?(?:[34][0-8]|9[0-7]|10[0-7])[;m]")


pytestmark = pytest.mark.skipif(not shutil.which("tmux"), reason="tmux is not installed")


class Terminal:
    """A shell in a terminal of tmux, whose server is the test's own."""

    def __init__(self, box: Box, width: int = 80, height: int = 24, **env: str) -> None:
        self.box = box
        self.socket = box.root / "tmux"
        (box.root / "tmux.conf").write_text("set -g default-terminal screen-256color\n")
        marks = {"TERM": "xterm", "LC_ALL": "C.UTF-8"}
        words = ["-f", str(box.root / "tmux.conf"), "-u", "new-session", "-d"]
        words += ["-x", str(width), "-y", str(height), "bash", "--norc", "--noprofile"]
        self._tmux(*words, env={**box.env, **marks, **env})
        self.pane = int(self._tmux("list-panes", "-F", "#{pane_pid}"))
        self.modes = self.stty()

    def _tmux(self, *words: str, env: "dict[str, str] | None" = None) -> str:
        command = ["tmux", "-S", str(self.socket), *words]
        done = subprocess.run(
            command, env=env or self.box.env, cwd=self.box.project, capture_output=True, check=True
        )
        return done.stdout.decode()

    def keys(self, *keys: str) -> None:
        self._tmux("send-keys", *keys)

    def line(self, text: str) -> None:
        self.keys("-l", text)
        self.keys("Enter")

    def screen(self, *options: str) -> str:
        return self._tmux("capture-pane", "-p", *options)

    def shows(self, text: str, *options: str) -> None:
        try:
            wait_for(lambda: text in self.screen(*options), 30)
        except AssertionError:
            raise AssertionError(f"{text!r} is not in\n{self.screen()}") from None

    def stty(self) -> str:
        """The terminal's modes, read by a process of the terminal's own shell."""
        out = self.box.root / "modes"
        out.unlink(missing_ok=True)
        self.line(f"stty -g >{shlex.quote(str(out))}.new; mv {shlex.quote(str(out))}.new {out}")
        wait_for(out.exists, 20, "stty")
        return out.read_text()

    def top(self, *options: str) -> int:
        """Start `sandrun top`; its pid."""
        self.line(f"clear; {SANDRUN} {' '.join(options)} top; echo code=$?")
        self.shows("STATE")
        (pid,) = processes.children(self.pane)
        return pid

    def is_as_before(self) -> bool:
        """Whether the modes, the screen and the cursor are those of before."""
        flags = "#{alternate_on} #{cursor_flag} #{mouse_any_flag} #{mouse_sgr_flag}"
        shown = self._tmux("display-message", "-p", flags).split()
        return self.stty() == self.modes and shown == ["0", "1", "0", "0"]

    def close(self) -> None:
        self._tmux("kill-server")


@pytest.fixture
def terminal(box: Box) -> "Iterator[Terminal]":
    made = Terminal(box)
    yield made
    made.close()


@pytest.mark.parametrize("key", ["q", "C-c"])
def test_it_quits_and_leaves_the_terminal_as_it_was(terminal: Terminal, key: str) -> None:
    terminal.box.hold("one")
    terminal.top()
    terminal.shows("1 running")
    terminal.keys(key)
    terminal.shows("code=0")
    assert terminal.is_as_before()


def test_a_bug_is_one_line_and_the_terminal_is_as_it_was(terminal: Terminal) -> None:
    script = terminal.box.root / "broken.py"
    script.write_text(
        "import sys; from sandrun import cli; from sandrun.insight.live import Watch\n"
        "def take(self): raise LookupError('on purpose')\n"
        "Watch.take = take; sys.argv = ['sandrun', 'top']; cli.main()\n"
    )
    terminal.line(f"clear; {shlex.quote(sys.executable)} {script}; echo code=$?")
    terminal.shows("code=125")
    text = terminal.screen()
    assert "internal error: LookupError: on purpose" in text
    assert "Traceback" not in text
    assert terminal.is_as_before()


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP", "SIGINT"])
def test_a_signal_ends_it_and_the_terminal_is_as_it_was(terminal: Terminal, name: str) -> None:
    signum = getattr(signal, name)
    pid = terminal.top()
    os.kill(pid, signum)
    if signum != signal.SIGINT:  # with which a shell also ends what comes after it
        terminal.shows(f"code={128 + signum}")
    wait_for(lambda: not processes.children(terminal.pane), 20)
    assert terminal.is_as_before()


def test_ctrl_z_suspends_it_and_fg_continues_it(terminal: Terminal) -> None:
    terminal.box.hold("one")
    terminal.top()
    terminal.keys("C-z")
    terminal.shows("Stopped")
    assert terminal.is_as_before()
    terminal.line("fg")
    terminal.shows("1 running")
    terminal.keys("q")
    wait_for(lambda: not processes.children(terminal.pane), 20)
    assert terminal.is_as_before()


def test_it_ends_with_its_terminal(box: Box) -> None:
    terminal = Terminal(box)
    pid = terminal.top()
    terminal.close()
    wait_for(lambda: not alive(pid), 20, "top ends with its terminal")


def test_keys_act_in_a_real_terminal(terminal: Terminal) -> None:
    terminal.box.hold("one")
    waiter = terminal.box.queue_up("two")
    terminal.top()
    terminal.shows("wait 2")
    terminal.keys("Down", "c")
    terminal.shows("cancelled")
    assert terminal.box.finish(waiter).returncode == 75
    terminal.keys("Down", "k")
    terminal.shows("with all its processes?")
    terminal.keys("n", "?")
    terminal.shows("exits with 75")
    terminal.keys("Escape")
    terminal.shows("1 running, 0 waiting")
    terminal.keys("q")
    terminal.shows("code=0")


def test_what_is_typed_after_a_slash_is_no_key(terminal: Terminal) -> None:
    """Also if it comes at once, as from a slow connection or the clipboard: p would pause."""
    terminal.box.hold("one")
    waiter = terminal.box.queue_up("two")
    terminal.top()
    terminal.shows("wait 2")
    terminal.keys("Down")
    terminal.keys("-l", "/pckl")
    terminal.shows("filter: pckl")
    terminal.shows("nothing matches")
    terminal.keys("Escape")
    terminal.shows("wait 2")
    assert "PAUSED" not in terminal.screen()
    assert waiter.poll() is None
    terminal.keys("q")
    terminal.shows("code=0")


@pytest.mark.parametrize(("width", "height"), [(80, 24), (40, 10), (20, 4), (200, 50)])
def test_every_size_shows_something_sensible(box: Box, width: int, height: int) -> None:
    box.hold("one")
    box.queue_up("two")
    terminal = Terminal(box, width, height)
    terminal.top()
    terminal.shows(box.ids()["one"])
    terminal.shows("runs")
    terminal.keys("q")
    wait_for(lambda: not processes.children(terminal.pane), 20)
    terminal.close()


@pytest.mark.parametrize(
    ("env", "option", "colored"),
    [
        ("NO_COLOR=1", "", False),
        ("TERM=vt100", "", False),
        ("", "--color=never", False),
        ("NO_COLOR=1", "--color=always", True),
        ("TERM=xterm-unknown-to-terminfo", "", True),
        ("", "", True),
    ],
)
def test_no_colour_where_none_is_wanted(box: Box, env: str, option: str, colored: bool) -> None:
    box.hold("one")
    terminal = Terminal(box)
    terminal.line(f"clear; {env} {SANDRUN} {option} top")
    terminal.shows("1 running")
    drawn = terminal.screen("-e")
    assert bool(COLOR.search(drawn)) == colored, repr(drawn)
    terminal.keys("q")
    terminal.close()


def test_ascii_in_the_c_locale(box: Box) -> None:
    box.hold("one")
    box.start("--", "echo", "naïve ✓")
    wait_for(lambda: len(box.view()) == 2, 20)
    terminal = Terminal(box, LC_ALL="C")
    terminal.top()
    terminal.shows("wait 2")
    assert terminal.screen().isascii()
    terminal.keys("q")
    terminal.close()


def test_a_dumb_terminal_gets_one_line(terminal: Terminal) -> None:
    terminal.line(f"clear; TERM=dumb {SANDRUN} top; echo code=$?")
    terminal.shows("code=125")
    text = terminal.screen()
    assert "TERM=dumb" in text
    assert "sandrun status --all --watch" in text


def test_without_a_terminal_it_says_what_to_use_instead(box: Box) -> None:
    done = box.run("top")
    assert done.returncode == 125
    assert done.stderr.splitlines() == [
        "sandrun: top needs a terminal",
        "sandrun: hint: sandrun status --all --watch",
    ]
    assert done.stdout == ""


def test_status_watch_redraws_in_place(terminal: Terminal) -> None:
    terminal.box.hold("one")
    terminal.line(f"clear; {SANDRUN} status --watch --interval 0.2; echo code=$?")
    terminal.shows("(Ctrl-C ends it)")
    second = terminal.box.queue_up("two")
    terminal.shows("waits")
    third = terminal.box.queue_up("three")
    terminal.shows("  3 waits")
    second.terminate()
    third.terminate()
    wait_for(lambda: "waits" not in terminal.screen(), 20)
    time.sleep(0.5 * SCALE)
    assert terminal.screen().count("(Ctrl-C ends it)") == 1
    terminal.keys("C-c")
    wait_for(lambda: not processes.children(terminal.pane), 20)
    assert terminal.is_as_before()


def test_status_watch_in_a_small_terminal(box: Box) -> None:
    box.hold("one")
    for name in ("two", "three", "four", "five", "six"):
        box.queue_up(name)
    terminal = Terminal(box, 30, 6)
    terminal.line(f"clear; {SANDRUN} status --watch --interval 0.2")
    terminal.shows("more lines")
    time.sleep(0.5 * SCALE)
    lines = terminal.screen().splitlines()
    assert len([line for line in lines if "sandrun status, " in line or "more lines" in line]) == 2
    terminal.keys("C-c")
    terminal.close()


def test_the_extra_is_named_where_it_is_missing(box: Box, tmp_path: Path) -> None:
    """As after an installation without it: Python does not find textual."""
    blocked = tmp_path / "blocked"
    blocked.mkdir()
    (blocked / "textual.py").write_text("raise ModuleNotFoundError(name='textual')\n")
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); from sandrun.cli import extras, top\n"
        "from sandrun.model import SandrunError\n"
        "try: extras.load('textual', top.REQUIREMENT, 'sandrun top')\n"
        "except SandrunError as error: print(error.text, '|', error.hint)\n"
    )
    done = box.run("-c", code, str(blocked), argv=[sys.executable])
    assert "sandrun top needs the Python package textual" in done.stdout
    assert all(word in done.stdout for word in ("pipx inject", "uv tool", "pip install"))
