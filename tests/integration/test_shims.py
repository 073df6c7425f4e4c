"""PATH shims, driven by the real shells and tools that meet them."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from sandrun.integrations import shims
from tests.entering import makefile, need, put_on_path, said, witnessed
from tests.harness import Box, installed_env, launcher, wait_for

TOOL = '#!/bin/sh\necho "tool $0 [$*] ${SANDRUN_RUNS:+in a run}"\nexit ${EXIT-0}\n'


@pytest.fixture
def shimbox(box: Box) -> Box:
    """A box with a project, a tool `mytool` on the PATH, and the shims in front of it."""
    put_on_path(box)
    (box.project / "sandrun.toml").touch()
    box.env["XDG_DATA_HOME"] = str(box.home / "data")
    tool(box, "tools")
    add(box, "mytool")
    box.env["PATH"] = f"{folder(box)}:{box.env['PATH']}"
    return box


def folder(box: Box) -> Path:
    return box.home / "data/sandrun/shims"


def tool(box: Box, where: str, text: str = TOOL, name: str = "mytool") -> Path:
    """A program in a directory of its own, which becomes first on PATH."""
    directory = box.root / where
    directory.mkdir(exist_ok=True)
    path = directory / name
    path.write_text(text)
    path.chmod(0o755)
    box.env["PATH"] = f"{directory}:{box.env['PATH']}"
    return path


def add(box: Box, *tools: str) -> None:
    done = box.run("shims", "add", *tools)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [str(folder(box) / name) for name in tools]


def test_the_tool_runs_in_its_turn_with_its_words_and_exit_code(shimbox: Box) -> None:
    words = ["a b", "", "$x", "--", "-v", "*"]
    done = shimbox.run(*words, argv=["mytool"], env={"EXIT": "7"})
    assert done.returncode == 7
    assert done.stdout == f"tool {shimbox.root}/tools/mytool [a b  $x -- -v *] in a run\n"
    assert [record["command"] for record in shimbox.records()] == [
        [f"{shimbox.root}/tools/mytool", *words]
    ]


def test_inside_a_run_it_is_one_exec(shimbox: Box) -> None:
    """One process from the shim to the tool: both tell the same pid, and sandrun left no record."""
    tool(shimbox, "tools", '#!/bin/sh\necho "$$ $PPID"\n')
    done = shimbox.run("--", "sh", "-c", 'echo "$$"; exec mytool')
    here, below = done.stdout.split("\n")[:2]
    assert below.split()[0] == here
    assert len(shimbox.records()) == 1


def test_in_another_project_below_it_queues_there(shimbox: Box) -> None:
    other = shimbox.project / "other"
    other.mkdir()
    (other / "sandrun.toml").touch()
    (shimbox.project / "plain").mkdir()
    script = "cd plain && mytool; cd ../other && mytool"
    assert shimbox.run("--", "sh", "-c", script).returncode == 0
    assert [record["project"] for record in shimbox.records()] == [
        str(other),
        str(shimbox.project),
    ]


def test_a_link_into_another_project_is_no_way_around_its_queue(shimbox: Box) -> None:
    other = shimbox.root / "other"
    (other / "below").mkdir(parents=True)
    (other / "sandrun.toml").touch()
    (shimbox.project / "link").symlink_to(other / "below")
    assert shimbox.run("--", "sh", "-c", "cd link && mytool").returncode == 0
    assert shimbox.records()[0]["project"] == str(other)


def test_an_environment_that_outlived_its_run_is_no_way_around_the_queue(shimbox: Box) -> None:
    lines = shimbox.run("--", "env").stdout.splitlines()
    env = dict(line.split("=", 1) for line in lines if line.startswith("SANDRUN_"))
    assert {"SANDRUN_RUNS", "SANDRUN_PROJECT"} <= set(env)
    assert "in a run" in shimbox.run(argv=["mytool"], env=env).stdout
    assert len(shimbox.records()) == 2


@pytest.fixture(params=["shim", "make"])
def bystander(shimbox: Box, request: pytest.FixtureRequest) -> "list[str]":
    """A command that queues, by a shim or by the include, unless it is in a run."""
    makefile(shimbox, "goal: ; @echo goal\n")
    return ["mytool"] if request.param == "shim" else ["make", "goal"]


def marks_of(box: Box, job: str) -> "dict[str, str]":
    """The SANDRUN_* that a job of that name sees in its environment."""
    box.begun(job)
    lines = (box.root / "marks").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if line.startswith("SANDRUN_"))


def hold(box: Box) -> "list[str]":
    """A command that writes its environment to the file `marks` and is the job `holds`."""
    return ["sh", "-c", f'env >{box.root}/marks; exec "$@"', "x", *box.job("holds")]


def test_a_killed_runs_ticket_that_is_left_is_no_way_around_the_queue(
    shimbox: Box, bystander: "list[str]"
) -> None:
    """The file is there until somebody looks at the queue; nobody holds it open any more, and its
    owner's number may be another's by now: here an ancestor's."""
    held = shimbox.start("--backend", "none", "--", *hold(shimbox))
    env = marks_of(shimbox, "holds")
    (ticket,) = shimbox.directories()[0].glob("r*.*")
    held.kill()
    held.wait()
    shimbox.let("holds")  # without a backend nothing else ends it
    wait_for(lambda: not shimbox.leftovers(), 20)
    words = ticket.name.split(".")
    words[2] = str(os.getpid())
    os.mkfifo(ticket.with_name(".".join(words)))
    ticket.unlink(missing_ok=True)  # its keeper may have tidied up
    shimbox.run(*bystander[1:], argv=bystander[:1], env=env)
    assert shimbox.records()[-1]["command"][-1].endswith(bystander[-1])  # type: ignore[index]


