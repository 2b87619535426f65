"""Speed of `eval robustness` relative to a bare loop: `python -m benchmarks.bench_robustness [loop] [several] …`.

`loop` compares it with a DataLoader over the same JPEG files with Pillow, timm's transform and timm's model, which
neither matches classes nor stores predictions. `several` compares four models at once with one model, and with four
models one after the other. With --workers 0 and one thread, CPU time is measured, which other load hardly affects.
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

from benchmarks.tables import print_speeds
from c2fmae.core.distributed import World
from c2fmae.data.suites import ShiftedSet, open_shifted_set
from c2fmae.data.suites.official import imagenet_wnids
from c2fmae.eval.cost.speed_and_memory import time_in_turn
from c2fmae.eval.robustness.config import RobustnessEvaluation
from c2fmae.eval.robustness.evaluation import evaluate_robustness
from c2fmae.eval.robustness.image_classifier import ImageClassifier, load_image_classifier

BATCH_SIZE = 32
TimeVariants = Callable[[Mapping[str, Callable[[], object]]], dict[str, list[float]]]


def write_noise_images(folder: Path, count: int) -> None:
    """Write JPEG files of smooth 500×375 noise, about as large as those of ImageNet."""
    generator = torch.Generator().manual_seed(0)
    for number in range(count):
        small = torch.rand(1, 3, 94, 125, generator=generator) * 255
        pixels = nn.functional.interpolate(small, (375, 500), mode="bicubic")[0].clamp(0, 255).to(torch.uint8)
        class_dir = folder / imagenet_wnids()[number % 1000]
        class_dir.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(class_dir / f"{number:05d}.jpg", quality=90)


def save_timm_weights(name: str, folder: Path) -> str:
    """Save a timm model with random weights, and return its source."""
    path = folder / f"{name}.safetensors"
    save_file(timm.create_model(name).state_dict(), path)
    return f"timm:{name}@{path}"


class PillowImages(Dataset[Tensor]):
    """Image files opened by Pillow, with timm's transform."""

    def __init__(self, paths: Sequence[Path], transform: Any) -> None:
        self.paths, self.transform = paths, transform

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Tensor:
        with Image.open(self.paths[index]) as image:
            return self.transform(image.convert("RGB"))  # type: ignore[no-any-return]


@torch.inference_mode()
def run_bare_loop(data: PillowImages, model: nn.Module, workers: int) -> None:
    for images in DataLoader(data, batch_size=BATCH_SIZE, num_workers=workers):
        model(images).argmax(dim=1)


def run_robustness(classifiers: Sequence[ImageClassifier], shifted_set: ShiftedSet, workers: int) -> None:
    config = RobustnessEvaluation(batch_size=BATCH_SIZE, workers=workers)
    with tempfile.TemporaryDirectory() as folder:
        dirs = [Path(folder) / classifier.digest for classifier in classifiers]
        evaluate_robustness(config, classifiers, [shifted_set], None, dirs, World())


def run_one_by_one(classifiers: Sequence[ImageClassifier], shifted_set: ShiftedSet, workers: int) -> None:
    for classifier in classifiers:
        run_robustness([classifier], shifted_set, workers)


def bench_loop(root: Path, shifted_set: ShiftedSet, workers: int, time_variants: TimeVariants) -> None:
    paths = sorted((root / "images").glob("*/*.jpg"))
    for name in ("vit_tiny_patch16_224", "vit_small_patch16_224"):
        model = timm.create_model(name).eval()
        transform = create_transform(**resolve_data_config(model=model), is_training=False)  # type: ignore[no-untyped-call]
        variants: dict[str, Callable[[], object]] = {
            "bare loop": partial(run_bare_loop, PillowImages(paths, transform), model, workers),
            "eval robustness": partial(
                run_robustness, [load_image_classifier(save_timm_weights(name, root))], shifted_set, workers
            ),
        }
        print_speeds(f"{name}, {len(paths)} images", time_variants(variants), peer="bare loop", samples=len(paths))


def bench_several(root: Path, shifted_set: ShiftedSet, workers: int, time_variants: TimeVariants) -> None:
    # Each has random weights of its own.
    classifiers = [load_image_classifier(save_timm_weights("test_resnet", root)) for _ in range(4)]
    num_images = len(shifted_set.cells[0].scenes)
    variants: dict[str, Callable[[], object]] = {
        "one model": partial(run_robustness, classifiers[:1], shifted_set, workers),
        "four at once": partial(run_robustness, classifiers, shifted_set, workers),
        "four one by one": partial(run_one_by_one, classifiers, shifted_set, workers),
        "images alone": lambda: [
            classifiers[0].view(shifted_set.cells[0].scenes[row].maps["rgb"]) for row in range(num_images)
        ],
    }
    print_speeds("Four small models", time_variants(variants), peer="four one by one", samples=num_images)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", choices=["loop", "several"])
    parser.add_argument("--photos", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--workers", type=int, default=0)
    arguments = parser.parse_args()
    clock = time.perf_counter if arguments.workers or torch.get_num_threads() > 1 else time.process_time
    with tempfile.TemporaryDirectory() as temp_dir:
        root = Path(temp_dir)
        write_noise_images(root / "images", arguments.photos)
        shifted_set = open_shifted_set("sketch", root / "images")
        time_variants = partial(time_in_turn, rounds=arguments.rounds, clock=clock)
        if "loop" in (arguments.parts or ["loop"]):
            bench_loop(root, shifted_set, arguments.workers, time_variants)
        if "several" in (arguments.parts or ["several"]):
            bench_several(root, shifted_set, arguments.workers, time_variants)


if __name__ == "__main__":
    main()
