"""Run by each of two processes: a run of every two-branch method on its images of each batch."""

from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.fsdp import FSDPModule

from c2fmae.core.distributed import World
from c2fmae.core.sharding import unshard_tensors
from c2fmae.methods.branches import method
from tests.methods.tiny_branches import COMPARE_IMAGES, TINY, WITHOUT_TEACHER, Run, standardise_in_float64

WORLD_SIZE = 2


def run_rank(rank: int, folder: Path) -> None:
    """Train all methods as one rank, and write their losses and tensors to a file."""
    store = dist.FileStore(str(folder / "store"), WORLD_SIZE)  # type: ignore[attr-defined]
    dist.init_process_group("gloo", store=store, rank=rank, world_size=WORLD_SIZE, timeout=timedelta(seconds=60))
    vars(method)["standardise_maps"] = standardise_in_float64
    world = World(rank, WORLD_SIZE)
    runs = {name: Run.start(name, world=world) for name in TINY}
    runs |= {f"{name}, sharded": Run.start(name, world=world, sharded=True) for name in WITHOUT_TEACHER}
    runs["simclr, sharded in chunks"] = Run.start("simclr", world=world, sharded=True, micro_batch=2)
    runs |= {f"{name}, in chunks": Run.start(name, world=world, micro_batch=2) for name in COMPARE_IMAGES}
    assert all(isinstance(run.method.model, FSDPModule) for name, run in runs.items() if "sharded" in name)
    results = {name: (run.train(), unshard_tensors(run.training.named_tensors())) for name, run in runs.items()}
    torch.save(results, folder / f"{rank}.pt")
    dist.destroy_process_group()