def test_a_live_runs_environment_carried_elsewhere_is_no_way_around_the_queue(
    shimbox: Box, bystander: "list[str]"
) -> None:
    """As a terminal's server does that opens a tab for a client in a run."""
    held = shimbox.start("--", *hold(shimbox))
    env = marks_of(shimbox, "holds")
    outside = shimbox.start(*bystander[1:], argv=bystander[:1], env=env)
    wait_for(lambda: len(shimbox.view()) == 2, 20, "it waits")
    shimbox.let("holds")
    assert shimbox.finish(held).returncode == 0
    assert shimbox.finish(outside).returncode == 0
    assert len(shimbox.records()) == 2


@pytest.mark.parametrize("backend", ["auto", "rlimit", "none"])
def test_in_a_run_it_starts_at_once_however_deep(
    shimbox: Box, bystander: "list[str]", backend: str
) -> None:
    """By the cgroup, where the run has one, else by the ancestors."""
    deep = f"sh -c 'sh -c \"{' '.join(bystander)}; :\"; :'; :"
    done = shimbox.run("--backend", backend, "--", "sh", "-c", deep)
    assert done.returncode == 0
    assert len(shimbox.records()) == 1


QUESTIONS = """
mytool --version
mytool --help
make -n
make -kn all
make all --dry-run
make -v
make -h
make --version
make all --help
gmake -n
ninja -t x -n
cmake --help-command add_test
cmake --version
ctest -N
ctest --test-dir b --show-only=json-v1
go env GOPATH
go version
go list ./...
npm ls
npm version
npm run
npm --version
npm config get registry
pnpm why x
yarn --version
npx --version
node -v
node --version x.js
cargo metadata --no-deps
cargo --version
cargo help build
rustc -vV
pytest tests --collect-only
pytest -h
pytest tests --help
tox --version
tox -l
nox --list
gradle -v
gradle -?
mvn --version
bazel version
docker version
docker compose ps
just --list
task --list-all
rake -T
pip list
pip3 show x
uv version
uv pip list
dotnet --info
tsc --version
tsc --showConfig
"""
WORK = """
mytool all --version
mytool --version all
mytool -h
mytool -V
mytool version
mytool help
make -fbuild/not.mk all
make -j4 all
make --no-print-directory
make -- -n
make version
make help
make V=--version
make -p
ninja version
ninja help
cmake --build . --target help
cmake -h.
ctest -V
go build
go test -version
go list -export ./...
go help-me
npm test
npm version patch
npm version --no-git-tag-version minor
npm run x -- --version
npm run version
npm run ls:all
npm config set x y
npm x --version
pnpm version patch
pnpm help-me
yarn version
yarn version patch
yarn list
yarn help
npx tsc --version
npx -p typescript tsc -h
node x.js --version
node -e 1 -h
cargo run -- --version
cargo run --help-me
cargo test version
cargo xtask --help
pytest tests
pytest -- --help
pytest -k version
tox -- --version
tox -e py --help-me
nox -s x -- --list
gradle -V build
gradle help
gradle tasks
mvn -V package
mvn help:effective-pom
bazel run x -- --version
docker run x --version
docker compose up
just version
just help
just x --list
task version
task help
rake version
pip install x
pip config set a b
uv version --bump patch
uv run x --version
poetry version patch
dotnet run --version
tsc -p . --watch
"""


