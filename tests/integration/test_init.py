"""`sandrun init`, completions, the manual page: what is written, kept and undone."""

import os
import shutil
import stat
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from sandrun.config import options
from tests.entering import INCLUDE, need, put_on_path
from tests.harness import ROOT, SCALE, Box

MAKEFILE = "all: ; @echo all $${SANDRUN_RUNS:+in a run}\n"
HOOK = '#!/usr/bin/env bash\n# mine\nset -e\necho "hook ${SANDRUN_RUNS:+in a run} $*"\n'


@pytest.fixture
def project(box: Box) -> Box:
    """A box with a Make project in a repository, sandrun and the folder of shims on its PATH."""
    put_on_path(box)
    box.env["XDG_DATA_HOME"] = str(box.home / "data")
    box.env |= {f"GIT_{who}_{what}": "t@example.org" for who in ("AUTHOR", "COMMITTER")
                for what in ("NAME", "EMAIL")}  # fmt: skip
    assert box.run("init", "-q", argv=["git"]).returncode == 0
    (box.project / "Makefile").write_text(MAKEFILE)
    hook = box.project / ".git/hooks/pre-commit"
    hook.parent.mkdir(exist_ok=True)
    hook.write_text(HOOK)
    hook.chmod(0o755)
    return box


def snapshot(box: Box) -> "dict[str, tuple[int, bytes]]":
    """All files of the project and the home, with their modes; git's own and the state left out."""
    return {
        str(path.relative_to(box.root)): (stat.S_IMODE(path.stat().st_mode), path.read_bytes())
        for top in (box.project, box.home)
        for path in sorted(top.rglob("*"))
        if path.is_file() and "/home/state" not in str(path)
    }


def init(box: Box, *options: str) -> str:
    done = box.run("init", *options)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_it_sets_up_says_so_and_is_undone_whole(project: Box) -> None:
    before = snapshot(project)
    said = init(project)
    for name in ("sandrun.toml", "sandrun.mk", "Makefile", "pre-commit", "make", "git"):
        assert any(name in line and not line.startswith("leave") for line in said.splitlines()), (
            name
        )
    assert (project.project / "Makefile").read_text() == "-include sandrun.mk\n" + MAKEFILE
    assert (project.project / "sandrun.mk").read_bytes() == INCLUDE.read_bytes()
    assert init(project, "--undo").count("remove the shim for") == 2
    (project.home / "data/sandrun/shims/.sandrun-shims").unlink()
    assert snapshot(project) == before


def test_what_was_set_up_takes_its_turn(project: Box) -> None:
    init(project)
    project.env["PATH"] = f"{project.home}/data/sandrun/shims:{project.env['PATH']}"
    assert project.run(argv=["make"]).stdout == "all in a run\n"
    assert project.run("add", ".", argv=["git"]).returncode == 0
    done = project.run("commit", "-qm", "first", argv=["git"])
    assert done.returncode == 0, done.stderr
    assert "hook in a run" in done.stdout + done.stderr
    commands = [record["command"] for record in project.records()]
    assert [command[0].rpartition("/")[2] for command in commands if isinstance(command, list)] == [
        "make",
        "pre-commit",
    ]


def test_a_dry_run_changes_nothing_and_says_the_same(project: Box) -> None:
    before = snapshot(project)
    dry = init(project, "--dry-run")
    assert snapshot(project) == before
    assert dry.replace("would ", "") == init(project)
    undone = init(project, "--undo", "--dry-run")
    assert undone.replace("would ", "") == init(project, "--undo")


def test_said_again_it_changes_nothing(project: Box) -> None:
    init(project)
    before = snapshot(project)
    said = init(project)
    assert snapshot(project) == before
    assert {line.split()[0] for line in said.splitlines()} == {"keep", "shims"}


def test_edits_are_kept_by_it_and_by_its_undoing(project: Box) -> None:
    (project.project / "sandrun.toml").write_text('memory = "1G"\n')
    init(project)
    with open(project.project / "sandrun.mk", "a") as file:
        file.write("# mine\n")
    makefile = project.project / "Makefile"
    makefile.write_text("X = mine\n" + makefile.read_text() + "Y = mine\n")
    before = snapshot(project)
    init(project)
    assert snapshot(project) == before
    said = init(project, "--undo")
    assert "sandrun.toml: it was edited" in said
    assert "sandrun.mk: it was edited" in said
    assert (project.project / "sandrun.toml").read_text() == 'memory = "1G"\n'
    assert (project.project / "sandrun.mk").read_text().endswith("# mine\n")
    assert makefile.read_text() == "X = mine\n" + MAKEFILE + "Y = mine\n"


