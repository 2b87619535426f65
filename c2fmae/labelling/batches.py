"""Division of a shard's images into batches."""

from collections.abc import Callable, Hashable, Mapping
from typing import TypeVar

T = TypeVar("T", bound=Hashable)


def plan_batches(
    sizes: Mapping[T, tuple[int, int]], batch_key: Callable[[int, int], Hashable], batch_size: int
) -> list[list[T]]:
    """Return batches of images with equal `batch_key(height, width)`, in order; keys follow each other by first image.

    >>> plan_batches({"a": (9, 9), "b": (5, 5), "c": (9, 9), "d": (9, 9)}, lambda *size: size, 2)
    [['a', 'c'], ['d'], ['b']]
    """
    groups: dict[Hashable, list[T]] = {}
    for name, size in sizes.items():
        groups.setdefault(batch_key(*size), []).append(name)
    return [
        group[start : start + batch_size] for group in groups.values() for start in range(0, len(group), batch_size)
    ]