@pytest.mark.parametrize("line", QUESTIONS.strip().splitlines() + WORK.strip().splitlines())
def test_a_question_does_not_wait_and_work_does(shimbox: Box, line: str) -> None:
    """A question is what the tool's own documentation calls one."""
    name, *words = line.split()
    if name != "mytool":
        tool(shimbox, "tools", name=name)
        add(shimbox, name)
        shimbox.env["PATH"] = f"{folder(shimbox)}:{shimbox.env['PATH']}"
    done = shimbox.run(*words, argv=[name])
    assert done.stdout.startswith(f"tool {shimbox.root}/tools/{name} [{' '.join(words)}]")
    assert len(shimbox.records()) == (line in WORK.splitlines())


# What version managers put first on PATH, by how they find the real thing.
MANAGERS = {
    # pyenv, rbenv: their own folder taken off the search, not off the PATH
    "searches": """#!/bin/sh
me=$(dirname "$0"); [ $((hops += 1)) -lt 9 ] || exit 99; export hops
IFS=:; for d in $PATH; do
    if [ "$d" != "$me" ] && [ -x "$d/mytool" ]; then unset IFS; exec "$d/mytool" "$@"; fi
done
""",
    # asdf: by way of env, with their own folder taken off the PATH
    "strips": """#!/bin/bash
me=$(dirname "$0"); [ $((hops += 1)) -lt 9 ] || exit 99; export hops
exec env PATH="$(echo ":$PATH:" | sed "s|:$me:|:|; s|^:||; s|:$||")" mytool "$@"
""",
    # volta, nvm's and others: a child, not an exec
    "forks": """#!/bin/sh
me=$(dirname "$0"); [ $((hops += 1)) -lt 9 ] || exit 99; export hops
IFS=:; for d in $PATH; do
    if [ "$d" != "$me" ] && [ -x "$d/mytool" ]; then unset IFS; "$d/mytool" "$@"; exit; fi
done
""",
}


LOOPING = {
    # a child of a child, as a program that captures the output does
    "substitutes": """#!/bin/sh
me=$(dirname "$0"); [ $((hops += 1)) -lt 9 ] || exit 99; export hops
IFS=:; for d in $PATH; do
    if [ "$d" != "$me" ] && [ -x "$d/mytool" ]; then
        unset IFS; said=$("$d/mytool" "$@"); code=$?; echo "$said"; exit $code
    fi
done
exit 127
""",
    # a wrapper that adds to the words in each round
    "adds words": """#!/bin/sh
me=$(dirname "$0"); [ $((hops += 1)) -lt 9 ] || exit 99; export hops
IFS=:; for d in $PATH; do
    if [ "$d" != "$me" ] && [ -x "$d/mytool" ]; then unset IFS; exec "$d/mytool" -j4 "$@"; fi
done
exit 127
""",
}


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("order", [[name] for name in MANAGERS] + [list(MANAGERS)])
def test_it_never_recurses_whatever_stands_behind_it(
    shimbox: Box, order: "list[str]", inside: bool
) -> None:
    for name in order:
        tool(shimbox, name, MANAGERS[name])
    shimbox.env["PATH"] = f"{folder(shimbox)}:{shimbox.env['PATH']}"
    words = ["sandrun", "--", "mytool"] if inside else ["mytool"]
    done = shimbox.run("x", argv=words, seconds=20)
    assert (done.returncode, said(done.stderr)) == (0, [])
    assert done.stdout == f"tool {shimbox.root}/tools/mytool [x] in a run\n"
    assert len(shimbox.records()) == 1


@pytest.mark.parametrize("name", MANAGERS)
def test_one_in_front_of_it_does_not_recurse_either(shimbox: Box, name: str) -> None:
    tool(shimbox, name, MANAGERS[name])
    done = shimbox.run("x", argv=["mytool"], seconds=20)
    assert (done.returncode, said(done.stderr)) == (0, [])
    assert done.stdout.endswith("/tools/mytool [x] in a run\n")


