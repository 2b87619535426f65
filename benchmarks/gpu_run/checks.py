"""Stages that compare results: with those of the CPU, and of DDP and FSDP2 with each other."""

import itertools
import warnings
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from benchmarks.gpu_run.bench import Bench, time_calls
from benchmarks.gpu_run.training import run_loop
from c2fmae.core.distributed import World
from c2fmae.core.loop import autocast
from c2fmae.core.model_preparation import prepare_model
from c2fmae.core.scene import SceneBatch
from c2fmae.core.sharding import compute_total_norm, gather, shard_model
from c2fmae.methods import MaskedAutoencoding, build_method


def compare_with_cpu(bench: Bench) -> None:
    """Compare masks and a step of the device with those of the CPU, and count what a step of training waits for."""
    num_different, num_compared = 0, 0
    for blend, progress in itertools.product(("topk", "sample", "quota"), (0.05, 0.3, 0.4, 0.5, 0.6, 0.95)):
        config = bench.load_config("c2fmae-b", f"method.masking.options.blend={blend}")
        method = build_method(config.masked_method, seed=0)
        scenes = bench.draw_scenes(method, 64)
        ours, theirs = (
            method.sample_masks(each, progress=progress, generator=method.masking.seed_step(1, 0))
            for each in (scenes, scenes.to(bench.device))
        )
        num_compared += 1
        num_different += not torch.equal(ours.is_masked, theirs.is_masked.cpu())
    bench.record("masks that differ from the CPU's", num_different, f"of {num_compared}", "must be 0")

    config = bench.load_config("c2fmae-b")
    method = build_method(config.masked_method, seed=0)
    scenes = bench.draw_scenes(method, 4)
    exact = _compute_gradients(method, scenes, torch.device("cpu"))
    half = _compute_gradients(method, scenes, bench.device, is_half=True)
    single = _compute_gradients(method, scenes, bench.device)
    for name, other, expected in (("fp32", single, "1e-3"), ("bf16", half, "5e-2")):
        difference = torch.stack([(a - b).norm() for a, b in zip(exact, other, strict=True)]).norm()
        size = torch.stack([gradient.norm() for gradient in exact]).norm()
        bench.record(
            f"gradients in {name}, from the CPU's in fp32", float(difference / size), "", f"expect < {expected}"
        )

    reports = run_loop(bench, config, delay=int(not bench.is_cpu))
    for _ in range(3):
        next(reports)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        if not bench.is_cpu:
            torch.cuda.set_sync_debug_mode("warn")
        next(reports)
        if not bench.is_cpu:
            torch.cuda.set_sync_debug_mode("default")
    places = [f"{Path(each.filename).name}:{each.lineno}" for each in caught if "synchron" in str(each.message)]
    bench.record("synchronisations in a step", len(places), "", ", ".join(places) or "expect 0: results are read late")


def _compute_gradients(
    method: MaskedAutoencoding, scenes: SceneBatch, device: torch.device, *, is_half: bool = False
) -> list[Tensor]:
    method.model.to(device).zero_grad()
    moved = scenes.to(device)
    masks = method.sample_masks(moved, progress=0.1, generator=method.masking.seed_step(0, 0))
    maps = method.prepare_inputs(moved)
    with torch.autocast(device.type, torch.bfloat16, enabled=is_half):
        loss = method.compute_loss(method.model(maps, masks), maps, masks)
    loss.total.backward()
    return [parameter.grad.double().cpu() for parameter in method.model.parameters() if parameter.grad is not None]


def run_distributed(bench: Bench) -> None:
    """Run DDP and FSDP2 with the communication library of the device, in a single process: their losses must agree."""
    backend = "gloo" if bench.is_cpu else "cpu:gloo,cuda:nccl"
    store = dist.HashStore()  # type: ignore[attr-defined]
    dist.init_process_group(backend, store=store, rank=0, world_size=1)
    try:
        small = () if bench.is_cpu else ("method.encoder.name=vit_small_patch16_224",)
        for is_sharded, compiled, has_checkpointing in (
            (False, "off", False),
            (False, "blocks", False),
            (False, "blocks", True),
            (True, "off", False),
            (True, "blocks", False),
        ):
            checkpointing = f"method.encoder.grad_checkpointing={str(has_checkpointing).lower()}"
            config = bench.load_config("c2fmae-b", *small, checkpointing, f"training.compile={compiled}")
            method = build_method(config.masked_method, seed=0)
            prepare_model(method.model, config.training, World(device=bench.device))
            if is_sharded:
                shard_model(method.model, bench.device, 1)
            model = method.model.train()
            if not is_sharded:
                model = torch.nn.parallel.DistributedDataParallel(model, gradient_as_bucket_view=True)
            scenes = bench.draw_scenes(method, 4 if bench.is_cpu else 64).to(bench.device)
            masks = method.sample_masks(scenes, progress=0.1, generator=method.masking.seed_step(0, 0))
            maps = method.prepare_inputs(scenes)
            with autocast(config.training, bench.device):
                loss = method.compute_loss(model(maps, masks), maps, masks).total
            loss.backward()
            norm = compute_total_norm(p.grad for p in method.model.parameters() if p.grad is not None)
            gather(method.model.state_dict())
            parts = ["FSDP2" if is_sharded else "DDP", compiled, *["checkpointing"] * has_checkpointing]
            bench.record(f"{', '.join(parts)}: loss", float(loss.detach()), "", f"gradient norm {float(norm):.5g}")
        counts = torch.ones(11, device=bench.device, dtype=torch.int64)
        bench.record("all-reduce of counts", time_calls(bench, lambda: dist.all_reduce(counts))[0] * 1e6, "µs")
    finally:
        dist.destroy_process_group()