def second(box: Box) -> Path:
    """Another project with a Makefile, set up too."""
    other = box.root / "other"
    other.mkdir()
    (other / "Makefile").touch()
    done = box.run("init", cwd=other)
    assert f"keep the shim for make, which was added for {box.project}" in done.stdout
    assert "keep the shim for make\n" in box.run("init", cwd=other).stdout
    return other


def test_a_shim_goes_with_the_last_project_that_has_it_from_init(project: Box) -> None:
    init(project)
    other = second(project)
    assert f"leave the shim for make, which {other} wants too" in init(project, "--undo")
    assert project.run("shims", "list").stdout == "make\n"
    assert "remove the shim for make" in project.run("init", "--undo", cwd=other).stdout
    assert project.run("shims", "list").stdout == ""


def test_a_project_that_is_gone_keeps_no_shim(project: Box) -> None:
    init(project)
    shutil.rmtree(second(project))
    init(project, "--undo")
    assert project.run("shims", "list").stdout == ""


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_shim_of_the_users_own_stays(project: Box, when: str) -> None:
    for step in ("before", "init", "after"):
        if step == "init":
            init(project)
        elif step == when:
            assert project.run("shims", "add", "make").returncode == 0
    assert "shim for make" not in init(project, "--undo")
    assert project.run("shims", "list").stdout == "make\n"


def test_settings_in_pyproject_and_an_include_of_the_users_own_are_seen(project: Box) -> None:
    (project.project / "pyproject.toml").write_text("[tool.sandrun]\nmemory = '1G'\n")
    (project.project / "Makefile").write_text("include build/sandrun.mk\n")
    said = init(project)
    assert "pyproject.toml has the settings" in said
    assert not (project.project / "sandrun.toml").exists()
    assert (project.project / "Makefile").read_text() == "include build/sandrun.mk\n"


INCLUDES = [
    "sinclude sandrun.mk",
    "  -include a.mk \\\n    sandrun.mk",
    "include $(TOP)/sandrun.mk # ours",
]
OTHERS = [
    "clean: ; rm -f sandrun.mk",
    "clean:\n\trm -f sandrun.mk\n\tinclude sandrun.mk",
    "# include sandrun.mk",
    "include a.mk # not sandrun.mk",
    "include not-sandrun.mk sandrun.mk.in",
]


@pytest.mark.parametrize("text", INCLUDES + OTHERS)
def test_only_a_directive_is_an_include(project: Box, text: str) -> None:
    makefile = project.project / "Makefile"
    makefile.write_text(text + "\n")
    init(project)
    put_in = "" if text in INCLUDES else "-include sandrun.mk\n"
    assert makefile.read_text() == f"{put_in}{text}\n"
    init(project, "--undo")
    assert makefile.read_text() == f"{text}\n"


READ_ONLY = 'mount -t tmpfs -o ro none . && cd "$PWD" && exec sandrun "$0" "$@"'


def test_a_project_that_cannot_be_written_is_told_by_name(project: Box) -> None:
    namespace = ["unshare", "--user", "--map-root-user", "--mount"]
    mount = ["mount", "-t", "tmpfs", "none", str(project.project)]
    if subprocess.call([*namespace, *mount], stderr=subprocess.DEVNULL):
        pytest.skip("needs user namespaces")
    done = project.run(READ_ONLY, "init", argv=[*namespace, "sh", "-c"])
    assert (done.returncode, done.stdout) == (125, "")
    error, hint = done.stderr.splitlines()
    path = project.project / "sandrun.toml"
    assert error == f"sandrun: cannot write {path}: Read-only file system"
    assert hint.startswith("sandrun: hint: ")
    assert "would write" in project.run(READ_ONLY, "init", "--dry-run",
                                        argv=[*namespace, "sh", "-c"]).stdout  # fmt: skip


def test_a_makefile_that_cannot_be_read_is_not_taken_to_be_empty(project: Box) -> None:
    makefile = project.project / "Makefile"
    makefile.unlink()
    makefile.symlink_to("/proc/self/mem")
    done = project.run("init")
    assert done.returncode == 125
    assert f"cannot read {makefile}: Input/output error" in done.stderr


