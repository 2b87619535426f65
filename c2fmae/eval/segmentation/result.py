"""Results of tests of segmenters: metrics, identity and files."""

from collections.abc import Mapping, Sequence
from math import isnan
from pathlib import Path
from typing import Any

from c2fmae.core.config import Config
from c2fmae.core.csv_text import format_csv
from c2fmae.core.environment import collect_environment
from c2fmae.core.files import write_atomic
from c2fmae.core.labels import ClassInfo
from c2fmae.core.text import format_count
from c2fmae.data import Scenes
from c2fmae.eval.class_sections import list_confused_pairs
from c2fmae.eval.metrics import Metric
from c2fmae.eval.results import (
    RESULT_FORMAT,
    EvaluationResult,
    find_training_result,
    load_result,
    locate_training_result,
    save_result,
)
from c2fmae.eval.segmentation.examples import draw_examples
from c2fmae.eval.segmentation.prediction_store import PredictionStore
from c2fmae.eval.segmentation.report import (
    CLASSES_FILE,
    CONFUSION_FILE,
    EXAMPLES_FILE,
    make_segmentation_sections,
)
from c2fmae.eval.segmentation.scores import SegmentationScores
from c2fmae.eval.segmentation.testing_config import TestingConfig
from c2fmae.report.drawing import save_png

SEGMENT_EVALUATION = "segment"
PROTOCOL_VERSION = 1
"""Increase it when the same settings give other numbers, so that stored results are recomputed."""
PREDICTIONS_DIR = "predictions"

_CLASS_COLUMNS = ("class", "name", "pixels", "images", "IoU", "accuracy", "mistaken for", "mistaken pixels")


def locate_result_dir(run_dir: Path, identity: Mapping[str, Any] | None = None) -> Path:
    """Return the directory of the result of a run's own test, or of another test of its weights."""
    return locate_training_result(run_dir, SEGMENT_EVALUATION, identity)


def identify_predictions(weights: str, test_identity: str, testing: TestingConfig) -> dict[str, Any]:
    """Return everything that predictions depend on, from the digests of the weights and of the test set."""
    settings = testing.model_dump(mode="json", exclude={"batch_size"})
    return {"protocol_version": PROTOCOL_VERSION, "testing": settings, "weights": weights, "data": test_identity}


def identify_result(weights: str, test_identity: str, testing: TestingConfig) -> dict[str, Any]:
    """Return everything that a result depends on."""
    predictions = identify_predictions(weights, test_identity, testing)
    inputs = {"test": predictions.pop("data")}
    return {"format": RESULT_FORMAT, "evaluation": SEGMENT_EVALUATION, **predictions, "inputs": inputs}


def find_segmentation_result(run_dir: Path, identity: Mapping[str, Any]) -> EvaluationResult | None:
    """Return the stored result of a run with this identity; None if there is none."""
    return find_training_result(run_dir, SEGMENT_EVALUATION, identity)


def read_segmentation_result(run_dir: Path) -> EvaluationResult:
    """Return the stored result of a run's own test."""
    return load_result(locate_result_dir(run_dir))


def write_segmentation_result(
    result_dir: Path,
    config: Config,
    scores: SegmentationScores,
    classes: Sequence[ClassInfo],
    protocol: str,
    *,
    title: str,
    identity: Mapping[str, Any],
    scenes: Scenes,
    load_report: str,
    world_size: int,
    average_scores: SegmentationScores | None = None,
    best: tuple[int | None, float] = (None, 0.0),
) -> EvaluationResult:
    """Write the result of a test, its tables and examples of its predictions, and its page.

    `scenes` is the test set, whose predictions are in the directory already; `best` is the step with the highest mIoU
    during training, and this mIoU.
    """
    names = [entry.name for entry in classes]
    metrics = build_segmentation_metrics(scores, average_scores, best)
    write_atomic(result_dir / CLASSES_FILE, format_csv(_CLASS_COLUMNS, _list_class_rows(scores, names)).encode())
    confusion = ([name, *row] for name, row in zip(names, scores.confusion.tolist(), strict=True))
    write_atomic(result_dir / CONFUSION_FILE, format_csv(["truth / predicted", *names], confusion).encode())
    store = PredictionStore(result_dir / PREDICTIONS_DIR, {})
    examples = draw_examples(scenes, store, scores.image_ious(), names)
    if examples is not None:
        save_png(examples, result_dir / EXAMPLES_FILE)
    result = EvaluationResult(SEGMENT_EVALUATION, title, protocol, tuple(metrics), result_dir, is_new=True)
    metadata = {
        **identity,
        "config": config.model_dump(mode="json"),
        "classes": _list_class_records(scores, names),
        "load_report": load_report,
        "environment": collect_environment(world_size=world_size),
    }
    save_result(result, metadata, make_segmentation_sections(result_dir))
    return result


def build_segmentation_metrics(
    scores: SegmentationScores,
    average_scores: SegmentationScores | None = None,
    best: tuple[int | None, float] = (None, 0.0),
) -> list[Metric]:
    """Return the metrics, those of the last weights first; IoU of classes are in tables of their own."""
    metrics = _scores_to_metrics(scores)
    if average_scores is not None:
        metrics += _scores_to_metrics(average_scores, weights="averaged")
    if best[0] is not None:
        note = f"step {best[0]:,}: chosen on the test images, so it is biased upwards"
        metrics.append(Metric("best_mean_iou", 100 * best[1], scores.num_images, notes=(note,)))
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
