"""What is wrong with a data set, one sentence each."""

from collections.abc import Sequence
from dataclasses import dataclass

from c2fmae.core.errors import UserError


@dataclass(frozen=True)
class Problem:
    """One thing to mend: the whole sentence, and the sample that it spoils."""

    key: str | None
    """None where it concerns more than one sample."""
    text: str


def raise_first_problem(problems: Sequence[Problem]) -> None:
    """Raise the first problem, if there is one, and say how to see the others."""
    if problems:
        count = len(problems) - 1
        others = f"\n(and {count} more: `c2fmae data check` lists them all)" if count else ""
        raise UserError(problems[0].text + others)
