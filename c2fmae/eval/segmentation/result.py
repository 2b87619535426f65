"""Results of tests of segmenters: metrics, identity and files."""

from collections.abc import Sequence
from math import isnan
from typing import Any

from c2fmae.core.config import Config
from c2fmae.core.csv_text import format_csv
from c2fmae.core.files import write_atomic
from c2fmae.core.labels import ClassInfo
from c2fmae.core.text import format_count
from c2fmae.data import Scenes
from c2fmae.eval.best_checkpoint import BestScore
from c2fmae.eval.class_sections import list_confused_pairs
from c2fmae.eval.metrics import Metric
from c2fmae.eval.results import EvaluationResult
from c2fmae.eval.segmentation.examples import draw_examples
from c2fmae.eval.segmentation.prediction_store import PredictionStore
from c2fmae.eval.segmentation.report import (
    CLASSES_FILE,
    CONFUSION_FILE,
    EXAMPLES_FILE,
    make_segmentation_sections,
)
from c2fmae.eval.segmentation.scores import SegmentationScores
from c2fmae.eval.training_results import TestRecord, TrainingResults
from c2fmae.report.drawing import save_png

SEGMENT_RESULTS = TrainingResults("segment", protocol_version=1, ignored_settings=frozenset({"batch_size"}))

_CLASS_COLUMNS = ("class", "name", "pixels", "images", "IoU", "accuracy", "mistaken for", "mistaken pixels")


def write_segmentation_result(
    record: TestRecord,
    config: Config,
    scores: SegmentationScores,
    classes: Sequence[ClassInfo],
    scenes: Scenes,
    store: PredictionStore,
    *,
    average_scores: SegmentationScores | None = None,
    best: BestScore | None = None,
) -> EvaluationResult:
    """Write the result of a test, its tables and examples of its predictions, and its page.

    `scenes` is the test set, whose predictions are in the `store`; `best` is the highest mIoU during training.
    """
    result_dir = record.result_dir
    names = [entry.name for entry in classes]
    metrics = build_segmentation_metrics(scores, average_scores, best)
    write_atomic(result_dir / CLASSES_FILE, format_csv(_CLASS_COLUMNS, _list_class_rows(scores, names)).encode())
    confusion = ([name, *row] for name, row in zip(names, scores.confusion.tolist(), strict=True))
    write_atomic(result_dir / CONFUSION_FILE, format_csv(["truth / predicted", *names], confusion).encode())
    examples = draw_examples(scenes, store, scores.image_ious(), names)
    if examples is not None:
        save_png(examples, result_dir / EXAMPLES_FILE)
    details = {"classes": _list_class_records(scores, names)}
    return record.save(tuple(metrics), config, details, make_segmentation_sections(result_dir))


def build_segmentation_metrics(
    scores: SegmentationScores,
    average_scores: SegmentationScores | None = None,
    best: BestScore | None = None,
) -> list[Metric]:
    """Return the metrics, those of the last weights first; IoU of classes are in tables of their own."""
    metrics = _scores_to_metrics(scores)
    if average_scores is not None:
        metrics += _scores_to_metrics(average_scores, weights="averaged")
    if best is not None:
        metrics.append(best.to_metric("best_mean_iou", scores.num_images))
    return metrics


def _scores_to_metrics(scores: SegmentationScores, **tags: str) -> list[Metric]:
    bootstrap = scores.bootstrap()
    num_classes = len(scores.confusion)
    notes = {
        "mean_iou": f"{scores.num_scored_classes} of {format_count(num_classes, 'class', 'classes')} occur or are "
        "predicted",
        "pixel_accuracy": f"{scores.num_pixels:,} labelled pixels",
    }
    keys = {"mean_iou": "mean_iou", "mean_class_accuracy": "mean_accuracy", "pixel_accuracy": "pixel_accuracy"}
    metrics = []
    for key, name in keys.items():
        value, (low, high) = bootstrap[name]
        key_notes = (notes[key],) if key in notes else ()
        interval = (100 * low, 100 * high)
        metrics.append(Metric(key, 100 * value, scores.num_images, interval, tags=tags, notes=key_notes))
    return metrics


def _list_class_records(scores: SegmentationScores, names: Sequence[str]) -> list[dict[str, Any]]:
    """Return name, IoU and accuracy in percent, pixels and images of each class; null for a class without a score."""
    columns = (scores.ious, scores.accuracies, scores.totals[1], scores.images_with_class())
    rows = zip(names, *(column.tolist() for column in columns), strict=True)
    return [
        {
            "name": name,
            "iou": None if isnan(iou) else 100 * iou,
            "accuracy": None if isnan(accuracy) else 100 * accuracy,
            "pixels": pixels,
            "images": images,
        }
        for name, iou, accuracy, pixels, images in rows
    ]


def _list_class_rows(scores: SegmentationScores, names: Sequence[str]) -> list[tuple[object, ...]]:
    """Return the rows of the table of classes: empty cells where a class has no score, or no confusion."""
    mistakes: dict[int, tuple[str, int]] = {}
    counts = scores.confusion.tolist()
    for true, predicted in list_confused_pairs(counts):
        mistakes.setdefault(true, (names[predicted], counts[true][predicted]))
    return [
        (
            class_id,
            record["name"],
            record["pixels"],
            record["images"],
            *("" if record[key] is None else f"{record[key]:.2f}" for key in ("iou", "accuracy")),
            *mistakes.get(class_id, ("", 0)),
        )
        for class_id, record in enumerate(_list_class_records(scores, names))
    ]
