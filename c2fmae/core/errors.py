"""The one error for mistakes that a user can mend, and the help it gives."""

from collections.abc import Iterable
from difflib import get_close_matches


class UserError(ValueError):
    """A mistake of the person at the keyboard: one clear message, no traceback, exit code 2.

    It is a `ValueError` so that, raised inside a config validator, it joins the list of all problems.
    """


class RunError(RuntimeError):
    """What ended a run that is nobody's mistake at the keyboard: one clear message, no traceback, exit code 1."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return "Did you mean 'x'?" for the nearest known name, or nothing where none is near.

    >>> did_you_mean("semantc", ["random", "semantic"])
    "Did you mean 'semantic'?"
    """
    nearest = get_close_matches(name, list(known), n=1, cutoff=0.5)  # 'rl' is near 'lr'
    return f"Did you mean {nearest[0]!r}?" if nearest else ""


def unknown_name_error(kind: str, name: str, known: Iterable[str]) -> UserError:
    """Return the error for a name that is not there, with the nearest one and all that are."""
    known = sorted(known)
    parts = [f"no {kind} named {name!r}.", did_you_mean(name, known), f"Known: {', '.join(known) or 'none'}"]
    return UserError(" ".join(part for part in parts if part))
