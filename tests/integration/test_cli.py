"""The command line: ways to call, exit codes, settings from every source, the subcommands."""

import json
import os
import pwd
import re
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

import sandrun
from sandrun.config import options
from tests.harness import SCALE, Box, launcher, wait_for, without_note


@pytest.mark.parametrize(
    "words",
    [
        ["--", "sh", "-c", "echo hi"],
        ["sh", "-c", "echo hi"],
        ["-q", "sh", "-c", "echo hi"],
        ["--memory=512M", "-q", "--", "sh", "-c", "echo hi"],
        ["--memory", "512", "sh", "-c", "echo hi"],
    ],
)
def test_every_way_to_call(box: Box, words: "list[str]") -> None:
    done = box.run(*words)
    assert (done.returncode, done.stdout, done.stderr) == (0, "hi\n", "")


def test_as_a_module(box: Box) -> None:
    done = box.run("-m", "sandrun", "--", "echo", "hi", argv=[sys.executable])
    assert (done.returncode, done.stdout) == (0, "hi\n")


def test_a_command_named_like_a_subcommand_runs_after_two_dashes(box: Box) -> None:
    tool = box.project / "status"
    tool.write_text("#!/bin/sh\necho mine\n")
    tool.chmod(0o755)
    path = f"{box.project}:{box.env['PATH']}"
    assert box.run("--", "status", env={"PATH": path}).stdout == "mine\n"


def test_every_exit_code_is_the_commands_own(box: Box) -> None:
    """All 256, each by a fork of one interpreter, which spares its start."""
    script = """if True:
        import os, sys
        from sandrun import cli
        from sandrun.lifecycle import runner
        for code in range(256):
            pid = os.fork()
            if pid == 0:
                sys.argv = ["sandrun", "--", "sh", "-c", f"exit {code}"]
                cli.main()
            got = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            if got != code:
                print(code, got)
        """
    done = box.run("-c", script, argv=[sys.executable], seconds=120)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGKILL, signal.SIGSEGV, signal.SIGUSR1])
def test_a_signals_end_is_128_and_its_number(box: Box, signum: signal.Signals) -> None:
    assert box.run("--", "sh", "-c", f"kill -{int(signum)} $$").returncode == 128 + signum


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["--timeout", "0.2", "--", "sleep", "60"], 124, "timeout: ended the run after 0.2 s"),
        ([], 125, "no command given"),
        (
            [
                "--",
            ],
            125,
            "no command given",
        ),
        (["--no-such", "--", "true"], 125, "no such option: --no-such"),
        (["--memory", "lots", "--", "true"], 125, "--memory 'lots': expected a size"),
        (["--memory", "99999999999G", "--", "true"], 125, "at least 1M and at most 1048576T"),
        (["--timeout", "9999999999d", "--", "sh", "-c", "exit 3"], 3, ""),
        (["--memory"], 125, "option --memory needs a value"),
        (["--project", "/nonexistent/dir", "--", "true"], 125, "no such directory"),
        (["--", "/etc/passwd"], 126, "/etc/passwd: Permission denied"),
        (["--", "no-such-command-here"], 127, "no-such-command-here: command not found"),
        (["--", "/no/such/file"], 127, "/no/such/file: No such file or directory"),
        (["--", ""], 127, "command not found"),
    ],
)
def test_exit_codes_of_what_went_wrong(box: Box, words: "list[str]", code: int, said: str) -> None:
    done = box.run(*words)
    assert done.returncode == code
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert all(line.startswith("sandrun: ") for line in done.stderr.splitlines())


def test_what_the_system_refuses_is_no_bug_of_ours(box: Box) -> None:
    codes = set()
    for files in range(6, 24):  # Python itself starts with five
        script = f'ulimit -n {files}; exec "$@"'
        done = box.run(script, "sh", *launcher(), "-q", "--", "true", argv=["sh", "-c"])
        assert "internal error" not in done.stderr and "Traceback" not in done.stderr
        assert ("Too many open files" in done.stderr) == (done.returncode == 125)
        codes.add(done.returncode)
    assert codes == {0, 125}


