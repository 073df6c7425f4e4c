"""Started by a shim: runs sandrun or, if it cannot be imported, prints a warning and runs the tool.

Usage: python -I -S launch.py [--as NAME] -- /path/to/tool ARGUMENTS. The tool gets NAME as argv[0].
Or: python -I -S launch.py --guard /path/to/tool ARGUMENTS, for the shims of `sandrun.git.shim`.
-I makes Python ignore the user's PYTHON* variables and packages. -S leaves out `site`, which
`sandrun.importer` runs if a module is missing.
"""

import os
import sys

if __name__ == "__main__":
    # After the standard library: site-packages may contain old copies of it (enum34, typing).
    sys.path.insert(3, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))
    name = sys.argv[2] if sys.argv[1] == "--as" else ""
    if name:
        del sys.argv[1:3]
    place = sys.argv[2]
    try:
        from sandrun import importer

        importer.install()
        from sandrun.cli import main
        from sandrun.platform import spawn
    except Exception as error:
        missing = "its turn" if sys.argv[1] == "--guard" else "queue and memory limit"
        tool = os.path.basename(place)
        os.write(
            2,
            f"sandrun: {tool} runs without {missing}: sandrun is broken: {error}\n"
            "sandrun: hint: install it again\n".encode(),
        )
        os.execv(place, sys.argv[2:])
    if sys.argv[1] == "--guard":
        sys.argv[1:3] = ["git"]
    if name and sys.platform != "win32":
        spawn.argv0_names[place] = name
    main()
