"""Robustness beside a bare loop: `python -m benchmarks.bench_robustness [loop] [several] [--photos N] …`.

The loop is a DataLoader over the same JPEGs by Pillow with timm's own transform, and timm's model: no classes, no
answers kept. Then four models at once beside one, and beside one after the other. With no workers, times are those of
the processor, which other work on the machine hardly changes.
"""

import argparse
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from timm.data.config import resolve_data_config
from timm.data.transforms_factory import create_transform
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from benchmarks.tables import report
from c2fmae.core.distributed import World
from c2fmae.data.suites.official import imagenet_wnids
from c2fmae.data.suites.shifted_set import ShiftedSet, open_shifted
from c2fmae.eval.cost.timing import alternate
from c2fmae.eval.robustness.evaluation import RobustnessConfig, evaluate_robustness
from c2fmae.eval.robustness.image_classifier import Entrant, load_entrant

BATCH = 32
Timed = Callable[[Mapping[str, Callable[[], object]]], dict[str, list[float]]]


def write_photos(folder: Path, count: int) -> None:
    """Smooth noise of 500×375, about as many bytes as a photo of ImageNet."""
    generator = torch.Generator().manual_seed(0)
    for number in range(count):
        small = torch.rand(1, 3, 94, 125, generator=generator) * 255
        pixels = nn.functional.interpolate(small, (375, 500), mode="bicubic")[0].clamp(0, 255).to(torch.uint8)
        place = folder / imagenet_wnids()[number % 1000]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(place / f"{number:05d}.jpg", quality=90)


def saved(name: str, folder: Path) -> str:
    """Random weights of a timm model, as a source."""
    path = folder / f"{name}.safetensors"
    save_file(timm.create_model(name).state_dict(), path)
    return f"timm:{name}@{path}"


class Bare(Dataset[Tensor]):
    """Files by Pillow, shown as timm shows them."""

    def __init__(self, paths: Sequence[Path], transform: Any) -> None:
        self.paths, self.transform = paths, transform

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Tensor:
        with Image.open(self.paths[index]) as image:
            return self.transform(image.convert("RGB"))  # type: ignore[no-any-return]


@torch.inference_mode()
def bare_loop(data: Bare, model: nn.Module, workers: int) -> None:
    for photos in DataLoader(data, batch_size=BATCH, num_workers=workers):
        model(photos).argmax(dim=1)


def evaluated(entrants: Sequence[Entrant], of: ShiftedSet, workers: int) -> None:
    config = RobustnessConfig(batch_size=BATCH, workers=workers)
    with tempfile.TemporaryDirectory() as folder:
        evaluate_robustness(entrants, [of], None, config, lambda each: Path(folder) / each.digest, World())


def one_by_one(entrants: Sequence[Entrant], of: ShiftedSet, workers: int) -> None:
    for each in entrants:
        evaluated([each], of, workers)


def loop(root: Path, of: ShiftedSet, workers: int, timed: Timed) -> None:
    paths = sorted((root / "photos").glob("*/*.jpg"))
    for name in ("vit_tiny_patch16_224", "vit_small_patch16_224"):
        model = timm.create_model(name).eval()
        transform = create_transform(**resolve_data_config(model=model), is_training=False)  # type: ignore[no-untyped-call]
        variants: dict[str, Callable[[], object]] = {
            "bare loop": partial(bare_loop, Bare(paths, transform), model, workers),
            "eval robustness": partial(evaluated, [load_entrant(saved(name, root))], of, workers),
        }
        report(f"{name}, {len(paths)} photos", timed(variants), peer="bare loop", samples=len(paths))


def several(root: Path, of: ShiftedSet, workers: int, timed: Timed) -> None:
    entrants = [load_entrant(saved("test_resnet", root)) for _ in range(4)]  # each with random weights of its own
    photos = len(of.cells[0].scenes)
    variants: dict[str, Callable[[], object]] = {
        "one model": partial(evaluated, entrants[:1], of, workers),
        "four at once": partial(evaluated, entrants, of, workers),
        "four one by one": partial(one_by_one, entrants, of, workers),
        "photos alone": lambda: [entrants[0].view(of.cells[0].scenes[row].maps["rgb"]) for row in range(photos)],
    }
    report("Four small models", timed(variants), peer="four one by one", samples=photos)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", choices=["loop", "several"])
    parser.add_argument("--photos", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--workers", type=int, default=0)
    asked = parser.parse_args()
    clock = time.perf_counter if asked.workers or torch.get_num_threads() > 1 else time.process_time
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        write_photos(root / "photos", asked.photos)
        of = open_shifted("sketch", root / "photos")
        if "loop" in (asked.parts or ["loop"]):
            loop(root, of, asked.workers, partial(alternate, rounds=asked.rounds, clock=clock))
        if "several" in (asked.parts or ["several"]):
            several(root, of, asked.workers, partial(alternate, rounds=asked.rounds, clock=clock))


if __name__ == "__main__":
    main()
