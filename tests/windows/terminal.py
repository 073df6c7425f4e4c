"""A console of its own in which Ctrl-C can be pressed, without a keyboard.

A driver is started in a new console; it starts sandrun there, and presses when a file appears.
Its own handler keeps it alive.
"""

import subprocess
import sys
from pathlib import Path

from tests.windows.box import SCALE, Box, wait_for

_NEW_CONSOLE = 0x10  # CREATE_NEW_CONSOLE
_DRIVER = """
import ctypes, os, subprocess, sys, time
folder, argv = sys.argv[1], sys.argv[2:]
kernel32 = ctypes.WinDLL("kernel32")
handler = ctypes.WINFUNCTYPE(ctypes.c_int32, ctypes.c_uint32)(lambda kind: 1)
kernel32.SetConsoleCtrlHandler(handler, 1)
with open(os.path.join(folder, "err"), "w") as err:
    run = subprocess.Popen(argv, stderr=err)
pressed = 0
while run.poll() is None:
    if os.path.exists(os.path.join(folder, f"press-{pressed}")):
        pressed += 1
        kernel32.GenerateConsoleCtrlEvent(0, 0)
    time.sleep(0.01)
with open(os.path.join(folder, "code.new"), "w") as file:
    file.write(str(run.returncode))
os.replace(os.path.join(folder, "code.new"), os.path.join(folder, "code"))
"""


class Console:
    """`sandrun ARGS` in a console of its own."""

    def __init__(self, box: Box, *args: "str | Path") -> None:
        self.folder = box.root / f"console-{len(box.started)}"
        self.folder.mkdir()
        self.pressed = 0
        command = [sys.executable, "-m", "sandrun", *map(str, args)]
        driver = [sys.executable, "-I", "-S", "-c", _DRIVER]
        self.driver: subprocess.Popen[str] = box.start(
            str(self.folder), *command, argv=driver, flags=_NEW_CONSOLE
        )

    def press(self) -> None:
        """Press Ctrl-C."""
        (self.folder / f"press-{self.pressed}").touch()
        self.pressed += 1

    def heard(self) -> str:
        """What sandrun has said on stderr so far."""
        path = self.folder / "err"
        return path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""

    def runs(self, seconds: float) -> bool:
        """Whether sandrun still runs after so many seconds (scaled)."""
        try:
            self.driver.wait(seconds * SCALE)
        except subprocess.TimeoutExpired:
            return True
        return False

    def code(self) -> int:
        """Wait for sandrun's exit code."""
        path = self.folder / "code"
        wait_for(path.exists, 30, f"it ends; heard: {self.heard()}")
        return int(path.read_text())