@pytest.mark.parametrize("text", ["", "all: ; @echo all", "# X\f\r\nall:\x85\n\n"])
def test_a_makefile_is_undone_to_the_byte(project: Box, text: str) -> None:
    makefile = project.project / "Makefile"
    makefile.write_bytes(text.encode())
    init(project)
    assert makefile.read_bytes() == b"-include sandrun.mk\n" + text.encode()
    init(project, "--undo")
    assert makefile.read_bytes() == text.encode()


def test_a_makefile_keeps_its_mode_its_link_and_its_bytes(project: Box) -> None:
    real = project.project / "real.mk"
    real.write_bytes(b"# caf\xe9\r\n" + MAKEFILE.encode())
    real.chmod(0o640)
    (project.project / "Makefile").unlink()
    (project.project / "Makefile").symlink_to("real.mk")
    init(project)
    assert (project.project / "Makefile").is_symlink()
    assert real.read_bytes() == b"-include sandrun.mk\n# caf\xe9\r\n" + MAKEFILE.encode()
    assert stat.S_IMODE(real.stat().st_mode) == 0o640
    init(project, "--undo")
    assert real.read_bytes() == b"# caf\xe9\r\n" + MAKEFILE.encode()


def test_a_hook_that_is_no_shell_script_is_left(project: Box) -> None:
    hook = project.project / ".git/hooks/pre-commit"
    hook.write_text("#!/usr/bin/env python3\nprint('mine')\n")
    assert "no shell script" in init(project)
    assert hook.read_text() == "#!/usr/bin/env python3\nprint('mine')\n"


@pytest.mark.parametrize("text", ["#!/bin/sh", "#!/bin/sh\n", "#!/bin/sh\nexit 3"])
def test_a_hook_of_any_last_line_still_runs_and_is_undone_to_the_byte(
    project: Box, text: str
) -> None:
    hook = project.project / ".git/hooks/pre-commit"
    hook.write_text(text)
    init(project)
    done = project.run(argv=[str(hook)])
    assert (done.returncode, done.stderr) == (3 if "exit" in text else 0, "")
    assert len(project.records()) == 1
    init(project, "--undo")
    assert hook.read_text() == text


LOOKS = """#!/bin/sh
echo "index: $(git diff --cached --name-only | xargs)${SANDRUN_RUNS:+ in a run}"
sandrun -- sh -c 'echo "below: ${GIT_DIR:+GIT_DIR}"'
"""


@pytest.mark.parametrize("setting", ["", "clean_git_env = true\n"])
@pytest.mark.parametrize("where", ["project", "linked"])
def test_the_hook_sees_the_index_of_its_commit(project: Box, where: str, setting: str) -> None:
    """Also of `commit -a` and of a partial one, which are not in .git/index; it and what it starts
    are warned of the variables, or do without them."""
    (project.project / ".git/hooks/pre-commit").write_text(LOOKS)
    top = project.root / where
    for name in ("one", "two"):
        (project.project / name).touch()
    for words in (["add", "one", "two"], ["commit", "-qm", "x"], ["worktree", "add", "../linked"]):
        assert project.run(*words, argv=["git"]).returncode == 0
    assert project.run("init", cwd=top).returncode == 0
    (top / "sandrun.toml").write_text(setting)
    assert project.run("trust", cwd=top).returncode == 0
    for name in ("one", "two"):
        (top / name).write_text("changed")
    for words, seen in ((["one"], "one"), (["-a"], "two"), (["--allow-empty"], "")):
        done = project.run("commit", "-qm", "y", *words, argv=["git"], cwd=top)
        assert done.returncode == 0, done.stderr
        assert done.stdout == ""
        lines = done.stderr.splitlines()
        at = lines.index(f"index: {seen} in a run")
        own, below, last = lines[:at], lines[at + 1 : -1], lines[-1]
        assert last == ("below: GIT_DIR" if where == "linked" and not setting else "below: ")
        assert len(own) == (2 if where == "linked" and not setting else 0)  # with its hint
        assert all(line.startswith(("sandrun: GIT_DIR from", "sandrun: hint")) for line in own)
        leaks = where == "linked" or seen  # a path from the root
        assert len(below) == (2 if leaks and not setting else 0)


