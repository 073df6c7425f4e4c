"""The page of `sandrun report` in a browser: what it does, and how it can be used.

axe-core is what `tests/setup tools` fetches; Chromium is Debian's.
"""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.harness import Box
from tests.harness.chromium import Browser
from tests.harness.past_runs import HOSTILE, write

PHONE, DESKTOP, WIDE = 360, 1280, 2560
OPEN_ALL = "document.querySelectorAll('details').forEach(details => details.open = true)"
AXE = "axe.run().then(found => found.violations.map(v => [v.id, v.nodes.map(n => n.html)]))"


@pytest.fixture
def browser(tmp_path: Path) -> "Iterator[Browser]":
    with Browser(tmp_path) as started:
        yield started


def page(box: Box, runs: int, hostile: bool = False) -> Path:
    write(box.home / "state/sandrun", runs, hostile)
    file = box.root / "report.html"
    done = box.run("report", "--html", file, seconds=60)
    assert done.returncode == 0, done.stderr
    return file


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("runs", [0, 3, 150])
def test_nothing_is_loaded_run_or_reported(
    box: Box, browser: Browser, runs: int, scheme: str
) -> None:
    file = page(box, runs, hostile=True)
    browser.open(file, DESKTOP, scheme=scheme)
    browser.evaluate(OPEN_ALL)
    browser.screenshot(box.root / "whole.png")
    assert browser.requests() == [file.as_uri()]
    assert browser.console == []
    assert browser.evaluate("document.querySelectorAll('script, img, iframe, link').length") == 0


def test_the_policy_forbids_what_a_page_could_load_or_run(box: Box, browser: Browser) -> None:
    file = page(box, 3)
    added = (
        "<script>document.title = 'run'</script><img src=/x.png><p style='color: red'>"
        "<iframe src=/y.html></iframe><link rel=stylesheet href=/z.css></main>"
    )
    file.write_text(file.read_text().replace("</main>", added))
    browser.open(file)
    assert browser.requests() == [file.as_uri()]
    assert len(browser.console) >= 5 and all("Content Security" in m for m in browser.console)
    assert browser.evaluate("document.title") == "sandrun: 3 runs"


def test_what_is_drawn_is_there_and_every_command_is_text(box: Box, browser: Browser) -> None:
    browser.open(page(box, 60, hostile=True))

    def count(selector: str) -> Any:
        return browser.evaluate(f"document.querySelectorAll({selector!r}).length")

    assert count("h2") == 7 and count("#all-runs tbody tr") == 60
    assert count("#timeline a rect") == 60 and count("#timeline rect.wait") > 5
    assert count("#memory figure svg path.line") == 60
    text = browser.evaluate("document.querySelector('#memory').textContent")
    assert count("#memory figure svg path.bound") + text.count("far above") == 60
    assert count(".trend svg path.dot") >= 2 and count("dl dd") == 5
    cells = browser.evaluate(
        "[...document.querySelectorAll('#all-runs tbody tr')].map(row => row.cells[1].textContent)"
    )
    for number, word in enumerate(HOSTILE):
        shown = [cell for cell in cells if _visible(word)[:20] in cell]
        assert shown, (number, word)


def _visible(word: str) -> str:
    """The printable start of a word, which no escape changes."""
    end = next((n for n, c in enumerate(word) if not c.isprintable() or c in "'\""), len(word))
    return word[:end]


@pytest.mark.parametrize("width", [320, PHONE, DESKTOP, WIDE])
def test_the_page_itself_never_scrolls_sideways(box: Box, browser: Browser, width: int) -> None:
    browser.open(page(box, 60, hostile=True), width)
    browser.evaluate(OPEN_ALL)
    assert browser.evaluate("document.documentElement.scrollWidth") <= width
    sizes = "[...document.querySelectorAll('#memory figure')].map(f => f.scrollWidth)"
    assert max(browser.evaluate(sizes)) <= 300


def test_light_and_dark_have_colours_of_their_own(box: Box, browser: Browser) -> None:
    file = page(box, 10)
    colours = "['background-color', 'color'].map(n => getComputedStyle(document.body)[n])"
    seen = []
    for scheme in ("light", "dark"):
        browser.open(file, scheme=scheme)
        seen.append(browser.evaluate(colours))
    (light_back, light_text), (dark_back, dark_text) = seen
    assert light_back == "rgb(255, 255, 255)" != dark_back and light_text != dark_text


@pytest.mark.parametrize("width", [PHONE, DESKTOP])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing(box: Box, browser: Browser, scheme: str, width: int) -> None:
    program = shutil.which("axe-core.js")
    if program is None:
        pytest.skip("needs axe-core.js")
    browser.open(page(box, 30, hostile=True), width, scheme=scheme)
    browser.evaluate(OPEN_ALL)
    browser.evaluate(Path(program).read_text() + "; 0")
    assert browser.evaluate(AXE) == []


def test_the_keyboard_reaches_and_opens_everything(box: Box, browser: Browser) -> None:
    browser.open(page(box, 60))
    focused = "document.activeElement.className || document.activeElement.textContent"
    browser.press("Tab", 9)
    assert browser.evaluate(focused) == "skip"
    assert browser.evaluate("document.activeElement.getBoundingClientRect().left") >= 0
    stops: list[str] = []
    for _ in range(400):
        browser.press("Tab", 9)
        if browser.evaluate("document.activeElement == document.body"):
            break
        stops.append(browser.evaluate("document.activeElement.localName"))
    assert {"a", "summary", "div"} <= set(stops)
    browser.evaluate("document.querySelector('#memory summary').focus()")
    browser.press("Enter", 13)
    assert browser.evaluate("document.querySelector('#memory details').open") is True


def test_a_bar_leads_to_its_run_and_the_run_to_its_curve(box: Box, browser: Browser) -> None:
    browser.open(page(box, 60))
    bar = "document.querySelector('#timeline a[href$=r40]')"
    browser.evaluate(f"{bar}.dispatchEvent(new MouseEvent('click'))")
    row = "document.querySelector('tr:target')"
    assert browser.evaluate(f"{row} !== null") is True
    top = browser.evaluate(f"{row}.getBoundingClientRect().top")
    head = "document.querySelector('#all-runs thead th').getBoundingClientRect()"
    assert top >= browser.evaluate(f"{head}.bottom") - 1
    browser.evaluate(f"{row}.querySelector('a[href^=\"#c\"]').click()")
    assert browser.evaluate("document.querySelector('figure:target svg') !== null") is True


def test_it_can_be_printed(box: Box, browser: Browser) -> None:
    browser.open(page(box, 10))
    assert browser.pdf().startswith(b"%PDF")
