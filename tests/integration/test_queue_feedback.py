"""What a waiter reports: live on a terminal, lines and a heartbeat elsewhere, a hint, an
estimate."""

import fcntl
import os
import pty
import re
import struct
import termios
import unicodedata

import pytest

from tests.harness import Box, wait_for


class Terminal:
    """A terminal of 500 columns; `text` is what was written to it so far."""

    def __init__(self) -> None:
        self.master, self.slave = pty.openpty()
        fcntl.ioctl(self.slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 500, 0, 0))
        os.set_blocking(self.master, False)
        self._text = ""

    def text(self) -> str:
        try:
            self._text += os.read(self.master, 65536).decode()
        except BlockingIOError:
            pass
        return self._text

    def close(self) -> None:
        os.close(self.master)
        os.close(self.slave)


def test_a_live_line_on_a_terminal(box: Box) -> None:
    """One line, rewritten in place, that grows older and is gone when the run begins."""
    first = box.hold("one")
    terminal = Terminal()
    second = box.start("--", *box.job("two"), stderr=terminal.slave, env={"TERM": "xterm"})
    pattern = re.compile(
        r"\r\x1b\[Ksandrun: waiting, position 2 of 2; running for ([\d.]+ \w+): [^\r]* job one "
        rf"[^\r]*\(pid {first.pid}, in {box.project}, [\d.]+ [KM]iB\)"
    )
    wait_for(lambda: len(set(pattern.findall(terminal.text()))) >= 2, 20, "its age changes")
    box.let("one")
    box.begun("two")
    assert wait_for(lambda: terminal.text().endswith("\r\x1b[K"), 20)
    assert "\n" not in terminal.text()
    box.let("two")
    assert box.finish(second).returncode == 0
    terminal.close()


def live_lines(box: Box, columns: int) -> "list[str]":
    """What a waiter shows on a terminal of that width."""
    terminal = Terminal()
    fcntl.ioctl(terminal.slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    box.start("--", "true", stderr=terminal.slave, env={"TERM": "xterm"})
    wait_for(lambda: terminal.text().count("\r\x1b[K") >= 2, 20)
    lines = [line for line in terminal.text().split("\r\x1b[K") if line]
    terminal.close()
    return lines


@pytest.mark.parametrize("name", ["one", "\u6e2c\u8a66" * 10])
def test_a_live_line_never_wraps(box: Box, name: str) -> None:
    """Also where characters take two columns each."""
    box.start("--", "sh", "-c", f": {name}; read _ <{box.root}/gate-x", "x", *box.job("x")[3:])
    wait_for(box.view, 20)
    for columns in (40, 60, 61):
        for line in live_lines(box, columns):
            wide = sum(unicodedata.east_asian_width(char) in "WF" for char in line)
            assert len(line) + wide < columns, line


def test_80_columns_show_how_long_it_has_been_and_will_be(box: Box) -> None:
    """They come first; the running command may be cut."""
    directory = box.project / ("long-" * 20)
    directory.mkdir()
    script = ["sh", "-c", f": {'x' * 100}; test -e ../gate || exec cat ../gate-fifo"]
    (box.project / "gate").touch()
    os.mkfifo(box.project / "gate-fifo")
    box.run("--project", box.project, "--", *script, cwd=directory)
    (box.project / "gate").unlink()
    box.start("--project", box.project, "--", *script, cwd=directory)
    wait_for(box.view, 20)
    for line in live_lines(box, 80):
        assert re.search(r" of 2; running for [\d.]+ \w+, about [\d.]+ \w+ to go: sh", line)
        assert len(line) == 79


def test_without_a_terminal_a_line_per_change_and_a_heartbeat(box: Box) -> None:
    first = box.hold("one")
    box.queue_up("two")
    third = box.start("--", *box.job("three"), env={"SANDRUN_HEARTBEAT": "0.3"})
    wait_for(lambda: box.heard(third).count("position 3 of 3") >= 2, 20, "the same line again")
    quiet = box.queue_up("four")  # whose heartbeat is far away
    wait_for(lambda: "position 4 of 4" in box.heard(quiet), 20)
    box.let("one")
    box.finish(first)
    box.begun("two")
    wait_for(lambda: "position 2 of 3" in box.heard(third), 20, "the change is told")
    assert box.heard(quiet).count("\n") == 1


def test_after_a_while_behind_the_same_run_a_hint_says_what_can_be_done(box: Box) -> None:
    box.hold("one")
    waiter = box.start("--", "true", env={"SANDRUN_HINT_AFTER": "0.2"})
    text = wait_for(lambda: "hint:" in box.heard(waiter) and box.heard(waiter), 20)
    assert f"sandrun kill {box.ids()['one']}" in str(text)
    assert "sandrun status" in str(text)
    assert str(text).count("hint:") == 1


def test_the_expected_wait_comes_from_history(box: Box) -> None:
    """Known only for commands that ended by themselves in this project."""
    script = ["sh", "-c", "sleep 0.5; test -e gate || exec cat gate-fifo"]
    (box.project / "gate").touch()
    os.mkfifo(box.project / "gate-fifo")
    box.run("--", *script)
    (box.project / "gate").unlink()
    box.start("--", *script)
    wait_for(lambda: len(box.view()) == 1, 20)
    waiter = box.start("--", "true")
    told = wait_for(lambda: box.heard(waiter), 20)
    assert re.search(r" for [\d.]+ m?s, about \d\.\d s to go: sh -c", told), told
    behind = box.start("--", "true")
    told = wait_for(lambda: box.heard(behind), 20)
    assert "to go" not in told, "nothing is known of the first `true`"


def test_quiet_is_silent_also_when_it_waits(box: Box) -> None:
    box.hold("one")
    env = {"SANDRUN_HEARTBEAT": "0.05", "SANDRUN_HINT_AFTER": "0.05"}
    told = box.start("--", "true", env=env)
    quiet = box.start("--quiet", "--", "true", env=env)
    wait_for(lambda: box.heard(told).count("\n") > 5, 20)
    wait_for(lambda: len(box.view()) == 3, 20)
    assert box.heard(quiet) == ""
