"""Imports optional libraries, or reports how to install them."""

import importlib
from types import ModuleType

from sandrun.model import SandrunError

PROMETHEUS = "prometheus-client>=0.16"


def load(module: str, package: str, purpose: str) -> ModuleType:
    """Import `module` of the distribution `package` (its requirement, such as `textual>=6`), which
    `purpose` needs. Raises SandrunError with the commands that install it, if it is missing."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != module.partition(".")[0]:
            raise  # a dependency of it is missing
    raise SandrunError(
        f"{purpose} needs the Python package {module.partition('.')[0]}, which is not installed",
        f"pipx inject sandrun-queue '{package}'; with uv: uv tool install --with '{package}' and "
        f"the source of sandrun; in a virtual environment: pip install '{package}'",
    )
