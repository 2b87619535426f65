"""Time of COCO's metrics by faster-coco-eval beside pycocotools, and of bootstrap intervals, on synthetic detections.

The 2,000 images have COCO's size and about its number of objects; each has 40 detections, a third of them near objects.
Both engines get the same dictionaries, and all numbers are compared. `--images N` changes their number.
"""

import argparse
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from pycocotools import mask as coco_mask  # type: ignore[import-untyped]

from benchmarks.tables import print_costs
from c2fmae.eval.cost.speed_and_memory import time_in_turn
from c2fmae.eval.detection.engines import Engine, Kind, evaluate_coco
from c2fmae.eval.detection.matching import ClassMatches, average_precision, match_classes
from c2fmae.eval.intervals import poisson_weights

SIZE, NUM_CLASSES, NUM_OBJECTS, NUM_DETECTIONS = (480, 640), 80, 7, 40
ENGINES: tuple[Engine, ...] = ("pycocotools", "faster-coco-eval")
KINDS: tuple[Kind, ...] = ("bbox", "segm")
NUM_ROUNDS, NUM_SAMPLES = 2, 100


def draw_boxes(rng: np.random.Generator, count: int) -> Any:
    """Return left, top, width and height of boxes, most of them small."""
    sides = 8 * 40 ** rng.random((count, 2))
    return np.concatenate([rng.random((count, 2)) * (np.array(SIZE[::-1]) - sides), sides], axis=1)


def draw_mask(x: float, y: float, width: float, height: float) -> dict[str, Any]:
    """Return the run lengths of an octagon in a box."""
    corners = [(0.3, 0), (0.7, 0), (1, 0.3), (1, 0.7), (0.7, 1), (0.3, 1), (0, 0.7), (0, 0.3)]
    outline = [value for across, down in corners for value in (x + across * width, y + down * height)]
    rle: dict[str, Any] = coco_mask.frPyObjects([outline], *SIZE)[0]
    return rle


def draw_set(num_images: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return objects and detections as in COCO's files."""
    rng = np.random.default_rng(0)
    annotations: list[dict[str, Any]] = []
    results: list[dict[str, Any]] = []
    for image_id in range(1, num_images + 1):
        boxes = draw_boxes(rng, int(rng.integers(1, 2 * NUM_OBJECTS)))
        labels = rng.integers(1, NUM_CLASSES + 1, len(boxes))
        near = rng.integers(0, len(boxes), NUM_DETECTIONS // 3)
        shifted = boxes[near] * np.exp(rng.normal(0, 0.05, (len(near), 4)))
        detected = np.concatenate([shifted, draw_boxes(rng, NUM_DETECTIONS - len(near))])
        detected_labels = np.concatenate([labels[near], rng.integers(1, NUM_CLASSES + 1, NUM_DETECTIONS - len(near))])
        scores = np.concatenate([rng.beta(4, 2, len(near)), rng.beta(1, 6, NUM_DETECTIONS - len(near))])
        for box, label in zip(boxes.tolist(), labels.tolist(), strict=True):
            entry = {"image_id": image_id, "category_id": label, "bbox": box, "segmentation": draw_mask(*box)}
            annotations.append({**entry, "area": 0.8 * box[2] * box[3], "iscrowd": int(rng.random() < 0.01)})
        for box, label, score in zip(detected.tolist(), detected_labels.tolist(), scores.tolist(), strict=True):
            entry = {"image_id": image_id, "category_id": label, "bbox": box, "segmentation": draw_mask(*box)}
            results.append({**entry, "score": score})
    images = [{"id": image_id, "height": SIZE[0], "width": SIZE[1]} for image_id in range(1, num_images + 1)]
    categories = [{"id": label, "name": str(label)} for label in range(1, NUM_CLASSES + 1)]
    return {"images": images, "categories": categories, "annotations": annotations}, results


def evaluate_and_check(num_images: int) -> None:
    """Print the time of each part for boxes and masks, after comparing all numbers of the engines."""
    truth, results = draw_set(num_images)
    weights = poisson_weights(torch.arange(num_images), seed=0, num_replicates=NUM_SAMPLES).numpy()
    print(f"{num_images:,} images, {len(truth['annotations']):,} objects, {len(results):,} detections")
    for kind in KINDS:
        first, second = (evaluate_coco(truth, results, kind, engine) for engine in ENGINES)
        np.testing.assert_allclose(first.precision, second.precision, rtol=0, atol=1e-12)
        np.testing.assert_allclose(first.recall, second.recall, rtol=0, atol=1e-12)
        matches = match_classes(truth, results, second)
        calls: dict[str, Callable[[], object]] = {
            engine: partial(evaluate_coco, truth, results, kind, engine) for engine in ENGINES
        }
        calls["matches of objects"] = partial(match_classes, truth, results, second)
        calls[f"AP of {NUM_SAMPLES} bootstrap samples"] = partial(sample_ap, matches, weights)
        seconds = time_in_turn(calls, rounds=NUM_ROUNDS)
        title = f"{kind}, AP {100 * (second.compute_metrics()['AP'] or 0):.1f} %, all numbers equal to 1e-12"
        print_costs(title, seconds, peers=["pycocotools"], samples=num_images)


def sample_ap(matches: list[ClassMatches], weights: Any) -> list[Any]:
    """Return AP of each class in all samples."""
    return [average_precision(entry, weights) for entry in matches]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=2000)
    torch.set_num_threads(1)
    evaluate_and_check(parser.parse_args().images)


if __name__ == "__main__":
    main()
