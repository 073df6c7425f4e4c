"""What a shim starts: sandrun if it can be imported, else the tool itself, which is then said.

Usage: python -I launch.py [--as NAME] -- /path/to/tool ARGUMENTS. The tool sees NAME as its own.
Or: python -I -S launch.py --guard /path/to/tool ARGUMENTS, for the shims of `sandrun.git.guard`.
-I: nothing of the user's may get in here.
"""

import os
import sys

if __name__ == "__main__":
    # Behind the standard library, of which site-packages may hold an old copy (enum34, typing).
    sys.path.insert(3, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))
    name = sys.argv[2] if sys.argv[1] == "--as" else ""
    if name:
        del sys.argv[1:3]
    place = sys.argv[2]
    try:
        from sandrun.cli import main
        from sandrun.platform import spawn
    except Exception as error:
        lacking = "its turn" if sys.argv[1] == "--guard" else "queue and memory limit"
        tool = os.path.basename(place)
        os.write(
            2,
            f"sandrun: {tool} runs without {lacking}: sandrun is broken: {error}\n"
            "sandrun: hint: install it anew\n".encode(),
        )
        os.execv(place, sys.argv[2:])
    if sys.argv[1] == "--guard":
        sys.argv[1:3] = ["git"]
    if name and sys.platform != "win32":
        spawn.argv0_names[place] = name
    main()
