"""Problems of a data set, each with its message."""

from collections.abc import Sequence
from dataclasses import dataclass

from c2fmae.core.errors import UserError
from c2fmae.core.text import escape_lines


@dataclass(frozen=True)
class Problem:
    """One problem to fix."""

    key: str | None
    """The sample that cannot be used; None if it concerns more than one."""
    text: str
    """The complete message, on one line."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "text", escape_lines(self.text))  # names of samples are part of it


def raise_first_problem(problems: Sequence[Problem]) -> None:
    """Raise an error for the first problem, if any, with the number of further problems."""
    if problems:
        count = len(problems) - 1
        others = f"\n(and {count} more: `c2fmae data check` lists them all)" if count else ""
        raise UserError(problems[0].text + others)
