"""The command line told to others: completions for shells, and a manual page, from click's tree.

Completions are plain lists of words, so that a TAB never starts Python; what follows them on the
line is completed by the shell as the command that it is.
"""

import click

from sandrun import __version__


def _subcommands(group: click.Command) -> "dict[str, click.Command]":
    if not isinstance(group, click.Group):
        return {}
    return {name: c for name, c in sorted(group.commands.items()) if not c.hidden}


def _flags(command: click.Command) -> "list[click.Option]":
    ctx = click.Context(command)
    return [p for p in command.get_params(ctx) if isinstance(p, click.Option) and not p.hidden]


def _short_help(command: click.Command) -> str:
    return command.get_short_help_str(200).rstrip(".")


def _flag_help(option: click.Option) -> str:
    return (option.help or "").partition(". ")[0].rstrip(".")


def _choices(option: click.Option) -> "list[str]":
    # Ours convert by themselves and carry the choices; click's own have them as a type.
    found = getattr(getattr(option.type, "option", option.type), "choices", ())
    return [str(choice) for choice in found]


def completions(root: click.Command, shell: str) -> str:
    """What a shell evaluates to complete the words of `sandrun`."""
    return {"bash": _bash, "zsh": _zsh, "fish": _fish}[shell](root)


def _words(command: click.Command) -> str:
    flags = [name for option in _flags(command) for name in option.opts]
    return " ".join([*_subcommands(command), *flags])


_BASH = """\
_sandrun() {{
	local word previous at path= values=
	COMPREPLY=()
	word=${{COMP_WORDS[COMP_CWORD]}} previous=${{COMP_WORDS[COMP_CWORD-1]}}
	for ((at = 1; at < COMP_CWORD; at++)); do
		case $path:${{COMP_WORDS[at]}} in
		:--)
			at=$((at + 1)); path=+; break ;;
		:git)
			path=+; break ;;
{paths}
		{valued})
			at=$((at + 1)) ;;
		:-*) ;;
		:*)
			path=+; break ;;
		esac
	done
	if [ "$path" = + ]; then
		previous="${{COMP_WORDS[at]}} $((COMP_CWORD - at))"
		if declare -F _command_offset >/dev/null; then _command_offset $at
		elif [ "${{COMP_WORDS[at]}}" = git ] && declare -F __git_wrap__git_main >/dev/null; then
			COMP_WORDS=("${{COMP_WORDS[@]:at}}") COMP_CWORD=$((COMP_CWORD - at))
			__git_wrap__git_main
		else COMPREPLY=($(compgen -c -f -- "$word")); fi
		[ "$previous" != "git 1" ] || COMPREPLY+=($(compgen -W unlock -- "$word"))
		return
	fi
	case $path:$previous in
{values}
	esac
	if [ "$values" ]; then COMPREPLY=($(compgen -W "$values" -- "$word")); return; fi
	case $path in
{words}
	esac
	[ "$path" ] || COMPREPLY+=($(compgen -c -- "$word"))
}}
complete -o default -F _sandrun sandrun"""


def _bash(root: click.Command) -> str:
    valued = [name for o in _flags(root) if not (o.is_flag or o.count) for name in o.opts]
    values = [
        f'\t:{"|:".join(option.opts)}) values="{" ".join(choices)}" ;;'
        for option in _flags(root)
        if (choices := _choices(option))
    ]
    words = [
        f'\t"{name}") COMPREPLY=($(compgen -W "{_words(command)}" -- "$word")) ;;'
        for name, command in [("", root), *_subcommands(root).items()]
    ]
    paths = [f"\t\t:{name}) path={name} ;;" for name in _subcommands(root) if name != "git"]
    return _BASH.format(
        paths="\n".join(paths),
        valued="|".join(f":{name}" for name in valued),
        values="\n".join(values),
        words="\n".join(words),
    )


_ZSH = """\
#compdef sandrun
_sandrun() {{
	local -a subcommands
	subcommands=(
{subcommands}
	)
	_arguments -S -C -A "-*" \\
{flags}
		'1: :->first' '*:: :->rest'
	case $state in
	first)
		_describe -t subcommands subcommand subcommands
		_command_names -e
		# `sta` begins stat(1) and status: show both, and not only their common `stat`.
		(( compstate[nmatches] < 2 )) || compstate[list]=list ;;
	rest)
		[[ $words[1] != -- ]] || {{ shift words; (( CURRENT-- )) }}
		case $words[1] in
		git)
			(( CURRENT != 2 )) || compadd -- unlock
			_normal ;;
{words}
		*) _normal ;;
		esac ;;
	esac
}}
compdef _sandrun sandrun"""