def test_the_command_sees_descriptors_and_directory_of_its_caller(box: Box) -> None:
    process = box.start("--", "sh", "-c", "cat; pwd; echo err >&2", stdin=subprocess.PIPE)
    done = box.finish(process, input="in\n")
    assert (done.stdout, done.stderr) == (f"in\n{box.project}\n", "err\n")


# Settings


def config(box: Box, *options: str, env: "dict[str, str] | None" = None) -> "dict[str, list[str]]":
    """`sandrun config` as key -> [value, source]."""
    done = box.run(*options, "config", env=env)
    assert done.returncode == 0, done.stderr
    rows = [line.split() for line in done.stdout.splitlines() if not line.startswith("#")]
    return {row[0]: [" ".join(row[1:-1]), row[-1]] for row in rows}


@pytest.mark.parametrize(
    "text",
    [
        '[tool.sandrun] # ours\r\nmemory = "104M"\r\n',
        '[ tool . sandrun ]\nmemory = "104M"\n',
        '[tool."sandrun"]\nmemory = "104M"\n',
        'tool.sandrun.memory = "104M"\n[project]\n',
        'tool.sandrun = { memory = "104M" }\n',
        '[tool]\nsandrun = { memory = "104M" }\n',
        '[project]\nname = "x"\n[tool]\nother.x = 1\nsandrun.memory = "104M"\n',
        'tool = { sandrun = { memory = "104M" } }\n',
        "tool = {other = {x = 1}, 'sandrun'.memory = \"104M\"}\n[project]\n",
        '\ufefftool.sandrun.memory = "104M"\n',
    ],
)
def test_the_table_in_pyproject_has_any_of_tomls_spellings(box: Box, text: str) -> None:
    """For the settings, and for what marks a project."""
    (box.project / "pyproject.toml").write_text(text, "utf-8")
    below = box.project / "below"
    below.mkdir()
    done = box.run("config", cwd=below)
    assert f"# project {box.project}\n" in done.stdout
    assert "104 MiB" in done.stdout


def test_precedence_of_every_source(box: Box) -> None:
    """Each source in turn is removed, and the next one down holds."""
    user = box.home / "config/sandrun/config.toml"
    user.parent.mkdir(parents=True)
    user.write_text('memory = "105M"\n')
    pyproject = box.project / "pyproject.toml"
    pyproject.write_text('[tool.sandrun]\nmemory = "104M"\n')
    project = box.project / "sandrun.toml"
    project.write_text('memory = "103M"\n')
    env = {"SANDRUN_MEMORY": "101", "MEMORY_LIMIT_MB": "102"}
    seen = [config(box, "--memory", "100M", env=env)["memory"]]
    for name in ("SANDRUN_MEMORY", "MEMORY_LIMIT_MB"):
        seen.append(config(box, env=env)["memory"])
        del env[name]
    for file in (project, pyproject, user):
        seen.append(config(box)["memory"])
        file.unlink()
    seen.append(config(box)["memory"])
    assert seen == [
        ["100 MiB", "--memory"],
        ["101 MiB", "SANDRUN_MEMORY"],
        ["102 MiB", "MEMORY_LIMIT_MB"],
        ["103 MiB", str(project)],
        ["104 MiB", str(pyproject)],
        ["105 MiB", str(user)],
        ["2.0 GiB", "default"],
    ]


@pytest.mark.parametrize(
    ("name", "text", "key", "default"),
    [
        ("MEMORY_LIMIT_MB", "plenty", "memory", "2.0 GiB"),
        ("CHECK_INTERVAL", "often", "check_interval", "5 s"),
        ("CHECK_INTERVAL", "0", "check_interval", "5 s"),
        ("TIMEOUT", "nan", "timeout", "none"),
        ("VERBOSE", "loud", "verbose", "0"),
        ("SANDRUN_BACKEND", "magic", "backend", "auto"),
    ],
)
def test_a_bad_value_gets_one_line_and_the_default(
    box: Box, name: str, text: str, key: str, default: str
) -> None:
    env = {"SANDRUN_BACKEND": "", name: text}
    assert config(box, env=env)[key] == [default, "default"]
    done = box.run("--", "true", env={**box.env, name: text})
    assert done.returncode == 0
    lines = without_note(done.stderr).splitlines()
    assert len(lines) == 1, lines
    assert f"{name}={text!r} is not" in lines[0]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('memory = "x"\n', "memory is not a size"),
        ("memory = [1]\n", "memory is not a single value"),
        ("memroy = 1\n", "no such setting: memroy (did you mean: memory); ignored"),
        ("memroy = 1\nxyz = 2\n", "no such setting: memroy, xyz; ignored"),
        ("memory = \n", "the file is ignored"),
    ],
)
def test_a_bad_file_gets_one_line_and_the_default(box: Box, text: str, said: str) -> None:
    (box.project / "sandrun.toml").write_text(text)
    done = box.run("--", "true")
    assert done.returncode == 0
    assert said in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("where", ["sandrun.toml", "pyproject.toml", "user", "SANDRUN_REQUIRED"])