def test_two_folders_of_shims_on_one_path(shimbox: Box) -> None:
    other = shimbox.root / "other-shims"
    shutil.copytree(folder(shimbox), other)
    shimbox.env["PATH"] = f"{other}:{shimbox.env['PATH']}"
    done = shimbox.run(argv=["mytool"])
    assert done.stdout.startswith(f"tool {shimbox.root}/tools/mytool")
    assert len(shimbox.records()) == 1


# How tools start themselves by name: the words after it are counted down.
SELF = {
    "as a child": "mytool $(($1 - 1)); exit",
    "by a shell that becomes it": 'sh -c "mytool $(($1 - 1))"; exit',
    "by a shell below": 'said=$(mytool $(($1 - 1))); echo "$said"; exit',
    "in another directory": "mkdir -p below; cd below; mytool $(($1 - 1)); exit",
    "in the background": "mytool $(($1 - 1)) & wait; exit",
    "by env": "env -u NONE mytool $(($1 - 1)); exit",
    "by becoming it": "exec mytool $(($1 - 1))",
    "with the same words": '[ ! "$AGAIN" ] || exit 0; AGAIN=1 mytool "$1"; exit',
    "by becoming it with the same words": '[ ! "$AGAIN" ] || exit 0; AGAIN=1 exec mytool "$1"',
}
RECURSIVE = '#!/bin/sh\necho "$0 $1"\n[ "$1" != 0 ] || exit 0\n'


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("how", SELF)
def test_a_tool_that_starts_itself_by_name_finds_itself(
    shimbox: Box, how: str, inside: bool
) -> None:
    """Where PATH has one place of it, as with a venv, nvm or rustup: a shim changes nothing."""
    path = tool(shimbox, "tools", RECURSIVE + SELF[how] + "\n")
    shimbox.env["PATH"] = f"{folder(shimbox)}:{shimbox.env['PATH']}"
    plain = shimbox.run("5", argv=[str(path)], env={"PATH": f"{path.parent}:/usr/bin:/bin"})
    words = ["sandrun", "--", "mytool"] if inside else ["mytool"]
    done = shimbox.run("5", argv=words, seconds=60)
    assert (done.returncode, said(done.stderr), done.stdout) == (0, [], plain.stdout)
    assert len(shimbox.records()) == 1


@pytest.mark.parametrize("how", [how for how in SELF if "becoming" not in how])
def test_a_child_finds_the_same_tool_where_path_has_several(shimbox: Box, how: str) -> None:
    front = tool(shimbox, "front", RECURSIVE + SELF[how] + "\n")
    shimbox.env["PATH"] = f"{folder(shimbox)}:{shimbox.env['PATH']}"
    done = shimbox.run("5", argv=["mytool"], seconds=60)
    assert (done.returncode, said(done.stderr)) == (0, [])
    assert {line.split()[0] for line in done.stdout.splitlines()} == {str(front)}


def test_recursion_goes_as_deep_as_without_a_shim(shimbox: Box) -> None:
    tool(shimbox, "tools", RECURSIVE + SELF["as a child"] + "\n")
    shimbox.env["PATH"] = f"{folder(shimbox)}:{shimbox.env['PATH']}"
    done = shimbox.run("60", argv=["mytool"], seconds=60)
    assert (done.returncode, len(done.stdout.splitlines())) == (0, 61)


@pytest.mark.parametrize("name", ["searches", "forks", "substitutes", "adds words"])
def test_a_manager_without_a_tool_behind_it_ends_with_127(shimbox: Box, name: str) -> None:
    """Ours passes it on, and it comes back; also when each round changes the words."""
    (shimbox.root / "tools/mytool").unlink()
    text = LOOPING[name] if name in LOOPING else MANAGERS[name]
    path = tool(shimbox, name, text.replace("[ $((hops += 1)) -lt 9 ] || exit 99", ": ", 1))
    shimbox.env["PATH"] = f"{folder(shimbox)}:{shimbox.env['PATH']}"
    done = shimbox.run("--", "mytool", "x", seconds=120)
    assert done.returncode == 127
    told = f"sandrun: mytool: command not found, {path} only starts itself"
    assert told in done.stderr.splitlines()


