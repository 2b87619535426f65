"""Masks of 100 boxes on an image of 12 megapixels, from logits to objects: `python -m benchmarks.bench_grounded`.

Prints the growth of the process's peak memory and the time of its thread at strides 4 and 1, beside the way of
transformers: 32 masks at full size, of which a stride takes the cells. The model itself is not part of it.
"""

import os

os.environ["OMP_NUM_THREADS"] = "1"  # read on import of torch

import resource
import subprocess
import sys
import time
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from c2fmae.labelling.grounded.segmenter import BoxSegmenter, EncodedImage
from c2fmae.labelling.objects import ObjectRules, finish_objects

NUM_BOXES, HEIGHT, WIDTH, CANVAS, NUM_LOGITS = 100, 3000, 4000, 1024, 256


class FixedLogits(BoxSegmenter):
    """A segmenter with given logits in place of a model."""

    def __init__(self, logits: Tensor) -> None:
        size = SimpleNamespace(longest_edge=CANVAS)
        processor = SimpleNamespace(size=size, pad_size=SimpleNamespace(height=CANVAS, width=CANVAS))
        pretrained: Any = SimpleNamespace(model_type="sam", processor=SimpleNamespace(image_processor=processor))
        super().__init__(pretrained, autocast=nullcontext)
        self.logits = logits

    def _decode(self, encoded: EncodedImage, boxes: Tensor) -> tuple[Tensor, Tensor]:
        del encoded
        rows = boxes[:, 0].long()
        return self.logits[rows], torch.ones(len(rows))


def draw_logits() -> Tensor:
    """Return logits that are positive in a disc for each box."""
    generator = torch.Generator().manual_seed(0)
    centres, radii = torch.rand(NUM_BOXES, 2, generator=generator), torch.rand(NUM_BOXES, generator=generator) / 5
    axis = torch.arange(NUM_LOGITS) / NUM_LOGITS
    rows, columns = axis[:, None] - centres[:, 0, None, None] * 0.75, axis - centres[:, 1, None, None]
    return (radii[:, None, None] - (rows**2 + columns**2).sqrt()) * 50


def measure(stride: int) -> None:
    torch.set_num_threads(1)
    segmenter = FixedLogits(draw_logits())
    boxes = torch.arange(NUM_BOXES)[:, None].expand(-1, 4)
    encoded = EncodedImage((HEIGHT, WIDTH), (CANVAS * HEIGHT // WIDTH, CANVAS), {})
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.thread_time()
    masks = torch.empty((NUM_BOXES, -(-HEIGHT // stride), -(-WIDTH // stride)), dtype=torch.bool)
    qualities = segmenter.segment(encoded, boxes, stride, masks)
    sampled, segmented = time.thread_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    _, objects = finish_objects(
        masks,
        torch.linspace(1, 0.5, NUM_BOXES),
        [None] * NUM_BOXES,
        [None] * NUM_BOXES,
        [None] * NUM_BOXES,
        stride=stride,
        image_size=(HEIGHT, WIDTH),
        rules=ObjectRules(),
        qualities=qualities,
    )
    done, finished = time.thread_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(
        f"stride {stride}: masks {sampled - start:.2f} s, peak +{(segmented - before) / 1e6:.2f} GB;"
        f" {len(objects)} objects {done - sampled:.2f} s, peak +{(finished - before) / 1e6:.2f} GB",
        flush=True,
    )


def measure_baseline() -> None:
    torch.set_num_threads(1)
    logits = draw_logits()[:32, None]
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.thread_time()
    resized = F.interpolate(logits, (CANVAS, CANVAS), mode="bilinear", align_corners=False)
    resized = resized[..., : CANVAS * HEIGHT // WIDTH, :]
    masks = F.interpolate(resized, (HEIGHT, WIDTH), mode="bilinear", align_corners=False) > 0
    masks = masks[..., 2::4, 2::4].clone()
    seconds, peak = time.thread_time() - start, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    print(f"full size, then stride 4: 32 masks {seconds:.2f} s, peak +{peak / 1e6:.2f} GB", flush=True)


def main() -> None:
    if len(sys.argv) > 1:  # a process for each measurement, because peaks do not fall
        measure_baseline() if sys.argv[1] == "baseline" else measure(int(sys.argv[1]))
        return
    for argument in ("4", "1", "baseline"):
        subprocess.run([sys.executable, "-m", "benchmarks.bench_grounded", argument], check=True)


if __name__ == "__main__":
    main()
