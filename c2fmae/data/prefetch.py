"""Batches for an evaluation, made ahead by worker processes."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

from torch.utils.data import DataLoader, Dataset

from c2fmae.core.errors import UserError
from c2fmae.data.loader import telling_of_dead_workers

T = TypeVar("T")


def made_ahead(make: Callable[[int], T], count: int, *, workers: int, pin: bool) -> Iterator[T]:
    """Yield `make(0)`, `make(1)` and so on, made by other processes; what is wrong with one is raised when it is due.

    >>> list(made_ahead(lambda number: number**2, 4, workers=0, pin=False))
    [0, 1, 4, 9]
    """
    if not count:
        return
    loader = DataLoader(
        _Numbered(make, count),
        batch_size=None,
        num_workers=min(workers, count),
        pin_memory=pin,
        collate_fn=_as_it_is,
    )
    with telling_of_dead_workers():
        for made in loader:
            if isinstance(made, UserError):
                raise made
            yield made


@dataclass(frozen=True)
class _Numbered(Dataset[object], Generic[T]):
    make: Callable[[int], T]
    count: int

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, number: int) -> T | UserError:
        try:
            return self.make(number)
        except UserError as error:  # raised in a worker, it would come out with a traceback for a message
            return error


def _as_it_is(made: object) -> object:
    return made