def test_required_is_require_in_every_file_and_in_the_environment(box: Box, where: str) -> None:
    user = box.home / "config/sandrun/config.toml"
    user.parent.mkdir(parents=True)
    env = {}
    source = str(user if where == "user" else box.project / where)
    if where == "SANDRUN_REQUIRED":
        env[where], source = "kernel", where
    else:
        table = "[tool.sandrun]\n" if where == "pyproject.toml" else ""
        Path(source).write_text(f'{table}required = "kernel"\n')
        if where != "user":
            box.run("trust")
    assert config(box, env=env)["require"] == ["kernel", source]
    done = box.run("--backend", "rlimit", "--", "echo", "ran", env=env)
    assert (done.returncode, done.stdout) == (125, "")
    assert "the kernel does not enforce its limits (--require kernel)" in done.stderr


def test_the_plain_variables_work(box: Box) -> None:
    env = {"MEMORY_LIMIT_MB": "300", "CHECK_INTERVAL": "2", "TIMEOUT": "90", "VERBOSE": "1"}
    seen = config(box, env=env)
    assert [seen[key][0] for key in ("memory", "check_interval", "timeout", "verbose")] == [
        "300 MiB",
        "2 s",
        "90 s",
        "1",
    ]
    assert "backend none" in box.run("--", "true", env={"VERBOSE": "1"}).stderr
    assert box.run("--", "sleep", "60", env={"TIMEOUT": "0.2"}).returncode == 124


def test_a_zero_is_a_value(box: Box) -> None:
    assert config(box, "--grace", "0", "-p", "0")["grace"] == ["0 s", "--grace"]


# Subcommands


def test_status_shows_runs_and_waiters_in_order(box: Box) -> None:
    first, second = box.hold("one"), box.queue_up("two")
    rows = box.status()
    assert [(row["pid"], row["running"]) for row in rows] == [
        (first.pid, True),
        (second.pid, False),
    ]
    assert rows[0]["cwd"] == str(box.project)
    text = box.run("status").stdout
    assert text.index("runs ") < text.index("waits")
    everywhere = json.loads(box.run("status", "--all", "--json", cwd=box.root).stdout)
    assert [row["id"] for row in everywhere["queues"][0]["runs"]] == [row["id"] for row in rows]


def test_status_of_nothing(box: Box) -> None:
    assert box.status() == []
    assert box.run("status", "--all").stdout == "nothing runs and nothing waits\n"


def test_status_shows_what_is_stopped_and_how_it_goes_on(box: Box) -> None:
    run, waiter = box.hold("one"), box.queue_up("two")
    assert "stopped" not in box.run("status").stdout
    for process in (run, waiter):
        process.send_signal(signal.SIGSTOP)
    wait_for(lambda: all(row["stopped"] for row in box.status()), 20)
    for line, process in zip(box.run("status").stdout.splitlines()[1:], (run, waiter), strict=True):
        assert f"(stopped: fg, or kill -CONT {process.pid}; pid {process.pid}, " in line
    run.send_signal(signal.SIGCONT)
    wait_for(lambda: [row["stopped"] for row in box.status()] == [False, True], 20)


