"""Expanding git aliases, so that `git co` is guarded as `git checkout`.

Only for words that git itself does not know; git's own words cannot be aliased. One `git config`
per step, at most ten steps. What stays unknown (a shell alias, a program `git-foo`, a loop)
queues with everything.
"""

import os

from sandrun.gitguard import commands

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

_STEPS = 10


def needs(git: str, command: commands.Invocation, env: "Mapping[str, str]") -> int:
    """The locks that a command with an unknown word needs."""
    seen: set[str] = set()
    needed: int | None = None
    while needed is None:
        if command.word in seen or len(seen) >= _STEPS:
            return commands.UNKNOWN
        seen.add(command.word)
        words = _split(_value(git, command, env))
        if not words:
            return commands.UNKNOWN
        if words[0][0:1] == "!":
            # `!git log -3`: one git and nothing else for a shell to do.
            if words[0] != "!git" or any(set(word) & set("|&;<>()$`\n") for word in words):
                return commands.UNKNOWN
            words = words[1:]
        options = command.options
        command = commands.parse(words + command.arguments)
        command.options = options
        needed = commands.needs(command)
    return needed


def _value(git: str, command: commands.Invocation, env: "Mapping[str, str]") -> str:
    """What the alias stands for, with the command line's own -C, -c and --git-dir; '': nothing."""
    word = command.word
    if not word.replace("-", "").replace("_", "").isalnum() or not word.isascii():
        return ""
    # The second form is git 2.54's [alias "word"] command = ...
    pattern = f"^alias\\.{word}(\\.command)?$"
    argv = [git, *command.options, "config", "--null", "--get-regexp", pattern]
    text = _output(argv, env)
    # The last one wins; each is a key, a newline, a value.
    return text.rstrip("\0").rpartition("\0")[2].partition("\n")[2]


def _output(argv: "list[str]", env: "Mapping[str, str]") -> str:
    read_end, write_end = os.pipe()
    null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
    try:
        pid = os.posix_spawn(
            argv[0],
            argv,
            env,
            file_actions=[
                (os.POSIX_SPAWN_DUP2, null, 0),
                (os.POSIX_SPAWN_DUP2, write_end, 1),
                (os.POSIX_SPAWN_DUP2, null, 2),
            ],
        )
    except OSError:
        os.close(read_end)
        return ""
    finally:
        os.close(write_end)
        os.close(null)
    with open(read_end, "rb") as pipe:
        text = os.fsdecode(pipe.read())
    return text if os.waitpid(pid, 0)[1] == 0 else ""


def _split(text: str) -> "list[str]":
    """Words as git's split_cmdline makes them; none where its quotes do not close."""
    words: list[str] = []
    word = ""
    open_word = False
    quote = ""
    at = 0
    while at < len(text):
        letter = text[at]
        at += 1
        if not quote and letter.isspace():
            if open_word:
                words.append(word)
            word, open_word = "", False
            continue
        open_word = True
        if not quote and letter in "'\"":
            quote = letter
        elif letter == quote:
            quote = ""
        else:
            if letter == "\\" and quote != "'":
                letter, at = text[at : at + 1], at + 1
            word += letter
    if open_word:
        words.append(word)
    return [] if quote else words
