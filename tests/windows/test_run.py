"""A run on Windows: what the command sees, how it ends, and what its end is told as."""

import subprocess
import sys
from pathlib import Path

import pytest

from sandrun.platform import windows_api
from tests.windows.box import SCALE, Box, alive, wait_for

if sys.platform != "win32":
    pytest.skip("about Windows: runs inside vagrant/wine-lab", allow_module_level=True)

from tests.windows.terminal import Console

PYTHON = [sys.executable, "-I", "-S", "-c"]
NTSTATUS = 0xC0000005
# A child in a detached console of its own, whose pid is printed.
CHILD = """
import subprocess, sys, time
sleep = [sys.executable, '-I', '-S', '-c', 'import time; time.sleep(99)']
child = subprocess.Popen(sleep, creationflags=0x8)
print(child.pid, flush=True)
time.sleep(float(sys.argv[1]))
"""
# Notes each interrupt in a file, and goes on.
STUBBORN = """
import signal, sys, time
def note(*_):
    with open(sys.argv[1], "a") as file:
        file.write("int\\n")
signal.signal(signal.SIGINT, note)
with open(sys.argv[1], "a") as file:
    file.write("up\\n")
while True:
    time.sleep(0.05)
"""

# Says that it is up, notes a Ctrl-Break, and ends.
POLITE = """
import signal, sys, time
def note(*_):
    with open(sys.argv[1], "a") as file:
        file.write("break\\n")
    sys.exit(3)
signal.signal(signal.SIGBREAK, note)
with open(sys.argv[1], "a") as file:
    file.write("up\\n")
while True:
    time.sleep(0.05)
"""


def said(path: Path) -> list[str]:
    return path.read_text().split() if path.exists() else []


def test_auto_tries_the_job_object(box: Box) -> None:
    """Wine does not enforce its limits, so there it is tried and refused."""
    done = box.run("--backend", "auto", "--", *PYTHON, "raise SystemExit(3)")
    assert done.returncode == 3 or "job-object" in done.stderr, done.stderr


def test_a_ci_step_gets_a_row_in_its_summary(box: Box) -> None:
    summary = box.root / "summary"
    env = {"GITHUB_ACTIONS": "true", "GITHUB_STEP_SUMMARY": str(summary)}
    for _ in range(2):
        assert box.run("--", *PYTHON, "raise SystemExit(3)", env=env).returncode == 3
    lines = summary.read_text(encoding="utf-8").strip().splitlines()
    assert len(lines) == 4, lines  # the table's head, and a row for each run
    assert all("| exit 3 |" in line for line in lines[2:]), lines


@pytest.mark.parametrize("code", [0, 1, 255, 300, NTSTATUS, 0xC000013A])
def test_an_exit_code_is_handed_on_whole(box: Box, code: int) -> None:
    done = box.run("--", *PYTHON, f"import ctypes; ctypes.windll.kernel32.ExitProcess({code})")
    assert done.returncode == code
    assert [(r["exit"], r["reason"]) for r in box.records()] == [(code, "exit")]


def test_what_cannot_be_started(box: Box) -> None:
    text = box.root / "text.exe"
    text.write_text("no program\n")
    assert box.run("--", "no-such-program").returncode == 127
    assert box.run("--", box.root / "nothing.exe").returncode == 127
    assert box.run("--", text).returncode == 126
    assert box.run("--no-such-option", "--", "cmd").returncode == 125
    private = box.run("--private-tmp", "--", "no-such-program")
    assert private.returncode == 125
    assert "need Linux" in private.stderr
    assert box.tickets() == []


def test_words_arrive_as_they_are(box: Box) -> None:
    words = ["", "two words", 'a "quote"', "back\\slash\\", 'trailing\\"', "snö ☃", "%PATH%", "a&b"]
    code = "import sys; sys.stdout.reconfigure(encoding='utf-8'); print(sys.argv[1:])"
    done = box.run("--", *PYTHON, code, *words)
    assert (done.returncode, done.stdout) == (0, f"{words}\n")
    assert box.records()[0]["command"] == [*PYTHON, code, *words]


