"""The whole page.

Promises: one file that needs nothing else. Its Content-Security-Policy forbids every request,
every script and every style but its own, so no command line can have an effect. It has at most
`MOST` bytes however long the command lines are: detail is reduced until it has. Everything that is
drawn is also there in words or as a table.
"""

import dataclasses
import os
import time
from base64 import b64encode
from hashlib import sha256

from sandrun import __version__
from sandrun.insight import samples as samples_of
from sandrun.insight.report import curves, tables, timeline, trends
from sandrun.insight.report.collect import Collected, Run
from sandrun.insight.report.markup import moment, text
from sandrun.insight.samples import Samples
from sandrun.insight.wording import count

MOST = 1_900_000
"""Bytes of a page of a thousand runs; a page of more may have as many for each thousand."""
_WORST = 12
"""So many memory curves are visible without a click, and have figures."""
_POINTS = 120
_DETAIL = ((_POINTS, 120, 40), (60, 80, 30), (30, 60, 20), (15, 40, 10), (0, 24, 5))
"""Points of a curve, characters of a command, commands with a trend: the most detail first."""

with open(os.path.join(os.path.dirname(__file__), "style.css"), encoding="utf-8") as _file:
    _STYLE = _file.read()


def build(found: Collected, about: str) -> str:
    """The page as text. `about`: the filters in words."""
    sampled = _sampled([*found.runs, *found.worst("memory")])
    most = MOST * max(1.0, len(found.runs) / 1000)
    for detail in _DETAIL:
        page = _page(found, sampled, about, *detail)
        if len(page.encode()) <= most:
            break
    return page


def _sampled(runs: "list[Run]") -> "dict[str, tuple[Run, Samples]]":
    """The runs that have samples, with no more points than are drawn: a thousand runs may have
    600,000."""
    found = {}
    for run in runs:
        samples = samples_of.read(run.id) if run.key not in found else None
        if samples and samples.points:
            points = curves.thin(samples.points, _POINTS)
            found[run.key] = run, dataclasses.replace(samples, points=points)
    return found


Sampled = dict[str, tuple[Run, Samples]]


def _page(
    found: Collected, sampled: Sampled, about: str, points: int, cut: int, commands: int
) -> str:
    shown = {run.key for run in found.runs}
    parts = {
        "Summary": tables.summary(found),
        "Timeline": timeline.section(found.runs, cut),
        "Memory": _memory(sampled, points, cut),
        "Worst runs": tables.worst(found, shown, cut),
        "Trends": trends.section(list(found.commands.values()), commands, cut),
        "Hours lost": tables.lost(found, cut),
        "All runs": tables.runs(found.runs, set(sampled) if points else set(), cut),
    }
    if not found.count:
        parts = {"Summary": "<p>No such run is recorded.</p>"}
    ids = {name: name.lower().replace(" ", "-") for name in parts}
    links = "".join(f'<li><a href="#{ids[name]}">{name}</a></li>' for name in parts)
    links = f'<nav aria-label="Sections"><ul>{links}</ul></nav>' if len(parts) > 1 else ""
    body = "".join(
        f'<section id="{ids[name]}" aria-labelledby="{ids[name]}-name">'
        f'<h2 id="{ids[name]}-name">{name}</h2>{part}</section>'
        for name, part in parts.items()
    )
    digest = b64encode(sha256(_STYLE.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="referrer" content="no-referrer">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>sandrun: {count(found.count, "run")}</title>
<style>{_STYLE}</style>
</head>
<body>
<a class="skip" href="#main">Skip to the figures</a>
<header><h1>sandrun report</h1><p>{_coverage(found, about)}</p>
{links}</header>
<main id="main">{body}</main>
<footer><p>Written by sandrun {__version__} at {moment(time.time())} {time.strftime("%z")}. \
Command lines may contain secrets: mind who gets this file.</p></footer>
{_PATTERNS}
</body>
</html>
"""


_TILE = '<pattern id="{}" width="6" height="6" patternUnits="userSpaceOnUse">{}</pattern>'
_PATTERNS = (
    '<svg width="0" height="0" aria-hidden="true" class="patterns"><defs>'
    + _TILE.format("stripes", '<rect width="6" height="6"/><path d="M-1 7L7-1M-1 1L1-1M5 7L7 5"/>')
    + _TILE.format("checks", '<rect width="6" height="6"/><path d="M0 0l6 6m0-6l-6 6"/>')
    + "</defs></svg>"
)


def _coverage(found: Collected, about: str) -> str:
    days = [moment(at, "%Y-%m-%d") for at in (found.first, found.last)]
    form = "%H:%M" if days[0] == days[1] else "%Y-%m-%d %H:%M"
    when = f", {moment(found.first, '%Y-%m-%d %H:%M')} to {moment(found.last, form)}"
    says = f"{count(found.count, 'run')}{text(about)}{when if found.first else ''}."
    if found.count > len(found.runs):
        says += (
            f" Timeline, memory and the table of runs show the newest {len(found.runs):,};"
            " all else is about all of them."
        )
    return says


def _memory(sampled: Sampled, points: int, cut: int) -> str:
    if not sampled:
        return "<p>No run of these has samples: runs shorter than a second have none.</p>"
    if not points:
        return "<p>The command lines are too long for this page to have curves as well.</p>"
    order = [sampled[run.key] for run in curves.worst_first(run for run, _ in sampled.values())]
    first = "".join(curves.figure(run, it, _POINTS, cut, True) for run, it in order[:_WORST])
    rest = order[_WORST:]
    more = "".join(curves.figure(run, it, points, cut, False) for run, it in rest)
    if more:
        more = (
            f"<details><summary>{count(len(rest), 'more run')}</summary>"
            f'<div class="grid">{more}</div></details>'
        )
    return (
        "<p>Runs that a memory limit ended, then those closest to theirs; of each command two come"
        " first. The dashed line is the limit; vertical lines are events, thick where a limit was"
        f' hit.</p><div class="grid">{first}</div>{more}'
    )
