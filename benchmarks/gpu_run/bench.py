"""What stages share: the device, the file of results, configs and batches of both sizes, and a clock."""

import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from c2fmae.config.pretrain import PretrainConfig
from c2fmae.core.granularity import GRANULARITIES
from c2fmae.core.scene import SceneBatch
from c2fmae.methods import MaskedAutoencoding
from c2fmae.models.patches import label_stride
from c2fmae.recipes.config import load_recipe

TINY = (
    "method.encoder.name=test_vit",
    "method.encoder.depth=2",
    "method.image_size=[64, 64]",
    "method.decoder.options.dim=64",
    "method.decoder.options.num_heads=4",
    "method.decoder.options.depth=1",
)
"""Settings of the rehearsal on a CPU: the same wiring in miniature."""


@dataclass(frozen=True)
class Bench:
    """The device, the directories of results and of data, and the stage that runs."""

    out: Path
    work: Path
    is_cpu: bool
    stage: str = ""

    @property
    def device(self) -> torch.device:
        """The device that is measured."""
        return torch.device("cpu") if self.is_cpu else torch.device("cuda", 0)

    @property
    def batch_size(self) -> int:
        """The usual number of images in a batch."""
        return 4 if self.is_cpu else 256

    @property
    def num_rounds(self) -> int:
        """How often a call is timed."""
        return 2 if self.is_cpu else 20

    def record(self, name: str, value: float, unit: str, comment: str = "") -> None:
        """Append a result to the file, and print it. The value of what failed is NaN."""
        row = {"stage": self.stage, "name": name, "value": value, "unit": unit, "comment": comment}
        with (self.out / "results.jsonl").open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(f"  {name}: {value:.6g} {unit} {comment}", flush=True)

    def find(self, name: str) -> float | None:
        """Return an earlier result; None if there is none."""
        return next((row["value"] for row in reversed(self.read_results()) if row["name"] == name), None)

    def read_results(self) -> list[dict[str, Any]]:
        """Return the results of all stages up to now."""
        path = self.out / "results.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def synchronise(self) -> None:
        """Wait for the device."""
        if not self.is_cpu:
            torch.cuda.synchronize()

    def load_config(self, recipe: str, *overrides: str) -> PretrainConfig:
        """Return the config of a recipe, for a thousand steps of the usual batch."""
        length = ("training.steps=1000", "training.warmup_steps=2", f"training.batch_size={self.batch_size}")
        device = f"training.device={self.device.type}"
        precision = "training.precision=bf16"
        return load_recipe(recipe, [*(TINY if self.is_cpu else ()), *length, device, precision, *overrides])

    def draw_scenes(self, method: MaskedAutoencoding, num_scenes: int) -> SceneBatch:
        """Return random scenes in pinned memory: noise for images, and blobs of ids."""
        config, generator = method.config, torch.Generator().manual_seed(0)
        height, width = config.image_size
        stride, maps = label_stride(method.patch_size), dict[str, Tensor]()
        for name in config.granularities:
            channels = config.num_channels(name)
            if GRANULARITIES.get(name).kind == "ids":
                blob_grid = (num_scenes, height // 32, width // 32)
                blobs = torch.randint(0, min(channels, 12), blob_grid, generator=generator, dtype=torch.uint8)
                maps[name] = blobs.repeat_interleave(32 // stride, 1).repeat_interleave(32 // stride, 2)
            else:
                size = (num_scenes, channels, height, width)
                maps[name] = torch.randint(0, 256, size, generator=generator, dtype=torch.uint8)
        keys = tuple(f"scene-{index}" for index in range(num_scenes))
        scenes = SceneBatch(keys, maps, (None,) * num_scenes)
        return scenes if self.is_cpu else scenes.pin_memory()


def time_calls(bench: Bench, call: Callable[[], object], *, num_warmup: int = 5) -> tuple[float, float]:
    """Return the median and the least seconds of a call, on the device's clock."""
    for _ in range(1 if bench.is_cpu else num_warmup):
        call()
    bench.synchronise()
    seconds = []
    for _ in range(bench.num_rounds):
        if bench.is_cpu:
            start = time.perf_counter()
            call()
            seconds.append(time.perf_counter() - start)
        else:
            first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            first.record()
            call()
            last.record()
            last.synchronize()
            seconds.append(first.elapsed_time(last) / 1e3)
    return statistics.median(seconds), min(seconds)