@pytest.mark.parametrize("name", ["substitutes", "adds words"])
def test_a_manager_that_comes_back_in_an_odd_way_leads_to_the_tool(shimbox: Box, name: str) -> None:
    tool(shimbox, name, LOOPING[name])
    shimbox.env["PATH"] = f"{folder(shimbox)}:{shimbox.env['PATH']}"
    done = shimbox.run("x", argv=["mytool"], seconds=60)
    assert done.returncode == 0
    assert done.stdout.startswith(f"tool {shimbox.root}/tools/mytool [")


@pytest.mark.parametrize(("ago", "code"), [(5, 127), (5000, 0)])
def test_what_becomes_itself_again_now_and_then_goes_in_no_circle(
    shimbox: Box, ago: int, code: int
) -> None:
    """As a server does that is told to start anew: the twenty-first time counts only if the first
    is not long ago."""
    script = (
        f'export SANDRUN_SHIM="$$:$PPID:30:20:$(($(date +%s) - {ago})):mytool'
        f'::{shimbox.root}/tools/mytool:\n\n$PWD x"; exec mytool x'
    )
    assert shimbox.run(script, argv=["sh", "-c"]).returncode == code


def test_a_note_of_another_process_or_of_nonsense_is_no_harm(shimbox: Box) -> None:
    expected = f"tool {shimbox.root}/tools/mytool [x] in a run\n"
    passed = f":mytool::{shimbox.root}/tools/mytool:\n\n"
    for note in (f"{os.getpid()}:1:0:0:{passed}", f"999999999:1:0:0:{passed}", "a:b", ":::::::",
                 f"{os.getpid()}:1:x:0:{passed}", "\n\n\n"):  # fmt: skip
        assert shimbox.run("x", argv=["mytool"], env={"SANDRUN_SHIM": note}).stdout == expected


@pytest.mark.parametrize("path", [":{shims}", "{shims}:", "{shims}::/usr/bin", "{shims}:."])
def test_an_empty_entry_of_path_is_the_current_directory(shimbox: Box, path: str) -> None:
    """As for execvp(3) and every shell: in front, at the end and in the middle."""
    (shimbox.project / "heretool").write_text(TOOL)
    (shimbox.project / "heretool").chmod(0o755)
    add(shimbox, "heretool")
    shimbox.env["PATH"] = path.format(shims=folder(shimbox))
    done = shimbox.run("x", argv=[str(folder(shimbox) / "heretool")])
    assert (done.returncode, said(done.stderr)) == (0, [])
    assert done.stdout == "tool ./heretool [x] in a run\n"


def test_a_missing_tool_is_told_as_by_a_shell(shimbox: Box) -> None:
    add(shimbox, "nonesuch")
    done = shimbox.run(argv=["sh", "-c", "nonesuch"])
    assert (done.returncode, done.stderr) == (127, "sandrun: nonesuch: command not found\n")


@pytest.mark.parametrize("how", ["gone", "no python", "broken"])
def test_without_sandrun_the_shim_warns_and_runs_the_tool(shimbox: Box, how: str) -> None:
    path = folder(shimbox) / "mytool"
    text = path.read_text()
    (line,) = [line for line in text.splitlines() if line.startswith("if [ -x ")]
    python, launch = line.split()[3], line.split()[8]
    if how == "broken":
        copy = shimbox.root / "copy/sandrun/cli"
        copy.mkdir(parents=True)
        shutil.copy(launch, copy / "launch.py")
        (copy.parent / "__init__.py").write_text("raise ImportError('half of it is missing')\n")
        path.write_text(text.replace(launch, str(copy / "launch.py")))
    else:
        path.write_text(text.replace(python if how == "no python" else launch, "/nonesuch"))
    done = shimbox.run("x", argv=["mytool"], env={"EXIT": "3"})
    assert (done.returncode, done.stdout) == (3, f"tool {shimbox.root}/tools/mytool [x] \n")
    assert "mytool runs without queue and memory limit: sandrun is" in done.stderr
    assert "sandrun: hint: install it" in done.stderr


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_each_shell_activates_it_once(shimbox: Box, shell: str) -> None:
    need(shell)
    shimbox.env["PATH"] = shimbox.env["PATH"].removeprefix(f"{folder(shimbox)}:")
    words = {"bash": ["bash", "--norc", "-c"], "zsh": ["zsh", "-f", "-c"],
             "fish": ["fish", "--no-config", "-c"]}[shell]  # fmt: skip
    once = {"fish": "sandrun shims activate fish | source"}.get(
        shell, f'eval "$(sandrun shims activate {shell})"'
    )
    done = shimbox.run(f"{once}; {once}; env; mytool x", argv=words)
    assert done.returncode == 0, done.stderr
    (path,) = [line for line in done.stdout.splitlines() if line.startswith("PATH=")]
    assert path[5:].split(":").count(str(folder(shimbox))) == 1
    assert path[5:].startswith(f"{folder(shimbox)}:")
    assert done.stdout.splitlines()[-1].endswith("[x] in a run")


