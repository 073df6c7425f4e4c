"""The text of the `git` shim: POSIX sh, because a read-only git is over before Python has started.

It knows the commands that never write (`commands.READ_ONLY`) and becomes the real git at once;
everything else becomes `sandrun git`, which looks closer. Rules that both keep: the subcommand is
the first word that is no option, and a background reader takes no optional locks.

A shim directory has an (empty) file `.sandrun-shims`, by which the shims know each other: reading
every `git` on PATH for a mark would cost more in sh than git does.
"""

from sandrun.gitguard import commands

DIRECTORY_MARK = ".sandrun-shims"

_TEXT = """#!/bin/sh
# sandrun shim for git: commands that only read go straight through, others wait for their turn
word= skip=
for argument; do
	if [ "$skip" ]; then skip=; continue; fi
	case $argument in
	{with_value}) skip=1 ;;
	{answers}|--list-cmds=*) word=version; break ;;
	-*) ;;
	*) word=$argument; break ;;
	esac
done
case ${{word:-version}} in
{read_only})
	[ -t 0 ] || [ -t 1 ] || [ -t 2 ] || export GIT_OPTIONAL_LOCKS="${{GIT_OPTIONAL_LOCKS-0}}"
	;;
*)
	{sandrun} "$@"
	;;
esac
set -f
IFS=:
for directory in $PATH; do
	if [ -x "$directory/git" ] && [ ! -d "$directory/git" ] && [ ! -e "$directory/{mark}" ]; then
		unset IFS
		exec "$directory/git" "$@"
	fi
done
echo >&2 "sandrun: git: command not found"
exit 127
"""


def launch(python: str, library: str) -> str:
    """The shell text that becomes `sandrun git`, with the package in the folder `library`.

    Without `site` (-S), which takes a quarter of Python's start and is needed for nothing here.
    """
    from sandrun.model import command_text

    code = f"import sys; sys.path.insert(0, {library!r}); from sandrun.cli import main; main()"
    return "exec " + command_text([python, "-I", "-S", "-c", code, "git"])


def text(sandrun: str) -> str:
    """The shim. `sandrun` is the shell text that becomes `sandrun git` with the words after it,
    such as `exec /usr/bin/sandrun git` or what `launch` gives; if it returns, git is run as is."""
    return _TEXT.format(
        with_value="|".join(sorted(commands.WITH_VALUE)),
        answers="|".join(sorted(commands.ANSWERS)),
        read_only="|".join(sorted(commands.READ_ONLY)),
        sandrun=sandrun,
        mark=DIRECTORY_MARK,
    )