@pytest.mark.parametrize("stop", [signal.SIGSTOP, signal.SIGTSTP])
def test_status_shows_a_stopped_command_too(box: Box, stop: signal.Signals) -> None:
    """Whether its supervisor follows or not."""
    # A group of its own, below ours: in an orphaned one SIGTSTP stops nobody, setpgid(2).
    box.start("--", *box.job("one"), own_group=True)
    os.kill(box.begun("one"), stop)
    wait_for(lambda: box.status()[0]["stopped"], 20)
    os.kill(int(str(box.status()[0]["stopped_pid"])), signal.SIGCONT)
    wait_for(lambda: not box.status()[0]["stopped"], 20)


def held(box: Box, **more: str) -> "list[dict[str, object]]":
    (queue,) = json.loads(box.run("status", "--json", env=more).stdout)["queues"]
    found = queue["held"]
    assert isinstance(found, list)
    return found


def test_status_names_a_run_of_the_checkout_that_is_not_in_this_queue(box: Box) -> None:
    """One with another state directory, as another user's or a container's."""
    subprocess.run(["git", "init", "-q"], cwd=box.project, check=True)
    other = box.root / "other-state"
    other.mkdir()
    run = box.hold("one", env={"SANDRUN_STATE_DIR": str(other)})
    (holder,) = held(box)
    assert holder["path"] == str(box.project / ".git/sandrun.lock")
    assert (holder["pid"], holder["uid"]) == (run.pid, os.geteuid())
    assert str(holder["command"]).startswith("sandrun -- sh -c ")
    assert abs(float(str(holder["since"])) - time.time()) < 300 * SCALE
    assert held(box, SANDRUN_STATE_DIR=str(other)) == []
    line = box.run("status").stdout.splitlines()[1]
    assert re.search(rf"held: .*/sandrun\.lock by \S+: sandrun -- sh .*\(pid {run.pid}, ", line)
    box.let("one")
    assert box.finish(run).returncode == 0
    assert held(box) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: runs as two different users")
def test_status_names_the_user_that_is_waited_for(open_box: Box) -> None:
    subprocess.run(["git", "init", "-q"], cwd=open_box.project, check=True)
    for path in (open_box.project, open_box.project / ".git"):
        path.chmod(0o777)
    nobody = pwd.getpwnam("nobody")
    run = open_box.start("--", *open_box.job("one"), user=nobody.pw_uid)
    open_box.log.chmod(0o666)
    (open_box.root / "gate-one").chmod(0o666)
    wait_for(lambda: held(open_box), 20)
    (holder,) = held(open_box)
    assert (holder["pid"], holder["user"]) == (run.pid, "nobody")
    waiter = open_box.queue_up("two")
    shown = open_box.run("status").stdout
    assert "by nobody: sandrun -- sh " in shown and f"(pid {run.pid}, " in shown
    assert waiter.poll() is None


def test_kill_ends_a_waiter_a_run_or_everything_and_says_so(box: Box) -> None:
    runs = [box.hold("one"), box.queue_up("two"), box.queue_up("three")]
    ids = [str(row["id"]) for row in box.status()]
    assert f"ended waiter {ids[1]}" in box.run("kill", ids[1]).stdout
    assert box.finish(runs[1]).returncode == 143
    done = box.run("kill", "--all")
    assert f"ended waiter {ids[2]}" in done.stdout
    assert f"ended run {ids[0]}" in done.stdout.splitlines()[-1], "waiters first: none starts"
    assert [box.finish(run).returncode for run in (runs[0], runs[2])] == [143, 143]
    assert ("begin", "three") not in box.events()
    nothing = box.run("kill", "--all")
    assert (nothing.returncode, nothing.stdout) == (1, "")
    assert "nothing to end" in nothing.stderr


def test_kill_ends_a_stopped_run_that_ignores_sigterm(box: Box) -> None:
    stubborn = box.start("--grace", "0.2", "--", "sh", "-c", "trap '' TERM; sleep 1000")
    wait_for(lambda: len(box.status()) == 1, 20)
    stubborn.send_signal(signal.SIGSTOP)
    done = box.run("--grace", "0.2", "kill", "--all")
    assert "ended run" in done.stdout
    assert stubborn.wait(20 * SCALE) != 0


