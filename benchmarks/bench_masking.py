"""Speed of masking compared with MultiMAE's and with Python loops: `python -m benchmarks.bench_masking`.

MultiMAE draws shares from a Dirichlet distribution, rounds them, sorts noise per modality, and shuffles all tokens by
two argsorts and a gather. It masks at random, without exact budgets. Both sides include shares, budgets, noise and
indices of visible patches, and ours includes the regions of the maps that a policy reads.
"""

import functools
import time
from collections.abc import Callable, Mapping
from typing import get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.multimae_baseline import multimae_masks
from benchmarks.tables import print_speeds
from c2fmae.core.granularity import COARSE_TO_FINE
from c2fmae.core.masks import Masks
from c2fmae.eval.cost.speed_and_memory import measure_peak_bytes, time_in_turn
from c2fmae.masking import Policy, RowGenerator, apportion, mask_scenes, patch_regions, sample_shares, semantic_mask
from c2fmae.masking.curricula import constant
from c2fmae.masking.noise import MaskGenerator, draw_noise
from c2fmae.masking.policies import (
    GUIDE_MAPS,
    Blend,
    InstancePolicy,
    ProgressivePolicy,
    RandomPolicy,
    SemanticPolicy,
    get_required_maps,
)
from c2fmae.masking.scenes import repeat_per_granularity

BATCH, NUM_PATCHES, NUM_VISIBLE = 256, 196, 98


def draw_blob_maps(size: int, *, num_blobs: int, num_background: int, seed: int = 0) -> Tensor:
    """Return maps of smooth blobs of 132 classes with unlabelled borders; the first blobs are background."""
    generator = torch.Generator().manual_seed(seed)
    fields = F.interpolate(torch.rand(BATCH, num_blobs, 5, 5, generator=generator), size=(size, size), mode="bicubic")
    top, winner = fields.topk(2, dim=1)
    classes = torch.randint(1, 133, (BATCH, num_blobs), generator=generator)
    classes[:, :num_background] = 0
    labels = classes.gather(1, winner[:, 0].flatten(1)).view(BATCH, size, size)
    is_border = (top[:, 0] - top[:, 1] < 0.02) & (labels != classes.gather(1, winner[:, 1].flatten(1)).view_as(labels))
    return labels.masked_fill(is_border, 255).to(torch.uint8)


def draw_voc_like_maps(size: int) -> Tensor:
    """Return maps with two objects and about half background, as in PASCAL VOC."""
    return draw_blob_maps(size, num_blobs=4, num_background=2)


def draw_coco_like_maps(size: int) -> Tensor:
    """Return maps with about twelve classes per image, as in COCO panoptic."""
    return draw_blob_maps(size, num_blobs=14, num_background=0)


def sample_num_masked(generator: torch.Generator) -> Tensor:
    capacity = torch.full((BATCH, 3), NUM_PATCHES)
    shares = sample_shares(BATCH, torch.ones(3), generator=generator)
    return NUM_PATCHES - apportion(shares, torch.full((BATCH,), NUM_VISIBLE), capacity)


def semantic_masks_by_loop(regions: Tensor, generator: torch.Generator) -> Tensor:
    """Return semantic masks from a Python loop over images and classes."""
    is_masked = torch.zeros(BATCH, 3, NUM_PATCHES, dtype=torch.bool)
    for image, row in enumerate(sample_num_masked(generator).tolist()):
        for granularity, num_masked in enumerate(row):
            members = [(regions[image] == c).nonzero().flatten() for c in regions[image].unique()]
            quotas = [num_masked * len(member) / NUM_PATCHES for member in members]
            shares = [int(a) for a in quotas]
            by_remainder = sorted(range(len(quotas)), key=lambda k: shares[k] - quotas[k])
            for k in by_remainder[: num_masked - sum(shares)]:
                shares[k] += 1
            for member, share in zip(members, shares, strict=True):
                chosen = member[torch.randperm(len(member), generator=generator)[:share]]
                is_masked[image, granularity, chosen] = True
    return is_masked


def semantic_masks_batched(regions: Tensor, generator: torch.Generator) -> Masks:
    """Return semantic masks of all granularities in one call, with granularities of images as rows."""
    noise = torch.rand(3 * BATCH, NUM_PATCHES, generator=generator)
    is_masked = semantic_mask(repeat_per_granularity(regions, 3), noise, sample_num_masked(generator).flatten())
    return Masks.from_mask(is_masked.view(BATCH, 3, NUM_PATCHES), COARSE_TO_FINE, num_visible=NUM_VISIBLE)


