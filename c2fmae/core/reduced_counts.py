"""Counts of the global batch, whose sum over ranks overlaps with the forward pass."""

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property

import torch
from jaxtyping import Int64
from torch import Tensor

from c2fmae.core.distributed import World
from c2fmae.core.transfer import copy_to_device


class ReducedCounts(Mapping[str, Tensor]):
    """Counts by name, summed over micro-batches and ranks in one collective, which also sums flags of the ranks.

    It starts at once, and the first access waits for it. So its duration is hidden by the forward pass, and a rank that
    is late with its batch meets others that have already done theirs.
    """

    def __init__(self, counts: Sequence[Mapping[str, Tensor]], flags: Mapping[str, int], world: World) -> None:
        self._rows = {name: row for row, name in enumerate(counts[0])}
        by_micro_batch = torch.stack([torch.stack([*each.values()]) for each in counts])
        parts = (by_micro_batch.sum(dim=0), torch.tensor([*flags.values()], dtype=by_micro_batch.dtype))
        local = torch.cat([copy_to_device(part, world.device) for part in parts])
        self._wait = world.start_all_reduce(local)

    @cached_property
    def sums(self) -> Int64[Tensor, "name"]:
        """The sums of the counts, then those of the flags."""
        return self._wait()

    def __getitem__(self, name: str) -> Int64[Tensor, ""]:
        return self.sums[self._rows[name]]

    def __iter__(self) -> Iterator[str]:
        return iter(self._rows)

    def __len__(self) -> int:
        return len(self._rows)
