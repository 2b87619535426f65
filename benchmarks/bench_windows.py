"""Attention in windows and relative positions: `python -m benchmarks.bench_windows`.

A ViT with windows in 8 of 12 blocks, and with relative positions, beside the same ViT with global attention. On a CPU:
ViT-Ti, features of an image of 1024×1024 (64×64 patches), without gradients, one thread; the goal is 0.6 for windows of
14. On a GPU (--device cuda): ViT-B, features and gradients of two images, in bfloat16, with the peak memory. Ratios are
of minima.
"""

import argparse
import time
from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.tables import print_costs
from c2fmae.core.detector_spec import WindowSpec
from c2fmae.core.specs import BackboneSpec, EncoderConfig, RelativePositions
from c2fmae.eval.cost.speed_and_memory import describe_machine, make_synchronous, time_in_turn
from c2fmae.models.backbones import Backbone, create_untrained_backbone
from c2fmae.models.relative_positions import create_relative_positions

SIZE = 1024
VARIANTS: dict[str, tuple[WindowSpec | None, RelativePositions]] = {
    "global": (None, "none"),
    "windows of 14": (WindowSpec(size=14), "none"),
    "windows of 14, masked": (WindowSpec(size=14, pad_keys="masked"), "none"),
    "windows of 16": (WindowSpec(size=16), "none"),
    "windows of 14, decomposed": (WindowSpec(size=14), "decomposed"),
    "windows of 14, bias": (WindowSpec(size=14), "bias"),
}


def make_function(
    backbone: Backbone, images: Tensor, name: str, device: torch.device, dtype: torch.dtype, *, with_gradients: bool
) -> Callable[[], object]:
    """Return a function that computes the features of images, and the gradients of all weights."""
    windows, kind = VARIANTS[name]
    side = SIZE // backbone.patch
    relative = create_relative_positions(kind, backbone.encoder, (side, side), windows)
    if relative is not None:
        relative.to(device)

    def compute() -> None:
        with torch.set_grad_enabled(with_gradients), torch.autocast(device.type, dtype, dtype != torch.float32):
            (features,) = backbone.feature_maps(
                images, (backbone.depth,), normed=False, relative=relative, windows=windows
            )
        if with_gradients:
            features.float().square().mean().backward()

    return make_synchronous(compute, device)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    device, is_gpu = torch.device(arguments.device), arguments.device == "cuda"
    torch.set_num_threads(1)
    name, batch = ("vit_base_patch16_224", 2) if is_gpu else ("vit_tiny_patch16_224", 1)
    spec = BackboneSpec(encoder=EncoderConfig(name=name), image_size=(SIZE, SIZE))
    backbone = create_untrained_backbone(spec).to(device).train(is_gpu)
    images = torch.randn(batch, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0)).to(device)
    print(describe_machine(device))
    for dtype in (torch.bfloat16,) if is_gpu else (torch.float32, torch.bfloat16):
        functions = {
            variant: make_function(backbone, images, variant, device, dtype, with_gradients=is_gpu)
            for variant in VARIANTS
        }
        clock = time.perf_counter if is_gpu else time.process_time  # excludes other processes
        times = time_in_turn(functions, rounds=arguments.rounds, clock=clock)
        part = "Features and gradients" if is_gpu else "Features"
        print_costs(f"{part} of {name}, {SIZE}×{SIZE}, batch {batch}, {dtype}", times, peers=["global"], samples=batch)
        if is_gpu:
            for variant, function in functions.items():
                torch.cuda.reset_peak_memory_stats()
                function()
                print(f"{variant}: peak {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB")


if __name__ == "__main__":
    main()
