"""What a shim starts: sandrun if it can be imported, else the tool itself, which is then said.

Usage: python -I launch.py [--as NAME] -- /path/to/tool ARGUMENTS. The tool sees NAME as its own.
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
    try:
        from sandrun import spawn
        from sandrun.cli import main
    except Exception as error:
        tool = os.path.basename(sys.argv[2])
        os.write(
            2,
            f"sandrun: {tool} runs without queue and memory limit: sandrun is broken: {error}\n"
            "sandrun: hint: install it anew\n".encode(),
        )
        os.execv(sys.argv[2], sys.argv[2:])
    if name:
        spawn.names[sys.argv[2]] = name
    main()
