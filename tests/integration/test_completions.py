"""Completions in real shells: options after subcommands, values, ids, and git's own."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.entering import need, put_on_path
from tests.harness import SCALE, Box

BASH = r"""
eval "$(sandrun completions bash)"
while IFS= read -r line; do
    read -ra COMP_WORDS <<<"$line"
    case $line in *' ') COMP_WORDS+=('') ;; esac
    COMP_LINE=$line COMP_POINT=${#line} COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
    _sandrun
    echo "${COMPREPLY[@]}"
done
"""
FISH = """
sandrun completions fish | source
while read -l line
    echo (complete -C "$line" | cut -f1)
end
"""
ZSH = r"""
import os, pty, re, select, sys, time
patience = float(sys.argv[1])
def read_until(mark, quiet=0.0):
    text, end = b"", time.monotonic() + patience
    while mark not in text:
        ready, _, _ = select.select([fd], [], [], max(0, end - time.monotonic()))
        assert ready, (mark, text)
        text += os.read(fd, 65536)
    return text
pid, fd = pty.fork()
if pid == 0:
    os.execv(sys.argv[2], ["zsh", "-f", "-i"])
os.write(fd, b"PS1='rea''dy> '; autoload -Uz compinit; compinit -u -D; unsetopt beep\n")
# All at once, as one list: what a TAB would show after some presses.
os.write(fd, b"setopt no_auto_menu; zstyle ':completion:*' list-prompt ''; LISTMAX=9999\n")
os.write(fd, sys.argv[3].encode() + b"\n")
os.write(fd, b"eval \"$(sandrun completions zsh)\"; echo go''on\n")
read_until(b"goon")
for line, mark in (pair.split("|") for pair in sys.argv[4:]):
    os.write(fd, line.encode() + b"\t")
    read_until(mark.encode())
    os.write(fd, b"\x15")
print("completed")
os.write(fd, b"exit\n")
"""


@pytest.fixture
def project(box: Box) -> Box:
    put_on_path(box)
    assert box.run("init", "-q", argv=["git"]).returncode == 0
    return box


def ask(box: Box, shell: str, *lines: str) -> "list[set[str]]":
    """What is offered at the ends of these lines."""
    need(shell)
    words = {"bash": ["--norc", "-c", BASH], "fish": ["-c", FISH]}[shell]
    process = box.start(argv=[shell, *words], stdin=subprocess.PIPE)
    done = box.finish(process, 60, "".join(f"{line}\n" for line in lines))
    assert (done.returncode, done.stderr) == (0, "")
    answers = [set(answer.split()) for answer in done.stdout.split("\n")]
    assert len(answers) == len(lines) + 1
    return answers[:-1]


def zsh(box: Box, *pairs: "tuple[str, str]", path: str = "", before: str = "") -> None:
    """Each line is offered the word, after one TAB; `before` is a command of the shell's."""
    need("zsh")
    program = shutil.which("zsh")
    words = [sys.executable, "-c", ZSH, str(20 * SCALE), str(program), before]
    env = {"TERM": "xterm", **({"PATH": path} if path else {})}
    done = box.run(*(f"{a}|{b}" for a, b in pairs), argv=words, seconds=100, env=env)
    assert (done.returncode, done.stdout) == (0, "completed\n"), done.stderr


@pytest.mark.parametrize("shell", ["bash", "fish"])
def test_options_and_values_are_offered_wherever_they_may_stand(project: Box, shell: str) -> None:
    expected = {
        "sandrun --priority ": "high normal low",
        "sandrun -p ": "high normal low",
        "sandrun --backend cg": "cgroup1 cgroup2",
        "sandrun --leftovers ": "kill wait leave",
        "sandrun --daemons ": "contain leave",
        "sandrun --require ": "any kernel",
        "sandrun --color ": "auto always never",
        "sandrun --kill-signal ": "TERM INT HUP",
        "sandrun --pool ": "off 80%",
        "sandrun status --": "--all --json --queue --project",
        "sandrun -q status --priority h": "high",
        "sandrun --memory 1G queue ": "move cancel",
        "sandrun queue move x --priority ": "high normal low",
        "sandrun queue move x --pri": "--priority",
        "sandrun completions ": "bash zsh fish",
        "sandrun shims activate ": "bash zsh fish powershell",
        "sandrun shims add ": "make npm cargo",
        "sandrun init --": "--dry-run --undo --quiet",
    }
    (project.project / "high-water").touch()
    for (line, words), offered in zip(
        expected.items(), ask(project, shell, *expected), strict=True
    ):
        assert set(words.split()) <= offered, line
        assert "high-water" not in offered, line
    assert "--ids" not in ask(project, shell, "sandrun status --")[0]


@pytest.mark.parametrize("shell", ["bash", "fish"])
def test_the_ids_of_those_that_are_meant_are_offered(project: Box, shell: str) -> None:
    project.hold("one")
    project.queue_up("two")
    project.hold("other", "--queue", "other")
    ids = project.ids("--queue", "other") | project.ids()
    kill, move, cancel, begun = ask(
        project,
        shell,
        "sandrun kill ",
        "sandrun queue move ",
        "sandrun queue -q cancel ",
        f"sandrun kill {ids['two'][:4]}",
    )
    assert set(ids.values()) <= kill
    assert ids["two"] in move & cancel & begun
    assert not {ids["one"], ids["other"]} & (move | cancel)


@pytest.mark.parametrize("shell", ["bash", "fish"])
def test_the_shims_that_are_there_are_offered(project: Box, shell: str) -> None:
    project.env["XDG_DATA_HOME"] = str(project.home / "data")
    assert project.run("shims", "add", "make", "odd-tool").returncode == 0
    assert {"make", "odd-tool"} <= ask(project, shell, "sandrun shims remove ")[0]


@pytest.mark.parametrize("shell", ["bash", "fish"])
def test_what_is_run_is_completed_as_itself(project: Box, shell: str) -> None:
    """Also after options with values, and git as git."""
    file = {"bash": "bash-completion/completions/git", "fish": "fish/completions/git.fish"}[shell]
    if not Path(f"/usr/share/{file}").exists():
        pytest.skip(f"needs git's completions (/usr/share/{file})")
    expected = {
        "sandrun tru": "true",
        "sandrun -- tru": "true",
        "sandrun --memory 1G tru": "true",
        "sandrun git che": "checkout",
        "sandrun git unlock --": "--dry-run --force --restore",
        "sandrun -q git --no-pager che": "checkout",
        "sandrun --priority high -- git sta": "status",
        "sandrun ma": "make man",
    }
    for (line, words), offered in zip(
        expected.items(), ask(project, shell, *expected), strict=True
    ):
        assert set(words.split()) <= offered, line
        assert "--memory" not in offered, line


def test_a_directory_is_offered_for_the_project(project: Box) -> None:
    (project.project / "below").mkdir()
    (project.project / "best-file").touch()
    for shell in ("bash", "fish"):
        (offered,) = ask(project, shell, "sandrun status -C be")
        assert {word.rstrip("/") for word in offered} == {"below"}


@pytest.mark.parametrize("shell", ["bash", "fish"])
def test_past_and_current_runs_are_offered_to_log(project: Box, shell: str) -> None:
    project.run("--", "true")
    project.hold("one")
    past = str(project.records()[0]["id"])
    whole, begun = ask(project, shell, "sandrun log ", f"sandrun log {past[:5]}")
    assert {past, project.ids()["one"]} <= whole
    assert begun == {past}


def test_a_file_is_offered_where_one_is_wanted(project: Box) -> None:
    (project.project / "best.json").touch()
    for shell in ("bash", "fish"):
        for option in ("--json-report", "--metrics-textfile"):
            (offered,) = ask(project, shell, f"sandrun {option} be")
            assert offered == {"best.json"}, (shell, option)
    zsh(project, ("sandrun --json-report be", "best.json"))


def test_zsh_offers_the_same(project: Box) -> None:
    project.hold("one")
    project.queue_up("two")
    ids = project.ids()
    zsh(
        project,
        ("sandrun --priority ", "normal"),
        ("sandrun queue move x --priority ", "normal"),
        ("sandrun status --js", "--json"),
        ("sandrun status --que", "--queue"),
        ("sandrun queue ", "cancel"),
        ("sandrun shims add ", "cargo"),
        ("sandrun kill ", ids["one"]),
        ("sandrun queue cancel ", ids["two"]),
        ("sandrun git che", "checkout"),
        ("sandrun git unlock --f", "--force"),
        # Of ids that begin alike, one in sixteen, zsh inserts the beginning before it lists them.
        before="unsetopt list_ambiguous",
    )


def test_zsh_shows_a_subcommand_that_begins_like_a_command(project: Box) -> None:
    """With `stat` as the only such command, zsh inserts what both begin with: it lists them too."""
    for name in ("stat", "true", "cat"):
        (project.root / "bin" / name).symlink_to(str(shutil.which(name)))
    python = str(Path(sys.executable).parent)
    zsh(project, ("sandrun sta", "status"), path=f"{project.root}/bin:{python}")
