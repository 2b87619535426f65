"""Prefetching of batches for an evaluation by worker processes."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

from torch.utils.data import Dataset

from c2fmae.core.errors import RunError, UserError
from c2fmae.core.failures import convert_failure
from c2fmae.core.workers import exit_if_unguarded
from c2fmae.data.loader import QuietLoader, explain_worker_death, ignore_signals_in_worker

T = TypeVar("T")


def prefetch(make_item: Callable[[int], T], num_items: int, *, num_workers: int, pin_memory: bool) -> Iterator[T]:
    """Yield `make_item(0)`, `make_item(1)` and so on, computed in advance by `num_workers` processes.

    The `UserError` of an item is raised after all items before it.

    >>> list(prefetch(lambda number: number**2, 4, num_workers=0, pin_memory=False))
    [0, 1, 4, 9]
    """
    exit_if_unguarded()
    if not num_items:
        return
    loader = QuietLoader(
        _ItemDataset(make_item, num_items),
        batch_size=None,
        num_workers=min(num_workers, num_items),
        pin_memory=pin_memory,
        collate_fn=_identity,
        worker_init_fn=ignore_signals_in_worker,
    )
    with explain_worker_death():
        for item in loader:
            if isinstance(item, UserError | RunError):
                raise item
            yield item


@dataclass(frozen=True)
class _ItemDataset(Dataset[object], Generic[T]):
    make_item: Callable[[int], T]
    num_items: int

    def __len__(self) -> int:
        return self.num_items

    def __getitem__(self, index: int) -> T | UserError | RunError:
        try:
            return self.make_item(index)
        except UserError as error:  # torch would put the traceback of a worker into the message
            return convert_failure(error)


def _identity(item: object) -> object:
    return item
