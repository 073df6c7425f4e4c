"""`table.py JUNIT-FILE...`: the contract's results, a row for each case, a column for each place
and backend.

A suite's name is `PLACE-RELEASE BACKEND` (see in-lab), `fresh-RELEASE` (.ci/run), or `pytest` for
the machine that runs CI itself. If several files have results for a cell (the machine's own tests,
and those in a clean root of it), the worst is shown.
"""

import re
import sys
from xml.etree import ElementTree

WORST = ("FAIL", "ok", "xfail", "-")
"""The values of a cell; the earliest of several is shown: a failure counts although the case passed
elsewhere, and a pass counts although it was skipped elsewhere."""


_CASE = r"test_(\w+)\[(cgroup1|cgroup2|job-object|rlimit|systemd)(?:-(.*))?\]"
"""A case's name, its backend, and its other parameters."""


def results(files: "tuple[str, ...]") -> "dict[str, dict[str, str]]":
    """case -> column -> `ok`, `FAIL`, `xfail` or `-` (a skip)."""
    table: dict[str, dict[str, str]] = {}
    for file in files:
        for suite in ElementTree.parse(file).iter("testsuite"):
            place = (suite.get("name") or "").split(" ")[0].replace("pytest", "here")
            for case in suite.iter("testcase"):
                found = re.fullmatch(_CASE, case.get("name") or "")
                if not found or "contract" not in (case.get("classname") or ""):
                    continue
                bad = case.find("failure") is not None or case.find("error") is not None
                skip = case.find("skipped")
                verdict = "FAIL" if bad else "ok" if skip is None else _not_run(skip)
                name = f"{found[1]}, {found[3]}" if found[3] else found[1]
                row, column = table.setdefault(name, {}), f"{place} {found[2]}"
                row[column] = min(verdict, row.get(column, "-"), key=WORST.index)
    return table


def _not_run(skip: ElementTree.Element) -> str:
    """`xfail`: it ran and failed as expected."""
    return "xfail" if skip.get("type") == "pytest.xfail" else "-"


def main(*files: str) -> None:
    """Print the table; columns without any result are left out."""
    table = results(files)
    columns = {column for row in table.values() for column in row if row[column] != "-"}
    order = sorted(columns)
    width = max(map(len, table), default=0)
    wide = {column: max(map(len, column.split())) for column in order}
    for at, part in enumerate(("place", "backend")):
        print(f"{part:>{width}}  " + "  ".join(f"{c.split()[at]:{wide[c]}}" for c in order))
    for case, row in table.items():
        print(f"{case:>{width}}  " + "  ".join(f"{row.get(c, '-'):{wide[c]}}" for c in order))


if __name__ == "__main__":
    main(*sys.argv[1:])
