"""`python -m sandrun` is the command `sandrun`."""

from sandrun.cli import main

main()