@pytest.mark.parametrize(
    "words",
    [
        ["status", "--queue", "x", "--json"],
        ["status", "--json", "--queue=x"],
        ["--queue", "y", "status", "--queue", "x", "--json"],
        ["queue", "--queue", "x"],
    ],
)
def test_options_go_after_a_subcommand_too(box: Box, words: "list[str]") -> None:
    run = box.hold("one", "--queue", "x")
    assert str(run.pid) in box.run(*words).stdout
    assert str(run.pid) not in box.run("status").stdout


def test_another_project_goes_after_a_subcommand_too(box: Box) -> None:
    run = box.hold("one")
    below = box.project / "below"
    below.mkdir()
    assert str(run.pid) not in box.run("status", cwd=below).stdout
    assert str(run.pid) in box.run("status", "-C", "..", cwd=below).stdout
    assert "ended run" in box.run("kill", "-C", "..", "-q", "--grace", "1", cwd=below).stdout


@pytest.mark.parametrize(
    ("words", "said", "hint"),
    [
        (["--memroy", "2G", "true"], "no such option: --memroy", "did you mean: --memory"),
        (["--timeuot=5", "true"], "no such option: --timeuot", "did you mean: --timeout"),
        (["--hepl"], "no such option: --hepl", "did you mean: --help"),
        (["-x", "true"], "no such option: -x", "options of the command itself go after it"),
        (["status", "--jsn"], "no such option: --jsn", "did you mean: --json"),
        (["status", "--memroy", "2G"], "no such option: --memroy", "did you mean: --memory"),
        (["doctor", "-vx"], "no such option: -x", ""),
        (["status", "--queue"], "option --queue needs a value", ""),
        (["queue", "mvoe", "x"], "no such subcommand: sandrun queue mvoe", "sandrun queue move"),
        (["shims", "ad"], "no such subcommand: sandrun shims ad", "sandrun shims --help"),
        (["shims", "lits"], "no such subcommand: sandrun shims lits", "mean: sandrun shims list"),
        (["shims", "xyz"], "no such subcommand: sandrun shims xyz", "sandrun shims --help"),
        (["queue", "move", "x"], "missing option", "sandrun queue move --help"),
        (["status", "it"], "got unexpected extra argument (it)", "sandrun status --help"),
        (["completions", "bsh"], "'bsh' is not one of", "sandrun completions --help"),
    ],
)  # fmt: skip
def test_what_is_mistyped_is_answered_with_what_was_meant(
    box: Box, words: "list[str]", said: str, hint: str
) -> None:
    done = box.run(*words)
    assert (done.returncode, done.stdout) == (125, "")
    error, *hints = done.stderr.splitlines()
    assert error.startswith("sandrun: ") and said in error
    assert hint in "".join(hints)
    assert len(hints) <= 1


def test_doctor_names_the_backend_in_force(box: Box) -> None:
    done = box.run("doctor", "--json")
    answer = json.loads(done.stdout)
    assert answer["v"] == 1
    assert done.returncode == (0 if answer["kernel"] else 1)
    assert f"in force: {answer['backend']}" in box.run("doctor").stdout


def test_doctor_tells_where_the_run_lock_has_its_second_home(box: Box) -> None:
    def check(name: str) -> "tuple[str, str]":
        answer = json.loads(box.run("doctor", "--json").stdout)
        (row,) = [row for row in answer["checks"] if row["name"] == name]
        return row["status"], row["evidence"]

    status, evidence = check("locks")
    assert status == "PASS"
    assert str(box.state) in evidence
    subprocess.run(["git", "init", "-q"], cwd=box.project, check=True)
    lock = box.project / ".git/sandrun.lock"
    assert check("checkout") == ("PASS", f"run lock in {lock}")
    lock.unlink()
    lock.mkdir()
    status, evidence = check("checkout")
    assert status == "CAUTION"
    assert f"{lock}: Is a directory" in evidence


def test_config_tells_project_and_queue(box: Box) -> None:
    lines = box.run("config", cwd=box.project).stdout.splitlines()
    assert lines[0] == f"# project {box.project}"
    assert lines[1].startswith(f"# queue   {box.state}/seq-exec-")


