"""The report of loading a source: loaded, missing, unexpected, unused and resized tensors."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

from c2fmae.core.errors import UserError
from c2fmae.core.text import format_count

_MAX_NAMES = 6


@dataclass(frozen=True, kw_only=True)
class LoadReport:
    """The tensors that a model did and did not load from a source, under the names of the model."""

    source: str
    loaded: Sequence[str]
    missing: Sequence[str] = ()
    """Tensors that the source lacks, which were allowed by name and newly initialised."""
    unexpected: Sequence[str] = ()
    """Tensors that the model lacks, which were allowed by name and ignored."""
    unused: Mapping[str, int] = field(default_factory=dict)
    """The number of tensors by module that a backbone does not have, such as decoders and heads."""
    resized: Mapping[str, str] = field(default_factory=dict)
    """Descriptions of resized tensors, by name."""
    notes: Sequence[str] = ()
    """Further remarks, for example on values that are not stored and were assumed."""

    def __str__(self) -> str:
        lines = [f"{self.source}: {format_count(len(self.loaded), 'tensor')} loaded"]
        missing, unexpected = _format_names(self.missing), _format_names(self.unexpected)
        lines += [f"  missing, newly initialised: {missing}"] if missing else []
        lines += [f"  unexpected, ignored: {unexpected}"] if unexpected else []
        if self.unused:
            unused = ", ".join(f"{name} ({count})" for name, count in self.unused.items())
            lines.append(f"  not part of a backbone: {unused}")
        lines += [f"  resized: {name} {description}" for name, description in self.resized.items()]
        return "\n".join([*lines, *(f"  {note}" for note in self.notes)])


def check_tensor_names(
    source: str, missing: Sequence[str], unexpected: Sequence[str], allowed: Sequence[str]
) -> tuple[list[str], list[str]]:
    """Return missing and unexpected names; each must be allowed by name or pattern (`blocks.11.*`).

    Unexpected tensors are an error too, because the source's model computes other outputs with them, for example with
    layer scales.
    """
    problems = []
    for problem, names in (("missing", missing), ("unexpected", unexpected)):
        if not_allowed := [name for name in names if not any(fnmatchcase(name, pattern) for pattern in allowed)]:
            problems.append(f"{format_count(len(not_allowed), f'{problem} tensor')} ({_format_names(not_allowed)})")
    if problems:
        raise UserError(
            f"{source}: {' and '.join(problems)}. Use a file that matches, or allow them by name or pattern "
            "(--allow-missing NAME, allow_missing=[…])"
        )
    return list(missing), list(unexpected)


def _format_names(names: Sequence[str]) -> str:
    rest = f" and {len(names) - _MAX_NAMES} more" if len(names) > _MAX_NAMES else ""
    return ", ".join(names[:_MAX_NAMES]) + rest
