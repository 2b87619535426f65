"""What each of two processes does: its rows of the batch, through a distributed model."""

import dataclasses
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from c2fmae.core.masks import Masks
from c2fmae.core.scene import COARSE_TO_FINE
from c2fmae.methods import MaskedAutoencoding
from tests.methods.tiny_methods import noise_scenes, part, tiny

WORLD, EACH = 2, 3


def method() -> MaskedAutoencoding:
    return tiny("c2fmae", "num_visible=4")


def masks_of(method: MaskedAutoencoding, step: int, rank: int) -> Masks:
    """First what is drawn; then on each rank one granularity alone, and not the same."""
    if step:
        shown = ("rgb", "semantic")[rank]
        return Masks.showing((shown,), COARSE_TO_FINE, batch=EACH, num_patches=4)
    mine = part(noise_scenes(WORLD * EACH), rank * EACH, (rank + 1) * EACH)
    rows = (rank * EACH, WORLD * EACH)
    return method.hide(mine, progress=0.4, generator=torch.Generator().manual_seed(0), rows=rows)


def run(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    timeout = timedelta(seconds=60)  # a parameter without a gradient would be waited for
    store = dist.FileStore(str(folder / "store"), WORLD)  # type: ignore[attr-defined]
    dist.init_process_group("gloo", store=store, rank=rank, world_size=WORLD, timeout=timeout)
    alone = method()
    together = dataclasses.replace(alone, model=DistributedDataParallel(alone.model))
    scenes = part(noise_scenes(WORLD * EACH), rank * EACH, (rank + 1) * EACH)
    found: list[dict[str, Tensor]] = []
    for step in range(2):
        together.model.zero_grad()
        maps, masks = together.prepare(scenes), masks_of(together, step, rank)
        counts = together.counts(maps, masks)
        for count in counts.values():
            dist.all_reduce(count)
        loss = together.compare(together.model(maps, masks), maps, masks, counts)
        (loss.total * WORLD).backward()  # the gradients of the processes are averaged
        found.append({name: p.grad.clone() for name, p in alone.model.named_parameters() if p.grad is not None})
    torch.save(found, folder / f"{rank}.pt")
    dist.destroy_process_group()