@pytest.mark.parametrize("cleaned", [False, True])
def test_tests_in_a_hook_of_a_worktree(project: Box, cleaned: bool) -> None:
    """They commit in a repository of their own; with git's GIT_DIR that is the real branch."""
    suite = "mkdir suite && cd suite && git init -q . && git config user.suite yes"
    hook = project.project / ".git/hooks/pre-commit"
    hook.write_text("#!/bin/sh\n")
    for words in (["commit", "-q", "--allow-empty", "-m", "x"], ["worktree", "add", "../linked"]):
        assert project.run(*words, argv=["git"]).returncode == 0
    top = project.root / "linked"
    hook.write_text(f"#!/bin/sh\n{suite}\n")
    assert project.run("init", cwd=top).returncode == 0
    env = {"SANDRUN_CLEAN_GIT_ENV": "1"} if cleaned else {}
    done = project.run("commit", "-q", "--allow-empty", "-m", "x", argv=["git"], cwd=top, env=env)
    assert done.returncode == 0, done.stderr
    assert ("GIT_DIR from the environment" in done.stderr) == (not cleaned)
    real = (project.project / ".git/config").read_text()
    assert ("suite" in real) == (not cleaned), "else the warning has no reason"


def test_a_hook_far_from_its_git_dir_keeps_it(project: Box) -> None:
    """As with a repository of dotfiles, whose git dir is not above the hook."""
    git_dir = project.root / "dotfiles"
    home = project.root / "work"
    home.mkdir()
    words = [f"--git-dir={git_dir}", f"--work-tree={home}"]
    assert project.run(*words, "init", "-q", argv=["git"]).returncode == 0
    hook = git_dir / "hooks/pre-commit"
    hook.parent.mkdir(exist_ok=True)
    init(project)
    line = (project.project / ".git/hooks/pre-commit").read_text().splitlines()[1]
    hook.write_text(f"#!/bin/sh\n{line}\necho dir: $(git rev-parse --git-dir) >&2\n")
    hook.chmod(0o755)
    env = {"SANDRUN_CLEAN_GIT_ENV": "1"}
    commit = [*words, "commit", "-q", "--allow-empty", "-m", "x"]
    done = project.run(*commit, argv=["git"], cwd=home, env=env)
    assert (done.returncode, done.stderr) == (0, f"dir: {git_dir}\n")


def test_hooks_elsewhere_are_found(project: Box) -> None:
    hooks = project.project / "my-hooks"
    hooks.mkdir()
    shutil.move(project.project / ".git/hooks/pre-commit", hooks)
    project.run("config", "core.hooksPath", "my-hooks", argv=["git"])
    init(project)
    assert "sandrun -- " in (hooks / "pre-commit").read_text().splitlines()[1]


def test_a_hook_without_sandrun_is_the_hook_that_it_was(project: Box) -> None:
    init(project)
    (project.root / "bin/sandrun").unlink()
    hook = project.project / ".git/hooks/pre-commit"
    done = project.run("a", "b", argv=[str(hook)], env={"PATH": "/usr/bin:/bin"})
    assert (done.returncode, done.stdout) == (0, "hook  a b\n")


def test_the_settings_file_is_what_a_person_writes(project: Box) -> None:
    """All settings, each with a word of why; those of the first part uncommented change nothing,
    those of the second are examples of what is not set without it."""
    init(project)
    path = project.project / "sandrun.toml"
    text = path.read_text()
    assert tomllib.loads(text) == {}
    assert "= 0.0" not in text and "= 15" not in text
    parts = [part.splitlines()[1:] for part in text.split("\n# --- ")[1:]]
    rows = [[line.removeprefix("#") for line in part if line] for part in parts]
    shown = []
    for part in ([], *rows):
        path.write_text("\n".join(part))
        assert len(tomllib.loads(path.read_text())) == len(part)
        assert project.run("trust").returncode == 0
        done = project.run("config")
        assert done.stderr == ""
        lines = [line.split() for line in done.stdout.splitlines() if line[0] != "#"]
        shown.append({words[0]: words[1:-1] for words in lines})
    defaults, examples = ({row.split()[0] for row in part} for part in rows)
    assert shown[1] == shown[0]
    assert {key for key in shown[2] if shown[2][key] != shown[0][key]} == examples
    assert defaults | examples == {o.key for o in options.OPTIONS if o.scope == "all"}
    assert not defaults & examples
    for option in options.OPTIONS:
        assert (f"#{option.key} = " in text) == (option.scope == "all")
    assert all("  # " in row or row.startswith("io_") for part in rows for row in part)
    assert max(map(len, text.splitlines())) <= 100


def test_make_include_prints_the_file(project: Box) -> None:
    printed = project.run("make-include").stdout.strip()
    assert Path(printed).read_bytes() == INCLUDE.read_bytes()