def _zsh(root: click.Command) -> str:
    def clean(text: str) -> str:
        return text.replace("'", "").replace("[", "(").replace("]", ")").replace(":", ",")

    flags = []
    for option in _flags(root):
        value = ""
        if not (option.is_flag or option.count):
            choices = " ".join(_choices(option))
            value = f":{clean(option.metavar or 'value')}:" + (f"({choices})" if choices else "")
        repeat = "*" if option.count else ""
        flags += [
            f"\t\t'{repeat}{name}[{clean(_flag_help(option))}]{value}' \\" for name in option.opts
        ]
    subcommands = _subcommands(root)
    described = [f"\t\t'{n}:{clean(_short_help(c))}'" for n, c in subcommands.items()]
    words = [f"\t\t{n}) compadd -- {_words(c)} ;;" for n, c in subcommands.items() if _words(c)]
    return _ZSH.format(
        subcommands="\n".join(described), flags="\n".join(flags), words="\n".join(words)
    )


def _fish(root: click.Command) -> str:
    def quoted(text: str) -> str:
        return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"

    takes = [name for o in _flags(root) if not (o.is_flag or o.count) for name in o.opts]
    valued = " ".join(sorted(takes, key=lambda name: name.startswith("--")))
    lines = [
        "complete -c sandrun -e",
        "function __sandrun_first; test (count (commandline -opc)) -eq 1; end",
        # Options that take a word, a short one first: long ones there are that function's own.
        f"complete -c sandrun -a '(__fish_complete_subcommand {valued})'",
        "complete -c sandrun -n 'test (commandline -opc)[-1] = git' -a unlock",
    ]
    for name, command in _subcommands(root).items():
        lines.append(
            f"complete -c sandrun -n __sandrun_first -a {name} -d {quoted(_short_help(command))}"
        )
        seen = f"-n '__fish_seen_subcommand_from {name}'"
        lines += [
            f"complete -c sandrun -f {seen} -a {quoted(word)}" for word in _words(command).split()
        ]
    for option in _flags(root):
        names = "".join(
            f" -l {name[2:]}" if name.startswith("--") else f" -s {name[1:]}"
            for name in option.opts
        )
        value = "" if option.is_flag or option.count else " -r"
        if choices := _choices(option):
            value = f" -x -a {quoted(' '.join(choices))}"
        lines.append(f"complete -c sandrun{names}{value} -d {quoted(_flag_help(option))}")
    return "\n".join(lines)


def manual(root: click.Command) -> str:
    """The manual page, in man(7)'s macros."""
    lines = [f'.TH SANDRUN 1 "" "sandrun {__version__}" "User Commands"', ".SH NAME"]
    lines += ["sandrun \\- one project command at a time, inside a kernel limit on memory"]
    lines += [".SH SYNOPSIS", ".B sandrun", "[OPTIONS] [--] COMMAND [ARGUMENTS]...", ".br"]
    lines += [".B sandrun", "SUBCOMMAND [ARGUMENTS]..."]
    lines += [".SH DESCRIPTION", *_prose(root.help or "")]
    lines += [".SH OPTIONS", *_option_lines(root)]
    lines += [".SH SUBCOMMANDS"]
    for name, command in _subcommands(root).items():
        lines += _command_lines(name, command)
    lines += [*_blocks(root.epilog or "")]
    return "\n".join(lines)


def _roff(text: str) -> str:
    escaped = text.replace("\\", "\\e").replace("-", "\\-")
    return "\\&" + escaped if escaped[:1] in (".", "'") else escaped


def _prose(text: str) -> "list[str]":
    """Paragraphs; those after a \\b stand as they are written."""
    lines: list[str] = []
    for paragraph in text.strip().split("\n\n"):
        rows = paragraph.strip("\n").split("\n")
        if lines:
            lines.append(".PP")
        if rows[0].strip() == "\b":
            lines += [".nf", *(_roff(row.strip()) for row in rows[1:]), ".fi"]
        else:
            lines += [_roff(row.strip()) for row in rows]
    return lines


def _option_lines(command: click.Command) -> "list[str]":
    lines = []
    for option in _flags(command):
        names = ", ".join(f"\\fB{_roff(name)}\\fR" for name in option.opts)
        plain = option.is_flag or option.count
        metavar = "" if plain else f" \\fI{_roff(option.metavar or 'VALUE')}\\fR"
        lines += [".TP", names + metavar, _roff(option.help or "")]
    return lines


def _command_lines(name: str, command: click.Command) -> "list[str]":
    arguments = [p for p in command.params if isinstance(p, click.Argument)]
    words = "".join(f" \\fI{_roff((p.name or '').upper())}\\fR" for p in arguments)
    lines = [f".SS {_roff(name)}{words}", *_prose(command.help or ""), *_option_lines(command)]
    for inner, sub in _subcommands(command).items():
        lines += _command_lines(f"{name} {inner}", sub)
    return lines


def _blocks(epilog: str) -> "list[str]":
    """The epilog's parts, each under its own first line."""
    lines = []
    for block in epilog.split("\b\n")[1:]:
        title, _, rest = block.strip().partition(":")
        lines += [f".SH {_roff(title.upper())}", ".nf"]
        lines += [_roff(row.strip()) for row in rest.strip().split("\n")] + [".fi"]
    return lines