def test_a_batch_file_in_a_folder_with_a_name(box: Box) -> None:
    folder = box.root / "töols & more"
    folder.mkdir()
    (folder / "say.cmd").write_text("@echo off\necho [%1] [%2]\nexit /b 9\n")
    path = {"PATH": f"{folder};{box.env['PATH']}"}
    done = box.run("--", "say", "two words", "a&b", env=path)
    assert (done.returncode, done.stdout) == (9, '["two words"] ["a&b"]\n')
    done = box.run("--", "say", "%PATH%", env=path)
    assert done.returncode == 125
    assert "a batch file cannot be given" in done.stderr


def test_a_batch_file_gives_no_word_to_the_shell(box: Box) -> None:
    (box.project / "say.cmd").write_text("@echo off\necho [%1]\n")
    done = box.run("--", ".\\say.cmd", '"&echo gone&"')
    assert (done.returncode, done.stdout) == (125, "")


def test_standard_input_reaches_the_command(box: Box) -> None:
    process = box.start("--", *PYTHON, "print(input()[::-1])", stdin=subprocess.PIPE)
    out, _ = process.communicate("abc\n", timeout=60 * SCALE)
    assert out == "cba\n"


def test_no_console_and_no_standard_handles(box: Box) -> None:
    """As a service or a scheduler starts it: DETACHED_PROCESS, and nothing handed down."""
    out = box.root / "out"
    code = "import os, sys; open(sys.argv[1], 'w').write('ran'); os._exit(5)"
    argv = [sys.executable, "-m", "sandrun", "--", *PYTHON, code, str(out)]
    process = subprocess.Popen(
        argv, env=box.env, cwd=box.project, close_fds=True, creationflags=0x8
    )
    box.started.append(process)
    assert process.wait(60 * SCALE) == 5
    assert out.read_text() == "ran"


def test_a_timeout_ends_the_tree(box: Box) -> None:
    done = box.run("--timeout", "6", "--", *PYTHON, CHILD, "99")
    assert done.returncode == 124
    assert "timeout: ended the run" in done.stderr
    assert not alive(int(done.stdout))
    assert [r["reason"] for r in box.records()] == ["timeout"]


def test_what_is_left_behind_is_ended_and_named(box: Box) -> None:
    done = box.run("--", *PYTHON, CHILD, "0")
    assert done.returncode == 0
    assert "ended 1 process that the command left behind" in done.stderr
    assert not alive(int(done.stdout))


def test_from_python(box: Box) -> None:
    code = (
        "import sandrun, subprocess, sys\n"
        "words = [sys.executable, '-c', 'print(5); raise SystemExit(3)']\n"
        "done = sandrun.run(words, stdout=subprocess.PIPE, timeout='60')\n"
        "print(done.code, done.reason, done.stdout.strip())\n"
        "try:\n"
        "    sandrun.run(words, backend='cgroup2')\n"
        "except sandrun.SandrunError as error:\n"
        "    print(error)\n"
    )
    done = box.run(argv=[sys.executable, "-c", code])
    assert done.stdout.splitlines()[0] == "3 exit 5"
    assert "sandrun failed" in done.stdout.splitlines()[1]
    assert "there is no cgroup2 on this system" in done.stderr


def test_a_shim_sends_its_tool_through_the_queue(box: Box) -> None:
    tools = box.root / "töols"
    tools.mkdir()
    (tools / "build.cmd").write_text(
        "@echo off\nif defined SANDRUN_RUNS echo built %1\nexit /b 4\n"
    )
    done = box.run("shims", "add", "build")
    assert done.returncode == 0, done.stderr
    shim = Path(done.stdout.strip())
    assert box.run("shims", "list").stdout == "build\n"
    path = {"PATH": f"{shim.parent};{tools};{box.env['PATH']}"}
    done = box.run(argv=["cmd", "/c", "build", "two words"], env=path)
    assert (done.returncode, done.stdout) == (4, 'built "two words"\n'), done.stderr
    assert [record["command"] for record in box.records()] == [["build", "two words"]]
    assert box.run("shims", "remove", "build").returncode == 0