def test_powershells_code_puts_the_shims_first(shimbox: Box) -> None:
    """Without a PowerShell: Python does here what its manual says of -split, of -cne and -ne (which
    filter an array) and of -join (about_Split, about_Comparison_Operators, about_Join)."""
    shimbox.env["XDG_DATA_HOME"] = str(shimbox.home / "O'Neil\u2019s")
    done = shimbox.run("shims", "activate", "powershell")
    form = (
        r"\$env:PATH = \(@\('(.*)'\) \+ @\(@\(\$env:PATH -split '(.)'\) -c?ne '(.*)'\)\)"
        r" -join '(.)'\n"
    )
    code = re.fullmatch(form, done.stdout)
    assert code, done.stdout
    mine = f"{shimbox.home}/O'Neil\u2019s/sandrun/shims"
    quoted = mine.replace("'", "''").replace("\u2019", "\u2019\u2019")
    assert code.groups() == (quoted, ":", quoted, ":")
    for path in ("/a:/b", f"{mine}:/a:/b", f"/a:{mine}:/b", f"/a:{mine}:/b:{mine}"):
        kept = [entry for entry in path.split(code[2]) if entry != mine]
        assert code[4].join([mine, *kept]) == f"{mine}:/a:/b"


def test_it_is_posix_sh_for_every_tool_and_shell(shimbox: Box) -> None:
    need("dash", "bash", "zsh")
    for name in ("make", "ninja", "cmake", "pytest", "npm", "cargo", "go", "git", "mytool"):
        add(shimbox, name)
        for shell in ("dash", "bash", "zsh"):
            subprocess.run([shell, "-n", folder(shimbox) / name], check=True)
    listed = shimbox.run("shims", "list").stdout.split()
    assert listed == ["cargo", "cmake", "git", "go", "make", "mytool", "ninja", "npm", "pytest"]
    assert shimbox.run("shims", "remove", "git", "go").returncode == 0
    assert shimbox.run("shims", "list").stdout.split() == [
        name for name in listed if name not in ("git", "go")
    ]


def test_a_build_that_was_configured_with_a_shim_outlives_it(shimbox: Box) -> None:
    """By the path alone: as in a CMakeCache.txt, a config.status, an IDE's settings."""
    shim = str(folder(shimbox) / "mytool")
    said = shimbox.run("shims", "remove", "mytool").stdout
    assert said == f"removed {shim}, a forwarder in its place (or: --no-forward)\n"
    assert shimbox.run("shims", "list").stdout == ""
    done = shimbox.run("a b", argv=[shim], env={"EXIT": "3"})
    assert (done.returncode, done.stdout) == (3, f"tool {shimbox.root}/tools/mytool [a b] \n")
    tool(shimbox, "manager", MANAGERS["searches"])
    shimbox.env["PATH"] = f"{folder(shimbox)}:{shimbox.env['PATH']}"
    assert shimbox.run("x", argv=["mytool"]).stdout == f"tool {shimbox.root}/tools/mytool [x] \n"
    assert shimbox.records() == []
    assert shimbox.run("shims", "remove", "mytool").returncode == 125
    add(shimbox, "mytool")
    assert "in a run" in shimbox.run(argv=["mytool"]).stdout
    assert shimbox.run("shims", "remove", "mytool").returncode == 0
    done = shimbox.run("shims", "remove", "--no-forward", "mytool")
    assert (done.returncode, done.stdout) == (0, f"removed {shim}\n")
    assert not os.path.exists(shim)


