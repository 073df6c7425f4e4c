"""The documents for people who read or change the code: nothing that they name has gone away.

Links lead somewhere, and each path, module, test and command in backticks exists. tests/README.md
is compared with README: every heading and every promise in bold has its tests.
"""

import ast
import itertools
import os
import re
import shlex
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from sandrun import cli
from tests.harness import ROOT
from tests.unit.test_rooms import LAYERS

DOCUMENTS = ("ARCHITECTURE.md", "CONTRIBUTING.md", "SECURITY.md", "tests/README.md")
MAP = ROOT / "tests/README.md"
README = ROOT / "README.md"

_FENCED = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
_SPAN = re.compile(r"`([^`]+)`")
_PATH = re.compile(r"(?:[\w.-]+/)+[\w.*-]*|[\w-]+\.(?:py|md|toml|yaml|cfg|in)")
_OUTSIDE = (".git/", "sandrun.toml", "sandrun.lock", "main/")
"""What the documents name and what is in projects and cgroups, not in this repository."""


def prose(document: Path) -> str:
    """A document without its blocks of code."""
    return _FENCED.sub("", document.read_text())


def spans(document: Path) -> "list[str]":
    return [" ".join(span.split()) for span in _SPAN.findall(prose(document))]


def headings(document: Path) -> "list[str]":
    return re.findall(r"^#+ (.+)$", prose(document), re.MULTILINE)


def plain(heading: str) -> str:
    """A heading without the targets of its links."""
    return re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading)


def anchor(heading: str) -> str:
    """A heading's name in links, as GitHub and GitLab derive it."""
    return re.sub(r"[^\w\- ]", "", plain(heading).lower()).replace(" ", "-")


def links(document: Path) -> "list[tuple[Path, str]]":
    """The file and the anchor that each link leads to."""
    found = []
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(document)):
        path, _, name = target.partition("#")
        if "://" not in path:
            found.append((document.parent / path if path else document, name))
    return found


@cache
def names_in(file: Path) -> "frozenset[str]":
    tree = ast.parse(file.read_text())
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    return frozenset(node.name for node in functions if node.name.startswith("test_"))


@cache
def all_tests() -> "frozenset[str]":
    files = [*(ROOT / "tests").rglob("test_*.py")]
    return frozenset(name for file in files for name in names_in(file)) | {f.stem for f in files}


def exists(word: str, document: Path) -> bool:
    """Whether a path, a module's also without `.py`, leads to something: from the top, from the
    document, or from the package."""
    homes = (ROOT, document.parent, ROOT / "sandrun", ROOT / "tests")
    names = (word.rstrip("/"), f"{word}.py")
    return any(any(home.glob(name)) for home in homes for name in names)


def is_in_package(dotted: str) -> bool:
    """Whether `sandrun.x.y` is a module, or a name in one."""
    path, names = ROOT, dotted.split(".")
    while names and (path / names[0]).is_dir():
        path /= names.pop(0)
    if names and (path / f"{names[0]}.py").is_file():
        file = path / f"{names.pop(0)}.py"
    else:
        file = path / "__init__.py"
    text = file.read_text()
    return all(
        re.search(rf"^\s*(?:(?:def|class) {name}\b|{name}(?:: .*)? = )", text, re.MULTILINE)
        for name in names
    )


def mistakes(words: "list[str]", document: Path) -> "list[str]":
    """What of a command, or of one name, does not exist."""
    wrong = []
    for word in words:
        if re.fullmatch(r"test_\w+", word):
            good = word in all_tests()
        elif re.fullmatch(r"sandrun(\.[a-z_]\w*)+", word) and word not in _OUTSIDE:
            good = is_in_package(word)
        else:
            good = not _PATH.fullmatch(word) or word.startswith(_OUTSIDE) or exists(word, document)
        wrong += [] if good else [word]
    if words[0] == "sandrun" and len(words) > 1:
        cli.parse(words[1:])  # raises UsageError
    if words[:2] == ["nox", "-s"]:
        task = words[2].partition("-")[0]
        wrong += [] if f"def {task}(" in (ROOT / "noxfile.py").read_text() else [words[2]]
    if words[0] == "tests/setup" and len(words) > 1:
        modes = re.findall(r"^(\w+)\) ", (ROOT / "tests/setup").read_text(), re.MULTILINE)
        wrong += [] if words[1] in modes else [" ".join(words[:2])]
        if words[1] == "bench" and not (ROOT / f"tests/bench/{words[2]}.py").exists():
            wrong.append(words[2])
    return wrong


@pytest.mark.parametrize("name", [*DOCUMENTS, "README.md"])
def test_each_link_leads_somewhere(name: str) -> None:
    found = links(ROOT / name)
    assert found
    for file, name in found:
        assert file.exists(), file
        assert not name or name in map(anchor, headings(file)), f"{file}#{name}"


@pytest.mark.parametrize("name", DOCUMENTS)
def test_what_is_named_exists(name: str) -> None:
    document = ROOT / name
    assert [wrong for span in spans(document) for wrong in mistakes(span.split(), document)] == []