def test_init_is_undone_whole(box: Box) -> None:
    (box.project / "Makefile").write_bytes(b"all:\n")
    assert box.run("init").returncode == 0
    assert (box.project / "sandrun.mk").exists()
    assert box.run("shims", "list").stdout.split() == ["make"]
    assert box.run("init", "--undo").returncode == 0
    assert box.run("shims", "list").stdout == ""
    assert [path.name for path in box.project.iterdir()] == ["Makefile"]
    assert (box.project / "Makefile").read_bytes() == b"all:\n"


def test_the_death_of_who_started_it_ends_the_run(box: Box) -> None:
    pid = box.root / "pid"
    code = (
        "import subprocess, sys\n"
        "subprocess.run([sys.executable, '-m', 'sandrun', '--', *sys.argv[1:]])\n"
    )
    command = [
        *PYTHON,
        f"import os, time; open({str(pid)!r}, 'w').write(str(os.getpid())); time.sleep(99)",
    ]
    starter = box.start(*command, argv=[sys.executable, "-c", code])
    wait_for(lambda: pid.exists() and pid.read_text(), 30, "the command is up")
    starter.kill()
    wait_for(lambda: not alive(int(pid.read_text())), 10, "the command is ended")
    wait_for(box.records, 10, "the record")
    assert [(r["reason"], r["exit"]) for r in box.records()] == [("parent", 129)]


def test_ctrl_c_reaches_the_command_once_and_a_second_ends_it(box: Box) -> None:
    notes = box.root / "notes"
    console = Console(box, "--", *PYTHON, STUBBORN, notes)
    wait_for(lambda: said(notes) == ["up"], 40, "the command is up")
    console.press()
    wait_for(lambda: "int" in said(notes), 10, "it gets the interrupt")
    assert console.runs(0.5)
    assert said(notes) == ["up", "int"]
    console.press()
    assert console.code() == 130
    assert [(r["reason"], r["exit"]) for r in box.records()] == [("signal", 130)]


def test_ctrl_c_that_ends_the_command(box: Box) -> None:
    up = box.root / "up"
    code = f"import time; open({str(up)!r}, 'w').close(); time.sleep(99)"
    console = Console(box, "--", *PYTHON, code)
    wait_for(up.exists, 40, "the command is up")
    console.press()
    assert console.code() == 0xC000013A  # STATUS_CONTROL_C_EXIT, as Python ends itself
    assert [r["reason"] for r in box.records()] == ["exit"]


@pytest.mark.xfail(
    bool(windows_api.wine_version()), reason="Wine ends who sends a Ctrl-Break", strict=True
)
def test_kill_asks_by_ctrl_break_where_the_console_is_the_runs_alone(box: Box) -> None:
    notes = box.root / "notes"
    run = box.start("--grace", "60", "--", *PYTHON, POLITE, notes, flags=0x10)  # CREATE_NEW_CONSOLE
    wait_for(lambda: said(notes) == ["up"], 40, f"the command is up; heard: {box.heard(run)}")
    assert box.run("kill").returncode == 0
    assert box.finish(run).returncode == 143
    assert said(notes) == ["up", "break"]


def test_ctrl_c_takes_a_waiter_out_of_the_queue(box: Box) -> None:
    holder = box.hold("holder")
    console = Console(box, "--", "cmd", "/c", "echo ran")
    wait_for(lambda: "waiting" in console.heard(), 40, "it waits")
    console.press()
    assert console.code() == 130
    assert [row["pid"] for row in box.status()] == [holder.pid]
    box.let("holder")
    assert box.finish(holder).returncode == 0
