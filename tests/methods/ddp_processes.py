"""Run by each of two processes: gradients of its rows of the batch, through DistributedDataParallel."""

import dataclasses
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from c2fmae.core.granularity import COARSE_TO_FINE
from c2fmae.core.masks import Masks
from c2fmae.methods import MaskedAutoencoding
from tests.methods.tiny_methods import build_tiny_method, draw_noise_scenes, slice_scenes, to_float64

WORLD_SIZE, BATCH_PER_RANK = 2, 3


def make_ddp_method() -> MaskedAutoencoding:
    method = build_tiny_method("c2fmae", "num_visible=4")
    method.model.double()
    return method


def make_rank_masks(method: MaskedAutoencoding, step: int, rank: int) -> Masks:
    """Return drawn masks in the first step; in the second, one visible granularity, another on each rank."""
    if step:
        shown = ("rgb", "semantic")[rank]
        return Masks.from_visible_granularities((shown,), COARSE_TO_FINE, batch=BATCH_PER_RANK, num_patches=4)
    rank_scenes = slice_scenes(
        draw_noise_scenes(WORLD_SIZE * BATCH_PER_RANK), rank * BATCH_PER_RANK, (rank + 1) * BATCH_PER_RANK
    )
    rows = (rank * BATCH_PER_RANK, WORLD_SIZE * BATCH_PER_RANK)
    return method.sample_masks(rank_scenes, progress=0.4, generator=torch.Generator().manual_seed(0), global_rows=rows)


def run_rank(rank: int, folder: Path) -> None:
    timeout = timedelta(seconds=60)  # a parameter without a gradient would block the reduction
    store = dist.FileStore(str(folder / "store"), WORLD_SIZE)  # type: ignore[attr-defined]
    dist.init_process_group("gloo", store=store, rank=rank, world_size=WORLD_SIZE, timeout=timeout)
    local_method = make_ddp_method()
    ddp_method = dataclasses.replace(local_method, model=DistributedDataParallel(local_method.model))
    scenes = slice_scenes(
        draw_noise_scenes(WORLD_SIZE * BATCH_PER_RANK), rank * BATCH_PER_RANK, (rank + 1) * BATCH_PER_RANK
    )
    gradients: list[dict[str, Tensor]] = []
    for step in range(2):
        ddp_method.model.zero_grad()
        maps, masks = to_float64(ddp_method.prepare_inputs(scenes)), make_rank_masks(ddp_method, step, rank)
        counts = ddp_method.loss_counts(maps, masks)
        for count in counts.values():
            dist.all_reduce(count)
        loss = ddp_method.compute_loss(ddp_method.model(maps, masks), maps, masks, counts)
        (loss.total * WORLD_SIZE).backward()  # DDP averages gradients over processes
        gradients.append(
            {name: p.grad.clone() for name, p in local_method.model.named_parameters() if p.grad is not None}
        )
    torch.save(gradients, folder / f"{rank}.pt")
    dist.destroy_process_group()
