"""From the queries of a panoptic segmenter to the maps of an image: `python -m benchmarks.bench_universal`.

An image of 500×375 pixels, 200 queries of EoMT at 640 pixels, 133 classes, stride 4; the model itself is not part of
it. Prints the time of one thread (the minimum of several calls) and the growth of the process's peak memory, beside the
post-processing of transformers, which makes maps at full size, of which a stride takes the cells.
"""

import os

os.environ["OMP_NUM_THREADS"] = "1"  # read on import of torch

import resource
import subprocess
import sys
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from c2fmae.labelling.objects import ObjectRules, finish_objects
from c2fmae.labelling.universal.query_maps import ObjectMasks, SemanticMap
from c2fmae.labelling.universal.segmenter import QueryOutputs

NUM_QUERIES, NUM_CLASSES, CANVAS, HEIGHT, WIDTH, STRIDE, REPEATS = 200, 133, 640, 375, 500, 4, 7
RESIZED = (480, 640)


def draw_outputs() -> QueryOutputs:
    """Return queries with smooth masks, of which about a third has a class."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randn((NUM_QUERIES, 1, 10, 10), generator=generator) * 6 - 3
    masks = torch.nn.functional.interpolate(coarse, (CANVAS // 4, CANVAS // 4), mode="bilinear")[:, 0]
    classes = torch.randn((NUM_QUERIES, NUM_CLASSES + 1), generator=generator)
    classes[torch.arange(NUM_QUERIES // 3), torch.arange(NUM_QUERIES // 3)] += 12
    classes[NUM_QUERIES // 3 :, -1] += 12
    return QueryOutputs(masks, classes, (CANVAS, CANVAS), RESIZED, (HEIGHT, WIDTH))


def make_semantic_map(outputs: QueryOutputs) -> Tensor:
    """Return the semantic map alone."""
    semantic = SemanticMap(outputs.class_logits.softmax(dim=1)[:, :-1], 0.0)
    for masks in outputs.sample_masks(STRIDE):
        semantic.add_rows(masks)
    return semantic.finish()[0]


def make_both_maps(outputs: QueryOutputs) -> Tensor:
    """Return the semantic map; the objects and their map are made as well."""
    probabilities = outputs.class_logits.softmax(dim=1)
    semantic = SemanticMap(probabilities[:, :-1], 0.0)
    is_thing = torch.arange(NUM_CLASSES) < 80
    objects = ObjectMasks(probabilities, is_thing, min_score=0.8, mask_threshold=0.5, min_visible=0.8)
    for masks in outputs.sample_masks(STRIDE):
        semantic.add_rows(masks)
        objects.add_rows(masks)
    found = objects.finish()
    none = [None] * len(found.labels)
    rules = ObjectRules(order="score")
    finish_objects(found.masks, found.scores, none, none, none, stride=STRIDE, image_size=(HEIGHT, WIDTH), rules=rules)
    return semantic.finish()[0]


def post_process(outputs: QueryOutputs) -> Tensor:
    """Return the semantic map of transformers, subsampled. Its last rows are those of the padding."""
    found: Tensor = run_post_processing(outputs, "semantic")
    return found[STRIDE // 2 :: STRIDE, STRIDE // 2 :: STRIDE]


def post_process_panoptic(outputs: QueryOutputs) -> Tensor:
    """Return the panoptic map of transformers."""
    found: Tensor = run_post_processing(outputs, "panoptic")["segmentation"]
    return found


def run_post_processing(outputs: QueryOutputs, task: str) -> Any:
    from transformers import EomtImageProcessor

    processor = EomtImageProcessor(size={"shortest_edge": CANVAS, "longest_edge": CANVAS}, do_pad=True)
    given = SimpleNamespace(
        masks_queries_logits=outputs.mask_logits[None],
        class_queries_logits=outputs.class_logits[None],
        patch_offsets=None,
    )
    return getattr(processor, f"post_process_{task}_segmentation")(given, target_sizes=[(HEIGHT, WIDTH)])[0]


WAYS: dict[str, Callable[[QueryOutputs], Tensor]] = {
    "semantic map": make_semantic_map,
    "both maps": make_both_maps,
    "transformers, semantic map": post_process,
    "transformers, panoptic map": post_process_panoptic,
}


def measure(name: str) -> None:
    """Print the time and the growth of peak memory of one way."""
    torch.set_num_threads(1)
    outputs = draw_outputs()
    if name.startswith("transformers"):
        import transformers.models.eomt.image_processing_eomt  # noqa: F401 - before memory is measured
    before, times = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, []
    with torch.inference_mode():
        for _ in range(REPEATS):
            start = time.thread_time()
            WAYS[name](outputs)
            times.append(time.thread_time() - start)
    growth = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    print(f"{name}: {min(times) * 1e3:.0f} ms, peak +{growth / 1e3:.0f} MB", flush=True)


def main() -> None:
    """Measure each way in a process of its own, because peaks do not fall."""
    if len(sys.argv) > 1:
        measure(sys.argv[1])
        return
    for name in WAYS:
        subprocess.run([sys.executable, "-m", "benchmarks.bench_universal", name], check=True)


if __name__ == "__main__":
    main()
