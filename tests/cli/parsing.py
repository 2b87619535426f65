"""Commands in messages, parsed as the command line parses them."""

import shlex
from collections.abc import Iterator
from typing import Any

import typer.main
from c2fmae_cli import app


def split_commands(text: str) -> Iterator[list[str]]:
    """Yield the words of each command of a line, without comments and without the launcher of several processes."""
    words = shlex.split(text, comments=True)
    while words:
        end = words.index("&&") if "&&" in words else len(words)
        command = words[:end]
        yield ["c2fmae", *command[command.index("c2fmae_cli") + 1 :]] if command[0] == "torchrun" else command
        words = words[end + 1 :]


def parse_command(words: list[str]) -> None:
    """Parse a command without running it; raise the error of a command, option or argument that does not exist."""
    command, name, args, context = _resolve(words)
    command.make_context(name, args, parent=context)


def is_bare_command(words: list[str]) -> bool:
    """Return whether words are the name of a command without arguments; raise the error of one that does not exist."""
    return not _resolve(words)[2]


def _resolve(words: list[str]) -> tuple[Any, str, list[str], Any]:
    """Return the command of words, its name, its arguments, and the context of the command that it belongs to."""
    name, *args = words
    assert name == "c2fmae"
    command: Any = typer.main.get_command(app)
    context = None
    while hasattr(command, "resolve_command") and args:
        context = command.make_context(name, args, parent=context)
        rest = [*vars(context).get("_protected_args", vars(context).get("protected_args", [])), *context.args]
        name, command, args = command.resolve_command(context, rest)
    return command, name, args, context
