"""Where a user's programs keep their files on Windows."""

import os


def local_folder() -> str:
    """Where a user's programs keep what belongs to this machine: %LOCALAPPDATA%."""
    return os.environ.get("LOCALAPPDATA") or os.path.expanduser("~\\AppData\\Local")


def roaming_folder() -> str:
    """Where a user's programs keep settings: %APPDATA%."""
    return os.environ.get("APPDATA") or os.path.expanduser("~\\AppData\\Roaming")