def test_without_a_state_directory_of_choice_it_is_below_tmp(box: Box) -> None:
    del box.env["SANDRUN_STATE_DIR"]
    queue = box.run("config", cwd=box.project).stdout.splitlines()[1].split()[-1]
    assert re.fullmatch(rf"/tmp/seq-exec-[0-9a-f]{{8}}-{os.geteuid()}", queue)


def test_config_shows_values_as_one_writes_them(box: Box) -> None:
    seen = config(box, "--kill-signal", "2", "--cpus", "1.50", "--swap", "1024", "-t", "90")
    told = {key: seen[key][0] for key in ("kill_signal", "cpus", "swap", "timeout", "idle_timeout")}
    assert told == {
        "kill_signal": "INT",
        "cpus": "1.5",
        "swap": "1.0 GiB",
        "timeout": "90 s",
        "idle_timeout": "none",
    }


def test_help_and_version(box: Box) -> None:
    text = box.run("--help").stdout
    for code in ("75", "124", "125", "126", "127", "137", "128+n"):
        assert f"  {code} " in text
    assert box.run("--version").stdout.startswith("sandrun 0.")


@pytest.mark.parametrize("subcommand", sorted({""} | (options.SUBCOMMANDS - {"git", "make-again"})))
def test_the_help_is_whole_on_80_columns(box: Box, subcommand: str) -> None:
    words = [subcommand] if subcommand else []
    text = box.run(*words, "--help", env={"COLUMNS": "80"}).stdout
    assert max(map(len, text.splitlines())) <= 80
    assert not [line for line in text.splitlines() if line.endswith("...") and "[" not in line]
    if not subcommand:
        commands, chosen = text.index("\nCommands:"), text.index("\nOptions:")
        assert len(text[:commands].splitlines()) < 24 and commands < chosen


def test_shims_list_says_what_to_do_where_it_has_nothing_to_show(box: Box) -> None:
    box.env["XDG_DATA_HOME"] = str(box.home / "data")
    done = box.run("shims", "list")
    assert (done.returncode, done.stdout) == (0, "")
    assert done.stderr == "sandrun: no shims yet: sandrun shims add make\n"
    box.run("shims", "add", "make")
    done = box.run("shims", "list")
    assert (done.stdout, done.stderr.count("not on PATH yet")) == ("make\n", 1)


# The record


def test_each_run_leaves_a_private_record(box: Box) -> None:
    box.run("--", "sh", "-c", "exit 3")
    (record,) = box.records()
    for key in ("id", "pid", "project", "cwd", "command", "wait", "wall", "cpu", "backend"):
        assert key in record
    assert (record["exit"], record["reason"], record["v"]) == (3, "exit", 1)
    file = box.home / "state/sandrun/history.jsonl"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_a_torn_last_line_costs_one_record_only(box: Box) -> None:
    file = box.home / "state/sandrun/history.jsonl"
    file.parent.mkdir(parents=True)
    file.write_text('{"v": 1, "id": "torn", "comm')
    box.run("--", "true")
    box.run("--", "true")
    torn, *whole = file.read_text().splitlines()
    assert torn == '{"v": 1, "id": "torn", "comm'
    assert [json.loads(line)["v"] for line in whole] == [1, 1]


def test_a_run_goes_on_where_no_record_can_be_written(box: Box) -> None:
    (box.home / "state").write_text("a file where the folder should be")
    done = box.run("--", "sh", "-c", "exit 4")
    assert (done.returncode, done.stderr) == (4, "")


def test_outside_of_a_terminal_nothing_is_coloured(box: Box, tmp_path: Path) -> None:
    assert "\x1b" not in box.run("--", "no-such-command-here").stderr
    assert "\x1b[31m" in box.run("--color", "always", "--", "no-such-command-here").stderr
    assert "\x1b" in box.run("--", "no-such", env={"FORCE_COLOR": "1"}).stderr


@pytest.mark.parametrize("words", [("status",), ("completions", "bash"), ("doctor", "--json")])
def test_an_answer_that_cannot_be_given_is_one_line(box: Box, words: "tuple[str, ...]") -> None:
    for script, why in (("exec >&-", "Bad file descriptor"), ("exec >/dev/full", "No space left")):
        done = box.run(f'{script}; "$@"', "sh", *launcher(), *words, argv=["sh", "-c"])
        assert done.returncode == 125
        assert done.stderr.startswith(f"sandrun: cannot write the answer: {why}")
        assert len(done.stderr.splitlines()) == 1


