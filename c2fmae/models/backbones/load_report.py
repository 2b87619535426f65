"""What became of every tensor of a source."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

from c2fmae.core.errors import UserError

_MAX_NAMES = 6


@dataclass(frozen=True, kw_only=True)
class LoadReport:
    """What a model got from a source, and what it did not; all names are those of the model."""

    source: str
    loaded: Sequence[str]
    missing: Sequence[str] = ()
    """What the model has and the source has not: drawn anew, as was allowed by name."""
    unexpected: Sequence[str] = ()
    """What the source has and the model has no place for, as was allowed by name."""
    unused: Mapping[str, int] = field(default_factory=dict)
    """Parts that a backbone has no use for, such as decoders and heads: how many tensors of each."""
    resized: Mapping[str, str] = field(default_factory=dict)
    """From what to what."""
    notes: Sequence[str] = ()
    """What else is to be known: what the source does not say and was inferred, what begins anew."""

    def __str__(self) -> str:
        lines = [f"{self.source}: {len(self.loaded)} tensors loaded"]
        lines += [f"  {what}: {_format_names(names)}" for what, names in self._named_lists() if names]
        if self.unused:
            left = ", ".join(f"{name} ({count})" for name, count in self.unused.items())
            lines.append(f"  left aside, a backbone has no use for it: {left}")
        lines += [f"  resized: {name} {how}" for name, how in self.resized.items()]
        return "\n".join([*lines, *(f"  {note}" for note in self.notes)])

    def _named_lists(self) -> list[tuple[str, Sequence[str]]]:
        return [("missing, drawn anew", self.missing), ("unexpected, not used", self.unexpected)]


def check_tensor_names(
    source: str, missing: Sequence[str], unexpected: Sequence[str], allowed: Sequence[str]
) -> tuple[list[str], list[str]]:
    """Return what is missing and unexpected, all of which has to be allowed by name or pattern (`blocks.11.*`).

    A source that has more than the model is another model than it seems: one without its layer scales, say, computes
    something else. So that fails too.
    """
    problems = []
    for what, names in (("lacks", missing), ("has, without a place for it,", unexpected)):
        if not_allowed := [name for name in names if not any(fnmatchcase(name, pattern) for pattern in allowed)]:
            problems.append(f"{what} {len(not_allowed)} tensors: {_format_names(not_allowed)}")
    if problems:
        raise UserError(
            f"{source}: {'; it '.join(problems)}. Take a file that fits, or allow them by name or pattern "
            "(--allow-missing NAME, allow_missing=[…])"
        )
    return list(missing), list(unexpected)


def _format_names(names: Sequence[str]) -> str:
    rest = f" and {len(names) - _MAX_NAMES} more" if len(names) > _MAX_NAMES else ""
    return ", ".join(names[:_MAX_NAMES]) + rest