def majority_by_mode(labels: Tensor, patch: int) -> Tensor:
    """Return the mode per patch, without a rule for ignored pixels."""
    cells = labels.view(BATCH, labels.shape[1] // patch, patch, -1, patch).transpose(2, 3)
    return cells.reshape(BATCH, -1, patch * patch).mode(dim=2).values


def mask_maps(policy: Policy, maps: Mapping[str, Tensor], *, progress: float) -> Masks:
    """Return the masks of a step from maps at label stride 4; each call draws the same noise."""
    required = get_required_maps(policy)
    single_region = torch.zeros(BATCH, NUM_PATCHES, dtype=torch.uint8)
    regions, instances = (patch_regions(maps[name], 4) if name in required else single_region for name in GUIDE_MAPS)
    return mask_scenes(
        policy, regions, instances, num_visible=NUM_VISIBLE, progress=progress, generator=RowGenerator(0)
    )


def list_steps(maps: Mapping[str, Tensor]) -> dict[str, Callable[[], object]]:
    """Return MultiMAE's masking, and ours by each policy; with the name of the mask where it decides alone."""
    blends: dict[Blend, ProgressivePolicy] = {
        blend: ProgressivePolicy(blend=blend, curriculum=functools.partial(constant, alpha=0.4, beta=0.3))
        for blend in get_args(Blend)
    }
    default = ProgressivePolicy()
    cases: dict[str, tuple[Policy, float]] = {
        "random": (RandomPolicy(), 0.0),
        "semantic": (SemanticPolicy(), 0.0),
        "instance": (InstancePolicy(), 0.0),
        "topk at t = 0.1 (semantic)": (default, 0.1),
        "topk at t = 0.25 (two masks)": (default, 0.25),
        "topk at t = 0.4 (instance)": (default, 0.4),
        "topk at t = 0.9 (random)": (default, 0.9),
        **{f"{blend} .4 .3 .3": (policy, 0.0) for blend, policy in blends.items()},
    }
    ours = {
        name: functools.partial(mask_maps, policy, maps, progress=progress)
        for name, (policy, progress) in cases.items()
    }
    return {"MultiMAE": lambda: multimae_masks(BATCH, NUM_PATCHES, NUM_VISIBLE), **ours}


def list_parts(maps: Mapping[str, Tensor]) -> dict[str, Callable[[], object]]:
    """Return parts of our masking."""
    rates = torch.ones(3, dtype=torch.float64)
    generators: dict[str, MaskGenerator] = {"rows": RowGenerator(0), "torch": torch.Generator().manual_seed(0)}
    return {
        "regions of both maps": lambda: [patch_regions(labels, 4) for labels in maps.values()],
        **{
            f"noise by {name}": functools.partial(draw_noise, generator, range(BATCH), BATCH, NUM_PATCHES, rates)
            for name, generator in generators.items()
        },
    }


def main() -> None:
    full, quarter = draw_voc_like_maps(224), draw_voc_like_maps(56)
    maps = {"semantic": draw_coco_like_maps(56), "instance": quarter}
    steps, parts = list_steps(maps), list_parts(maps)
    for threads, clock in ((1, time.thread_time), (2, time.perf_counter)):  # one thread: whatever else the CPU does
        torch.set_num_threads(threads)
        print(f"\ntorch {torch.__version__}, threads: {threads}, batch {BATCH}, 3 × {NUM_PATCHES} tokens")
        title = "Maps of a batch to masks with visible indices, and parts of it"
        seconds = time_in_turn({**steps, **parts}, rounds=25, clock=clock)
        print_speeds(title, seconds, peer="MultiMAE", samples=BATCH)

    generator = torch.Generator().manual_seed(0)
    for kind, labels in (("voc-like", quarter), ("coco-like", maps["semantic"])):
        regions = patch_regions(labels, 4)
        classes = sum(len(row.unique()) for row in regions) / BATCH
        loop: dict[str, Callable[[], object]] = {
            "Python loop": functools.partial(semantic_masks_by_loop, regions, generator),
            "semantic_mask × 3": functools.partial(semantic_masks_batched, regions, generator),
        }
        title = f"Semantic masks by a loop, {kind} maps ({classes:.1f} classes per image)"
        print_speeds(title, time_in_turn(loop, rounds=9), peer="Python loop", samples=BATCH)

    majority: dict[str, Callable[[], object]] = {"torch.mode, 224²": lambda: majority_by_mode(full, 16)}
    for labels, patch in ((full, 16), (quarter, 4)):
        for dtype in (torch.uint8, torch.int64):
            name = f"{labels.shape[1]}² {str(dtype).removeprefix('torch.')}"
            majority[f"patch_regions, {name}"] = functools.partial(patch_regions, labels.to(dtype), patch)
    majority["torch.mode, 56²"] = lambda: majority_by_mode(quarter, 4)
    print_speeds("Majority id per patch", time_in_turn(majority, rounds=11), peer="torch.mode, 224²", samples=BATCH)

    print("\nPeak memory of one call, MiB")
    for name, function in {**steps, **majority}.items():
        print(f"{name:34s}{measure_peak_bytes(function) / 2**20:10.1f}")


if __name__ == "__main__":
    main()