def test_a_file_that_cannot_be_written_is_named(box: Box) -> None:
    """It is no fault of standard output."""
    file = box.root / "file"
    file.touch()
    done = box.run("shims", "add", "make", env={"HOME": str(file), "XDG_DATA_HOME": ""})
    assert done.returncode == 125
    assert done.stderr.startswith(f"sandrun: {file}/"), done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert box.run("pause").returncode == 0
    (paused,) = box.state.glob("seq-exec-*/paused")
    paused.unlink()
    paused.mkdir()
    done = box.run("resume")
    assert done.returncode == 125
    assert done.stderr == (f"sandrun: {paused}: Is a directory\nsandrun: hint: rm -r {paused}\n")


def test_an_empty_id_names_no_run(box: Box) -> None:
    run = box.start("--", "sleep", "1000")
    wait_for(box.status)
    done = box.run("kill", "")
    assert (done.returncode, done.stdout) == (1, "")
    assert "nothing to end: no run" in done.stderr
    assert run.poll() is None
    assert box.run("kill").returncode == 0


def test_an_odd_thing_in_one_queue_keeps_kill_from_no_other(box: Box) -> None:
    run = box.start("--queue", "live", "--", "sleep", "1000")
    wait_for(lambda: box.status("--queue", "live"))
    for name in ("00000000", "00000001"):
        state = box.state / f"seq-exec-{name}-{os.geteuid()}"
        state.mkdir(0o700)
        (state / "executor.2.lock").mkdir()
    done = box.run("kill", "--all")
    assert "ended run" in done.stdout, done.stderr
    assert done.returncode == 1
    assert done.stderr.count("executor.2.lock: Is a directory") == 2
    assert run.wait(30) == 143


@pytest.mark.skipif(os.geteuid() != 0, reason="makes users and mounts: runs as root")
def test_kill_fails_when_something_lives_on(box: Box) -> None:
    """From within a pid namespace nobody outside can be ended."""
    run = box.hold("one")
    apart = ["unshare", "--pid", "--fork", "--mount-proc", *launcher()]
    done = box.run("--grace", "0", "kill", argv=apart, seconds=20)
    assert (done.returncode, done.stdout) == (1, "")
    assert f"could not end run {box.status()[0]['id']}" in done.stderr
    assert run.poll() is None
    box.let("one")
    assert box.finish(run).returncode == 0


def test_a_closed_stderr_does_not_fail_a_run(box: Box) -> None:
    script = 'exec 2>&-; "$@"'
    words = ["-v", "--", "sh", "-c", "echo out"]
    done = box.run(*words, argv=["sh", "-c", script, "sh", *launcher()])
    assert (done.returncode, done.stdout) == (0, "out\n")


def test_a_deleted_working_directory_is_no_obstacle(box: Box) -> None:
    gone = box.root / "gone"
    gone.mkdir()
    script = f'cd {gone} && rmdir {gone} && exec "$@" -- true'
    assert box.run(argv=["sh", "-c", script, "sh", *launcher()]).returncode == 0
    assert not os.path.exists(gone)


@pytest.mark.parametrize("words", [("--version",), ("--help",), ("status",), ("kill", "--all")])
def test_a_package_that_is_missing_is_named(box: Box, words: "tuple[str, ...]") -> None:
    library = box.root / "library"  # with nothing beside
    library.mkdir()
    (library / "sandrun").symlink_to(os.path.dirname(sandrun.__file__))
    code = f"import sys; sys.path.append({str(library)!r}); from sandrun.cli import main; main()"
    python = [sys.executable, "-I", "-S", "-c", code]  # without site, thus without other packages
    done = box.run(*words, argv=python)
    assert (done.returncode, done.stdout) == (125, "")
    assert done.stderr.splitlines()[0] == (
        "sandrun: this command needs the Python package click, which is missing"
    )
    assert box.run("--", "echo", "runs", argv=python).stdout == "runs\n"
