"""Our shims and those of real version managers on one PATH: rbenv, nodenv, pyenv and mise.

rbenv comes from Debian, nodenv and mise from npm (`tests/setup tools`), pyenv from where it may be
installed. Each manages a version 1.0.0 of something that has the program `mytool` in it.
"""

import itertools
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.entering import need, said
from tests.harness import Box
from tests.integration.test_shims import TOOL, folder, shimbox, tool

__all__ = ["shimbox"]

MANAGERS = ["rbenv", "nodenv", "pyenv", "mise"]
SETS = [
    *([name] for name in MANAGERS),
    *(list(pair) for pair in itertools.permutations(["rbenv", "nodenv", "mise"], 2)),
    ["mise", "rbenv", "nodenv"],
]


def program(box: Box, manager: str, where: Path) -> Path:
    """The program of a version, in the folder that the manager expects."""
    path = where / "bin/mytool"
    path.parent.mkdir(parents=True)
    path.write_text(TOOL.replace("tool $0", f"{manager} $0"))
    path.chmod(0o755)
    return path


def do(box: Box, *words: str) -> None:
    done = box.run(argv=list(words), seconds=60)
    assert done.returncode == 0, (words, done.stdout, done.stderr)


def an_env(box: Box, name: str) -> Path:
    """One of rbenv's family."""
    root = box.root / name
    box.env |= {f"{name.upper()}_ROOT": str(root), f"{name.upper()}_VERSION": "1.0.0"}
    program(box, name, root / "versions/1.0.0")
    do(box, name, "rehash")
    return root / "shims"


def with_mise(box: Box) -> Path:
    box.env |= {"MISE_OFFLINE": "1", "MISE_TRUSTED_CONFIG_PATHS": str(box.root)}
    tool = program(box, "mise", box.root / "linked").parents[1]
    do(box, "mise", "link", "node@1.0.0", str(tool))
    (box.project / "mise.toml").write_text('[tools]\nnode = "1.0.0"\n')
    do(box, "mise", "reshim")
    return box.home / "data/mise/shims"


def shims_of(box: Box, manager: str) -> Path:
    """Set a manager up; the folder of its shims. It is found on the box's PATH."""
    need(manager)
    box.env["PATH"] += f":{Path(str(shutil.which(manager))).parent}"
    make: Callable[[], Path] = (
        (lambda: with_mise(box)) if manager == "mise" else (lambda: an_env(box, manager))
    )
    shims = make()
    assert (shims / "mytool").exists()
    return shims


@pytest.mark.parametrize("managers", SETS, ids="-".join)
@pytest.mark.parametrize("first", [True, False], ids=["ours-first", "ours-last"])
def test_no_order_recurses_and_the_real_tool_is_found(
    shimbox: Box, managers: "list[str]", first: bool
) -> None:
    """Ours first: a run. Another's first: that one finds its own tool and never comes to us."""
    folders = [str(shims_of(shimbox, name)) for name in managers]
    ours = str(folder(shimbox))
    rest = shimbox.env["PATH"].removeprefix(f"{ours}:")
    order = [ours, *folders] if first else [*folders, ours]
    shimbox.env["PATH"] = ":".join([*order, rest])
    done = shimbox.run("a b", argv=["mytool"], env={"EXIT": "3"}, seconds=60)
    assert done.returncode == 3, done.stderr
    assert done.stdout.split()[0] == managers[0]
    assert done.stdout.endswith("in a run\n" if first else "[a b] \n")
    assert len(shimbox.records()) == first
    inside = shimbox.run("--", "mytool", "x", seconds=60)
    assert inside.stdout.endswith("[x] in a run\n")
    assert len(shimbox.records()) == first + 1
    told = shimbox.run("shims", "list").stderr
    assert told.count("comes before the shim for mytool") == (not first)