def test_a_name_that_does_not_exist_is_found() -> None:
    gone = (
        "queue/gone.py",
        "tests/gone",
        "sandrun.gone",
        "sandrun.cli.gone",
        "test_gone",
    )
    for name in (*gone, "tests/setup gone", "tests/setup bench gone", "nox -s gone"):
        assert mistakes(name.split(), MAP), name
    assert is_in_package("sandrun.cli.parse")


@pytest.mark.parametrize("name", DOCUMENTS)
def test_no_address_outside_of_the_repository(name: str) -> None:
    """Nobody here knows where the repository will be, or whose mail would be read."""
    assert not re.search(r"://|\w@\w", (ROOT / name).read_text())


def test_each_test_of_the_map_is_in_its_file() -> None:
    wrong = []
    for row in re.findall(r"^\|.*\|$", MAP.read_text(), re.MULTILINE):
        file = None
        for span in _SPAN.findall(row):
            if re.fullmatch(r"\w+/test_\w+\.py", span):
                file = ROOT / "tests" / span
            elif span.startswith("test_") and (not file or span not in names_in(file)):
                wrong.append(f"{file}: {span}")
    assert wrong == []


def bold(document: Path) -> "set[str]":
    found = re.findall(r"\*\*(\S.*?)\*\*", prose(document), re.DOTALL)
    return {" ".join(text.split()) for text in found}


def test_every_promise_in_bold_has_its_tests() -> None:
    assert bold(MAP) == bold(README)


def test_every_section_of_readme_is_in_the_map() -> None:
    here = {plain(h) for text in headings(MAP) for h in re.split(r"(?<=\)), |: (?=\[)", text)}
    assert set(headings(README)[1:]) <= here


def test_every_promise_between_users_has_its_tests() -> None:
    def first_cells(document: Path, heading: str) -> "list[str]":
        section = document.read_text().partition(f"# {heading}\n")[2].partition("\n#")[0]
        return re.findall(r"^\| ([^|]+) \|", section, re.MULTILINE)[1:]

    promised = first_cells(ROOT / "SECURITY.md", "What is promised between users")
    assert len(promised) > 5
    assert first_cells(MAP, "Between users") == promised


def test_each_kind_of_tests_is_described() -> None:
    folders = re.findall(r"^\| `(\w+)` \|", MAP.read_text(), re.MULTILINE)
    there = {path.name for path in (ROOT / "tests").iterdir() if path.is_dir()}
    assert set(folders) == there - {"__pycache__"}


def test_the_figures_fit_a_terminal() -> None:
    text = (ROOT / "ARCHITECTURE.md").read_text()
    figures = re.findall(r"^```text\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    assert len(figures) == 3
    assert max(len(line) for figure in figures for line in figure.splitlines()) <= 80


def test_a_decision_takes_at_most_ten_lines() -> None:
    text = (ROOT / "ARCHITECTURE.md").read_text().partition("\n## Decisions\n")[2]
    decisions = text.partition("\n## ")[0].split("\n### ")[1:]
    assert len(decisions) > 10
    assert max(len(text.partition("\n")[2].strip().splitlines()) for text in decisions) <= 10


def test_every_room_is_described() -> None:
    text = (ROOT / "ARCHITECTURE.md").read_text()
    rooms = re.findall(r"^\| `(\w+)/` \|", text, re.MULTILINE)
    there = {file.parent.name for file in (ROOT / "sandrun").glob("*/__init__.py")}
    assert set(rooms) == there
    figure = re.search(r"^ cli ─▶.*?^```", text, re.MULTILINE | re.DOTALL)
    assert figure
    layers = [set(re.findall(r"\w+", layer)) for layer in figure.group().split("─▶")]
    assert layers == list(LAYERS)


def commands(document: Path) -> "list[list[str]]":
    """The lines of the blocks for a shell, as words; without what sets a variable."""
    blocks = re.findall(r"^```sh\n(.*?)^```", document.read_text(), re.MULTILINE | re.DOTALL)
    lines = [shlex.split(line, comments=True) for block in blocks for line in block.splitlines()]
    return [[word for word in line if not re.match(r"[A-Z_]+=", word)] for line in lines if line]


COMMANDS = commands(ROOT / "CONTRIBUTING.md")


def test_the_shown_commands_are_found() -> None:
    programs = {words[0] for words in COMMANDS}
    assert {"tests/setup", "vagrant/lab", "vagrant/wine-lab", "tests/fresh/run"} <= programs


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_a_shown_command_is_right(words: "list[str]") -> None:
    """Its program, options and paths exist; and what tests by name in seconds does so."""
    assert mistakes(words, ROOT / "CONTRIBUTING.md") == []
    program = ROOT / words[0]
    assert os.access(program, os.X_OK)
    own = itertools.takewhile(lambda word: word != "--", words[1:])
    text = program.read_text()
    assert [word for word in own if word.startswith("--") and word not in text] == []
    if "-k" in words:
        pytest_words = ["-m", "pytest", "--import-mode=importlib", "-p", "no:cacheprovider"]
        done = subprocess.run(
            [sys.executable, *pytest_words, *words[2:]],
            cwd=ROOT,
            env={key: value for key, value in os.environ.items() if key != "PYTEST_ADDOPTS"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