COMPLETE = {
    "bash": """
eval "$(sandrun completions bash)"
ask() {
    COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _sandrun
    printf '%s\\n' "${COMPREPLY[@]}"; echo
}
ask sandrun sta; ask sandrun --mem; ask sandrun --backend ""; ask sandrun kill --
ask sandrun --memory 1G shims ""; ask sandrun -- tru
""",
    "fish": """
sandrun completions fish | source
for line in 'sta' '--mem' '--backend ' 'kill --' 'shims ' '-- tru'
    complete -C "sandrun $line" | cut -f1; echo
end
""",
}


@pytest.mark.parametrize("shell", COMPLETE)
def test_completions(project: Box, shell: str) -> None:
    need(shell)
    words = ["bash", "--norc", "-c"] if shell == "bash" else ["fish", "--no-config", "-c"]
    done = project.run(COMPLETE[shell], argv=words)
    assert (done.returncode, done.stderr) == (0, "")
    answers = [answer.split() for answer in done.stdout.split("\n\n")]
    assert "status" in answers[0]
    assert "--memory" in answers[1]
    assert {"auto", "cgroup2", "none"} <= set(answers[2])
    assert "--all" in answers[3]
    assert {"add", "list", "remove", "activate"} <= set(answers[4])
    assert "true" in answers[5]


def test_completions_of_zsh(project: Box) -> None:
    """In a terminal, because zsh completes nowhere else."""
    script = r"""
import os, pty, select, sys, time
def read_until(fd, mark, seconds):
    text, end = b"", time.monotonic() + seconds
    while mark not in text:
        ready, _, _ = select.select([fd], [], [], max(0, end - time.monotonic()))
        assert ready, text
        text += os.read(fd, 65536)
    return text
pid, fd = pty.fork()
if pid == 0:
    os.execvp("zsh", ["zsh", "-f", "-i"])
patience = float(sys.argv[1])
os.write(fd, b"PS1='rea''dy> '; autoload -Uz compinit; compinit -u -D; unsetopt beep\n")
os.write(fd, b"eval \"$(sandrun completions zsh)\"; echo go''on\n")
read_until(fd, b"goon", patience)
for line, mark in ((b"sandrun sta\t", b"status"), (b"sandrun --backend cgro\t\t", b"cgroup2"),
                   (b"sandrun shims \t\t", b"activate")):
    os.write(fd, line)
    read_until(fd, mark, patience)
    os.write(fd, b"\x15")
os.write(fd, b"exit\n")
print("completed")
"""
    need("zsh")
    words = [sys.executable, "-c", script, str(20 * SCALE)]
    users = [name for name in project.env["PATH"].split(":") if not name.endswith("sbin")]
    for folders in (users, [*users, "/usr/sbin"]):  # there is a stat(1), and what begins with `sta`
        env = {"TERM": "xterm", "PATH": ":".join(folders)}
        done = project.run(argv=words, seconds=90, env=env)
        assert (done.returncode, done.stdout) == (0, "completed\n"), done.stderr


TYPED = r"""
import os, pty, select, sys, time
def read_until(mark):
    text, end = b"", time.monotonic() + float(sys.argv[1])
    while mark not in text:
        ready, _, _ = select.select([fd], [], [], max(0, end - time.monotonic()))
        assert ready, (mark, text)
        text += os.read(fd, 65536)
pid, fd = pty.fork()
if pid == 0:
    os.execvp(sys.argv[3], sys.argv[3:])
os.write(fd, sys.argv[2].encode() + b"; echo go''on\n")
read_until(b"goon")
for line, mark in ((b"git checko", b"checkout"), (b"git cherry-p", b"cherry-pick"),
                   (b"-m 64M git -C . checko", b"checkout"), (b"-- git checko", b"checkout"),
                   (b"git checkout side-", b"side-branch"), (b"git unlo", b"ck")):
    os.write(fd, b"sandrun " + line + b"\t")
    read_until(mark)
    os.write(fd, b"\x15")
os.write(fd, b"exit\n")
print("completed")
"""
_BASH_COMPLETION = "/usr/share/bash-completion/bash_completion"
_GIT_COMPLETION = "/usr/share/bash-completion/completions/git"
GITS = {
    "bash": (f". {_BASH_COMPLETION}", ("bash", "--norc", "-i"), _BASH_COMPLETION),
    "bash, git's alone": (f". {_GIT_COMPLETION}", ("bash", "--norc", "-i"), _GIT_COMPLETION),
    "zsh": (
        "autoload -Uz compinit; compinit -u -D",
        ("zsh", "-f", "-i"),
        "/usr/share/zsh/functions/Completion/Unix/_git",
    ),
}


