"""A training step of a segmenter, and of transformers' UPerNet on BEiT: `python -m benchmarks.bench_segmenter`.

Both have the same weights, images, labels, losses and optimiser. On a CPU the models are small (ViT-Ti, 192 channels,
256×256, batch 2, 150 classes, one thread). On a GPU (--device cuda) they are ViT-B with 768 channels at 512×512, batch
16, in bfloat16 only. Ratios are of minima; the goals on a CPU are 1.05 in float32 and 0.80 in bfloat16.
"""

import argparse
import time
from collections.abc import Callable
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from benchmarks.tables import print_costs
from c2fmae.core.labels import ClassInfo
from c2fmae.core.optimiser import build_adamw, build_parameter_groups, set_lr
from c2fmae.core.specs import BackboneSpec, EncoderConfig, HeadSpec
from c2fmae.eval.cost.speed_and_memory import describe_machine, make_synchronous, time_in_turn
from c2fmae.exports.as_hf_segmenter import create_upernet
from c2fmae.models.backbones import create_untrained_backbone
from c2fmae.models.segmenters import Segmenter, segmenter_from_backbone
from c2fmae.models.segmenters.losses import upsampled_cross_entropy

CLASSES = 150
AUXILIARY_WEIGHT = 0.4


def make_segmenter(name: str, size: int, channels: int) -> Segmenter:
    spec = BackboneSpec(encoder=EncoderConfig(name=name), image_size=(size, size))
    return segmenter_from_backbone(
        create_untrained_backbone(spec),
        [ClassInfo(name=str(index)) for index in range(CLASSES)],
        head=HeadSpec(name="upernet", options={"channels": channels, "dropout": 0, "auxiliary": {"dropout": 0}}),
        depths=(4, 6, 8, 12),
        normed=False,
        norm="batch",
        relative="none",
        drop_path=0.0,
        image_size=(size, size),
        generator=torch.Generator().manual_seed(0),
    )


def make_step(
    model: nn.Module, compute_loss: Callable[[], Tensor], device: torch.device, dtype: torch.dtype
) -> Callable[[], float]:
    """Return a step of training: forward, backward and AdamW."""
    optimiser = build_adamw(build_parameter_groups(model, weight_decay=0.05), betas=(0.9, 0.999))
    set_lr(optimiser, 1e-5)
    model.train()

    def step() -> float:
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            loss = compute_loss()
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
        return loss.item()

    return make_synchronous(step, device)  # type: ignore[return-value]


def make_variants(
    segmenter: Segmenter, images: Tensor, ids: Tensor, device: torch.device, dtype: torch.dtype
) -> dict[str, Callable[[], float]]:
    theirs: Any = create_upernet(transformers, segmenter).to(device)
    ours = segmenter.to(device)
    labels, num_labelled = ids.long(), ids.numel()

    def compute_our_loss() -> Tensor:
        outputs = ours(images)
        main, auxiliary = (upsampled_cross_entropy(outputs[name], ids) for name in ("main", "auxiliary"))
        return (main + AUXILIARY_WEIGHT * auxiliary) / num_labelled

    return {
        "transformers": make_step(theirs, lambda: theirs(images, labels=labels).loss, device, dtype),
        "c2fmae": make_step(ours, compute_our_loss, device, dtype),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    device, is_gpu = torch.device(arguments.device), arguments.device == "cuda"
    torch.set_num_threads(1)
    name, size, channels, batch = (
        ("vit_base_patch16_224", 512, 768, 16) if is_gpu else ("vit_tiny_patch16_224", 256, 192, 2)
    )
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(batch, 3, size, size, generator=generator).to(device)
    ids = torch.randint(CLASSES, (batch, size, size), dtype=torch.uint8, generator=generator).to(device)
    print(describe_machine(device))
    for dtype in (torch.bfloat16,) if is_gpu else (torch.float32, torch.bfloat16):
        variants = make_variants(make_segmenter(name, size, channels), images, ids, device, dtype)
        clock = time.perf_counter if is_gpu else time.process_time  # excludes other processes
        times = time_in_turn(variants, rounds=arguments.rounds, clock=clock)
        title = f"A step of {name} with UPerNet of {channels} channels, {size}×{size}, batch {batch}, {dtype}"
        print_costs(title, times, peers=["transformers"], samples=batch)
        if is_gpu:
            for variant, step in variants.items():
                torch.cuda.reset_peak_memory_stats()
                step()
                print(f"{variant}: peak {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB of both models")


if __name__ == "__main__":
    main()