def test_cmake_builds_on_when_the_shim_for_make_is_removed(shimbox: Box) -> None:
    need("cmake", "make")
    add(shimbox, "make", "gmake", "git")  # cmake looks for gmake first
    (shimbox.project / "CMakeLists.txt").write_text(
        "cmake_minimum_required(VERSION 3.10)\nproject(x NONE)\n"
        "add_custom_target(x ALL COMMAND echo built)\n"
    )
    done = shimbox.run("-B", "b", "-G", "Unix Makefiles", argv=["cmake"], seconds=60)
    assert done.returncode == 0, done.stderr
    cache = (shimbox.project / "b/CMakeCache.txt").read_text()
    assert re.search(f"={re.escape(str(folder(shimbox)))}/g?make\n", cache)
    for words in ([], ["make", "gmake"], ["git"]):
        if words:
            assert shimbox.run("shims", "remove", *words).returncode == 0
        done = shimbox.run("--build", "b", argv=["cmake"], seconds=60)
        assert (done.returncode, "built" in done.stdout) == (0, True), done.stderr
    assert shimbox.run("--version", argv=[str(folder(shimbox) / "git")]).returncode == 0


def test_what_is_not_ours_is_not_touched(shimbox: Box) -> None:
    mine = folder(shimbox) / "mine"
    mine.write_text("#!/bin/sh\n")
    for words in (["add", "mine"], ["remove", "mine"], ["add", "../up"], ["add", "sandrun"]):
        assert shimbox.run("shims", *words).returncode == 125
    assert mine.read_text() == "#!/bin/sh\n"
    assert shimbox.run("shims", "list").stdout == "mytool\n"


def test_a_shim_that_cannot_be_written_leaves_nothing_on_path(shimbox: Box) -> None:
    before = sorted(path.name for path in folder(shimbox).iterdir())
    words = ["-c", 'ulimit -f 1; exec "$@"', "sh", *launcher(), "shims", "add", "other"]
    done = shimbox.run(*words, argv=["sh"])
    assert (done.returncode, "File too large" in done.stderr) == (125, True), done.stderr
    assert sorted(path.name for path in folder(shimbox).iterdir()) == before
    with pytest.raises(TypeError):  # anything but an OSError, such as Ctrl-C
        shims._replace(str(folder(shimbox) / "other"), "no bytes")  # type: ignore[arg-type]
    assert sorted(path.name for path in folder(shimbox).iterdir()) == before


def test_what_a_killed_add_left_is_removed_by_the_next(shimbox: Box) -> None:
    code = """
import os, sys
from sandrun.integrations import shims
os.replace = lambda *paths: os.kill(os.getpid(), 9)
shims.add(sys.argv[1])
"""
    before = {path.name for path in folder(shimbox).iterdir()}
    killed = shimbox.run("-c", code, "other", argv=[sys.executable], env=installed_env(shimbox.env))
    assert killed.returncode == -9
    (left,) = [path for path in folder(shimbox).iterdir() if path.name not in before]
    add(shimbox, "third")
    assert left.exists()  # it may be that of an add at work
    os.utime(left, (0, 0))
    add(shimbox, "fourth")
    after = {path.name for path in folder(shimbox).iterdir()}
    assert after == before | {"third", "fourth"}


def test_the_git_shim_waits_for_its_turn(shimbox: Box) -> None:
    """What it does beyond that is tested with the git guard."""
    add(shimbox, "git")
    done = shimbox.run("init", "-q", argv=["git"])
    assert (done.returncode, done.stderr) == (0, "")
    assert (shimbox.project / ".git/HEAD").exists()


@pytest.mark.parametrize("name", [*MANAGERS, *LOOPING])
@pytest.mark.parametrize("words", [["status", "--short"], ["add", "x"]], ids=["reads", "writes"])
@pytest.mark.parametrize("entry", ["shim", "sandrun git"])
def test_a_version_managers_git_shim_leads_to_the_real_git(
    shimbox: Box, name: str, words: "list[str]", entry: str
) -> None:
    """As pyenv's is where conda brings a git; the one that adds words gives git an option of its
    own."""
    add(shimbox, "git")
    shimbox.run("init", "-q", argv=["git"])
    (shimbox.project / "x").touch()
    text = {**MANAGERS, **LOOPING}[name].replace("mytool", "git").replace("-j4", "--no-pager")
    tool(shimbox, "manager", text, "git")
    shimbox.env["PATH"] = f"{folder(shimbox)}:{shimbox.env['PATH']}"
    argv = ["git"] if entry == "shim" else ["sandrun", "git"]
    done = shimbox.run(*words, argv=argv, seconds=60)
    assert (done.returncode, done.stderr) == (0, "")
    listed = shimbox.run("ls-files", argv=["git"]).stdout.split()
    assert listed == (["x"] if words[0] == "add" else [])