@pytest.mark.parametrize("how", GITS)
def test_git_is_completed_as_git(project: Box, how: str) -> None:
    """By git's own completions, in a terminal as everybody has them."""
    start, words, file = GITS[how]
    need(words[0])
    if not os.path.exists(file):
        pytest.skip(f"needs git's completions ({file})")
    for line in (["commit", "-q", "--allow-empty", "-m", "x", "-n"], ["branch", "side-branch"]):
        assert project.run(*line, argv=["git"]).returncode == 0
    start += f'; eval "$(sandrun completions {words[0]})"'
    argv = [sys.executable, "-c", TYPED, str(20 * SCALE), start, *words]
    done = project.run(argv=argv, seconds=120, env={"TERM": "xterm"})
    assert (done.returncode, done.stdout) == (0, "completed\n"), done.stderr


def test_git_is_completed_as_git_in_fish(project: Box) -> None:
    need("fish")
    if not os.path.exists("/usr/share/fish/completions/git.fish"):
        pytest.skip("needs git's completions (/usr/share/fish/completions/git.fish)")
    script = """
sandrun completions fish | source
for line in 'git che' '-m 64M git che' '--memory 1G -- git che' 'git unl'
    complete -C "sandrun $line" | cut -f1; echo
end
"""
    done = project.run(script, argv=["fish", "-c"])
    answers = [answer.split() for answer in done.stdout.split("\n\n")]
    assert [set(answer) >= {"checkout", "cherry-pick"} for answer in answers[:3]] == [True] * 3
    assert "unlock" in answers[3]


def test_the_manual_page_is_well_formed_and_tells_everything(project: Box) -> None:
    need("mandoc")
    page = project.root / "sandrun.1"
    page.write_text(project.run("man").stdout)
    lint = project.run("-T", "lint", "-W", "warning", str(page), argv=["mandoc"])
    complaints = lint.stdout.splitlines()
    assert [line for line in complaints if "missing date" not in line] == []
    text = project.run("-T", "ascii", str(page), argv=["mandoc"]).stdout
    text = text.replace("_\b", "")
    text = "".join(c for at, c in enumerate(text) if text[at + 1 : at + 2] != "\b" and c != "\b")
    for option in options.OPTIONS:
        assert all(flag in text for flag in option.flags), option.key
    for name in options.SUBCOMMANDS - {"make-again"}:
        assert f"   {name}" in text, name
    assert "make-again" not in text
    assert "EXIT CODES" in text


def test_a_real_pre_commit_installs_us_as_a_repository(project: Box) -> None:
    """From a repository with this tree, as `repo:` has it; its environment is built by pip."""
    if not (ROOT / ".pre-commit-hooks.yaml").exists():
        pytest.skip("the checkout is gone (an installed wheel is being tested)")
    source = project.root / "source"
    ignored = shutil.ignore_patterns("__pycache__")
    for name in ("sandrun", "backends"):
        shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=ignored)
    for name in ("pyproject.toml", "setup.py", "README.md", ".pre-commit-hooks.yaml"):
        shutil.copy(ROOT / name, source)
    git = ["git", "-C", str(source)]
    for words in (["init", "-q"], ["add", "."], ["commit", "-qm", "all"]):
        assert project.run(*words, argv=git).returncode == 0
    config = f"repos:\n- repo: {source}\n  rev: HEAD\n  hooks:\n"
    for hook in ("sandrun", "sandrun-files"):
        config += f"  - id: {hook}\n    verbose: true\n"
        config += "    args: [sh, -c, 'echo $0 $* $SANDRUN_RUNS', with]\n"
    (project.project / ".pre-commit-config.yaml").write_text(config)
    project.run("add", ".pre-commit-config.yaml", argv=["git"])
    env = {"PRE_COMMIT_HOME": str(project.root / "pre-commit")}
    env |= {key: os.environ[key] for key in os.environ if key.startswith(("PIP_", "SSL_"))}
    done = project.run("run", argv=[sys.executable, "-m", "pre_commit"], env=env, seconds=200)
    assert done.returncode == 0, done.stdout + done.stderr
    mark = f"{project.state}/seq-exec-"
    assert f"with {mark}" in done.stdout
    assert f"with .pre-commit-config.yaml {mark}" in done.stdout
    assert [record["reason"] for record in project.records()] == ["exit", "exit"]
