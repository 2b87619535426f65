"""Errors with a message for the user."""

from collections.abc import Iterable
from difflib import get_close_matches


class UserError(ValueError):
    """An error that the user can fix: the command prints its message without a traceback and exits with code 2.

    It is a `ValueError`, so that pydantic collects those raised in validators of a config.
    """


class RunError(RuntimeError):
    """A failure of a run: the command prints its message without a traceback and exits with code 1."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return "Did you mean 'x'?" for the most similar known name, or an empty string if none is similar.

    >>> did_you_mean("semantc", ["random", "semantic"])
    "Did you mean 'semantic'?"
    """
    cutoff = 0.6 if len(name) > 4 else 0.5  # 'rl' resembles 'lr', 'nowhere' does not resemble 'generated'
    nearest = get_close_matches(name, list(known), n=1, cutoff=cutoff)
    return f"Did you mean {nearest[0]!r}?" if nearest else ""


def unknown_name_error(kind: str, name: str, known: Iterable[str]) -> UserError:
    """Return the error for an unknown name, with the most similar and all known ones."""
    known = sorted(known)
    parts = [f"no {kind} named {name!r}.", did_you_mean(name, known), f"Known: {', '.join(known) or 'none'}"]
    return UserError(" ".join(part for part in parts if part))
