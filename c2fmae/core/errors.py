"""Errors with a message for the user."""

from collections.abc import Iterable, Sequence
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


def check_ascending(key: str, values: tuple[float, float]) -> None:
    """Raise an error if the ends of a range are in the wrong order."""
    if values[0] > values[1]:
        raise UserError(f"{key}: expected two ascending numbers, got {values[0]:g} and {values[1]:g}. Swap them")


def check_patch_multiples(size: Sequence[int], patch_size: int, origin: str, *, key: str = "image_size") -> None:
    """Raise an error if a side of an image is not a multiple of the patch size, which comes from `origin`.

    `key` is the setting that holds the size.

    >>> check_patch_multiples((32, 33), 8, "of this ViT")
    Traceback (most recent call last):
    c2fmae.core.errors.UserError: image_size: 33 is not a multiple of the patch size 8 (of this ViT). Nearest: 32 or 40
    """
    for side in size:
        if side < patch_size or side % patch_size:
            lower = side // patch_size * patch_size
            nearest = " or ".join(str(number) for number in (lower, lower + patch_size) if number)
            raise UserError(
                f"{key}: {side} is not a multiple of the patch size {patch_size} ({origin}). Nearest: {nearest}"
            )