@pytest.mark.parametrize("manager", MANAGERS)
def test_a_tool_that_its_version_has_not_is_found_behind_it(shimbox: Box, manager: str) -> None:
    """Or told to be missing by one of the two; but nobody goes in circles."""
    shims = shims_of(shimbox, manager)
    shimbox.env |= {f"{manager.upper()}_VERSION": "system"}
    (shimbox.project / "mise.toml").unlink(missing_ok=True)
    ours = str(folder(shimbox))
    rest = shimbox.env["PATH"].removeprefix(f"{ours}:")
    for order in ([ours, str(shims)], [str(shims), ours]):
        shimbox.env["PATH"] = ":".join([*order, rest])
        done = shimbox.run("x", argv=["mytool"], seconds=60)
        assert (done.returncode, said(done.stderr)) == (0, [])
        assert done.stdout == f"tool {shimbox.root}/tools/mytool [x] in a run\n"
    (shimbox.root / "tools/mytool").unlink()
    for order in ([ours, str(shims)], [str(shims), ours]):
        shimbox.env["PATH"] = ":".join([*order, rest])
        assert shimbox.run("x", argv=["mytool"], seconds=60).returncode == 127


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_activated_last_the_shims_are_first_also_in_a_shell_in_a_shell(
    shimbox: Box, shell: str
) -> None:
    """As in each new terminal of an IDE or tmux, whose rc file puts the manager first again."""
    need("rbenv", shell)
    shims_of(shimbox, "rbenv")
    (root,) = {shimbox.env["RBENV_ROOT"]}
    words = {"bash": ["bash", "--norc"], "zsh": ["zsh", "-f"], "fish": ["fish", "--no-config"]}
    rc = shimbox.root / "rc"
    if shell == "fish":
        rc.write_text(
            f"set -gx PATH {root}/shims $PATH\nsandrun shims activate fish | source\n"
            f'test "$argv[1]"; and echo $PATH; or fish --no-config {rc} again\nmytool\n'
        )
    else:
        rc.write_text(
            f'export PATH="{root}/shims:$PATH"\neval "$(sandrun shims activate {shell})"\n'
            f'if [ "$1" ]; then echo "$PATH"\n'
            f"else {' '.join(words[shell])} {rc} again; fi\nmytool\n"
        )
    done = shimbox.run(rc, argv=words[shell], seconds=60)
    path, *runs = done.stdout.splitlines()
    entries = path.replace(":", " ").split()
    assert entries[:2] == [str(folder(shimbox)), f"{root}/shims"], done.stderr
    assert entries.count(str(folder(shimbox))) == 1
    assert len(runs) == 2
    assert all(line.startswith("rbenv ") and line.endswith("in a run") for line in runs)


def mise_with_readmes_line(box: Box) -> None:
    from tests.integration.test_entry_readme import blocks

    shims_of(box, "mise")
    shutil.rmtree(folder(box))
    box.env["PATH"] = box.env["PATH"].removeprefix(f"{folder(box)}:")
    box.env |= {"XDG_DATA_HOME": "", "MISE_DATA_DIR": str(box.home / "data/mise")}
    assert box.run("shims", "add", "mytool").returncode == 0
    config = box.project / "mise.toml"
    config.write_text(config.read_text() + blocks("mise")[0])


def test_mise_that_is_told_of_us_puts_us_first_at_every_prompt(shimbox: Box) -> None:
    """An activation of ours after mise's would last until the next `cd` into the project."""
    need("bash")
    mise_with_readmes_line(shimbox)
    script = (
        'eval "$(mise activate bash)"; _mise_hook; mytool; '
        "cd ..; _mise_hook; cd project; _mise_hook; mytool; mise exec -- mytool"
    )
    done = shimbox.run(script, argv=["bash", "--norc", "-c"], seconds=60)
    lines = done.stdout.splitlines()
    assert len(lines) == 3, done.stderr
    assert all(line.startswith("mise ") and line.endswith("in a run") for line in lines)


def test_readmes_line_for_direnv_puts_the_shims_first(shimbox: Box) -> None:
    from tests.integration.test_entry_readme import blocks

    need("direnv", "bash")
    shimbox.env["PATH"] = shimbox.env["PATH"].removeprefix(f"{folder(shimbox)}:")
    (line,) = {
        line.partition("#")[0]
        for line in "".join(blocks("bash")).splitlines()
        if line.endswith(".envrc, for direnv")
    }
    (shimbox.project / ".envrc").write_text(f"PATH_add {shimbox.root}/front\n{line}\n")
    tool(shimbox, "front")
    do(shimbox, "direnv", "allow", ".")
    done = shimbox.run("exec", ".", "mytool", argv=["direnv"], seconds=60)
    assert done.stdout == f"tool {shimbox.root}/front/mytool [] in a run\n", done.stderr