def test_a_git_alias_of_a_shell_starts_git_again(shimbox: Box) -> None:
    add(shimbox, "git")
    script = "git init -q && git config alias.two '!git init -q b; git -C b status -s' && git two"
    assert shimbox.run(script, argv=["sh", "-c"], seconds=60).returncode == 0


def test_shims_at_once_run_one_at_a_time(shimbox: Box) -> None:
    names = ["one", "two", "three"]
    text = "#!/bin/sh\ncase $1 in\n"
    for name in names:
        *_, log, gate = shimbox.job(name)
        text += f"{name}) echo begin {name} $$ >>{log}; read _ <{gate}; "
        text += f"echo end {name} $$ >>{log} ;;\n"
    tool(shimbox, "tools", text + "esac\n")
    shimbox.env["PATH"] = f"{folder(shimbox)}:{shimbox.env['PATH']}"
    runs = [shimbox.start(name, argv=["mytool"]) for name in names]
    shimbox.let_all(names)
    assert [shimbox.finish(run).returncode for run in runs] == [0, 0, 0]
    assert sorted(witnessed(shimbox)) == sorted(names)


def test_the_marks_agree_with_the_git_shims() -> None:
    from sandrun.git import shim

    assert shims.MARK == shim.DIRECTORY_MARK
    assert os.path.basename(shims.directory()) == "shims"


def test_make_shows_the_name_that_it_has_without_a_shim(shimbox: Box) -> None:
    """$(MAKE) is argv[0], so a recipe's echo is the same to the letter at each level, and nothing
    else is another; by an older shim make sees its path."""
    (shimbox.project / "Makefile").write_text(
        "all: ; $(MAKE) part\n"
        "part: ; $(MAKE) -n deep; $(MAKE) deep; echo SHLVL=$${SHLVL-0}\n"
        "deep: ; @echo $(MAKE) $(MAKELEVEL)\n"
    )
    ways = [["make"], ["env", "SHLVL=7", "BASH_ENV=x.sh", "make"]]
    (shimbox.project / "x.sh").write_text("echo this is no shell of the user\n")
    plain = [shimbox.run("all", argv=way).stdout for way in ways]
    assert all("make part\n" in said and "make 2\n" in said for said in plain)
    add(shimbox, "make")
    done = [shimbox.run("all", argv=way) for way in ways]
    assert [run.returncode for run in done] == [0, 0]
    assert [run.stdout for run in done] == plain
    inside = shimbox.run("--", "make", "all")
    assert (inside.returncode, inside.stdout) == (0, plain[0])
    shim = folder(shimbox) / "make"
    old = shim.read_text()
    assert "--as make " in old
    shim.write_text(old.replace("--as make ", "").replace("/bin/bash", "/no/bash"))
    done = [shimbox.run("all", argv=["make"])]
    assert (done[0].returncode, "/make part\n" in done[0].stdout) == (0, True)
    assert len(shimbox.records()) == 4


@pytest.mark.skipif(not os.path.exists("/bin/bash"), reason="needs bash")
@pytest.mark.parametrize("name", ["SHELLOPTS", "BASHOPTS"])
def test_make_keeps_the_options_of_bash_that_the_user_exports(shimbox: Box, name: str) -> None:
    """As bash -p would not: a recipe's `pipefail` would be gone, and its failure unseen."""
    value = {"SHELLOPTS": "errexit:pipefail", "BASHOPTS": "nullglob"}[name]
    text = f"all: ; @$(MAKE) -s part\npart: ; @tr '\\0' '\\n' </proc/$$PPID/environ | grep ^{name}="
    (shimbox.project / "Makefile").write_text(text + "\n")
    way = ["env", f"{name}={value}", "make"]
    plain = shimbox.run("-s", "all", argv=way)
    assert f"{name}={value}\n" in plain.stdout
    add(shimbox, "make")
    done = shimbox.run("-s", "all", argv=way)
    assert (done.returncode, done.stdout) == (0, plain.stdout)
