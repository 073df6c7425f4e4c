"""The JSON schemas of what `--json` prints (JSON Schema 2020-12): `schemas/NAME.json`."""

import os

from sandrun.config.options import did_you_mean
from sandrun.model import SandrunError

_FOLDER = os.path.join(os.path.dirname(__file__), "schemas")


def names() -> "list[str]":
    """The names of all schemas."""
    return sorted(name.removesuffix(".json") for name in os.listdir(_FOLDER))


def text(name: str) -> str:
    """A schema, as JSON. Raises SandrunError."""
    known = names()
    if name not in known:
        hint = did_you_mean(name, known) or f"one of: {', '.join(known)}"
        raise SandrunError(f"no such schema: {name}", hint)
    with open(os.path.join(_FOLDER, f"{name}.json"), encoding="utf-8") as file:
        return file.read().rstrip("\n")
