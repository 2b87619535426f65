"""Results of tests of detectors: metrics, identity and files."""

from collections.abc import Iterator, Sequence

from c2fmae.core.csv_text import format_csv
from c2fmae.core.files import write_atomic
from c2fmae.core.labels import ClassInfo
from c2fmae.core.text import format_count
from c2fmae.data import Scenes
from c2fmae.eval.best_checkpoint import BestScore
from c2fmae.eval.class_sections import list_confused_pairs
from c2fmae.eval.detection.config import DetectConfig
from c2fmae.eval.detection.examples import draw_examples
from c2fmae.eval.detection.prediction_store import DetectionStore
from c2fmae.eval.detection.report import (
    CLASSES_FILE,
    CONFUSION_FILE,
    CURVES_FILE,
    ERRORS_FILE,
    EXAMPLES_FILE,
    MEAN_CURVE,
    SIZES_FILE,
    make_detection_sections,
)
from c2fmae.eval.detection.scores import CURVE_IOUS, DetectionScores
from c2fmae.eval.metrics import Metric
from c2fmae.eval.results import EvaluationResult
from c2fmae.eval.training_results import TestRecord, TrainingResults
from c2fmae.report.drawing import save_png

DETECT_RESULTS = TrainingResults(
    "detect",
    protocol_version=1,
    ignored_settings=frozenset({"engine"}),  # all engines give the same numbers
    score_settings=frozenset({"confusion_score", "intervals"}),
)

_METRIC_KEYS = {
    "AP": "ap",
    "AP50": "ap50",
    "AP75": "ap75",
    "APs": "ap_small",
    "APm": "ap_medium",
    "APl": "ap_large",
    "AR1": "ar1",
    "AR10": "ar10",
    "AR100": "ar100",
    "ARs": "ar_small",
    "ARm": "ar_medium",
    "ARl": "ar_large",
}


def write_detection_result(
    record: TestRecord,
    config: DetectConfig,
    scores: DetectionScores,
    classes: Sequence[ClassInfo],
    scenes: Scenes,
    store: DetectionStore,
    *,
    average_scores: DetectionScores | None = None,
    best: BestScore | None = None,
) -> EvaluationResult:
    """Write the result of a test, its tables and examples of its detections, and its page.

    `scenes` is the test set, whose detections are in the `store`; `best` is the highest AP during training.
    """
    result_dir = record.result_dir
    names, testing = [entry.name for entry in classes], config.testing
    metrics = build_detection_metrics(
        scores, average_scores, best, best_kind=config.select_by, num_samples=testing.intervals
    )
    for name, table in make_tables(scores, names, testing.confusion_score).items():
        write_atomic(result_dir / name, table.encode())
    examples = draw_examples(scenes, store, scores, names, min_score=testing.confusion_score)
    if examples is not None:
        save_png(examples, result_dir / EXAMPLES_FILE)
    details = {
        "coco": {kind: dict(kind_scores.metrics) for kind, kind_scores in scores.kinds.items()},
        "errors": dict(scores.error_counts),
    }
    return record.save(tuple(metrics), config, details, make_detection_sections(result_dir))


def build_detection_metrics(
    scores: DetectionScores,
    average_scores: DetectionScores | None = None,
    best: BestScore | None = None,
    *,
    best_kind: str = "box",
    num_samples: int = 0,
) -> list[Metric]:
    """Return the metrics, those of the last weights first, AP with intervals from `num_samples` bootstrap samples.

    A metric of a size that no object has is left out.
    """
    metrics = _scores_to_metrics(scores, num_samples)
    if average_scores is not None:
        metrics += _scores_to_metrics(average_scores, num_samples, weights="averaged")
    if best is not None:
        metrics.append(best.to_metric("best_ap", scores.num_images, object_kind=best_kind))
    return metrics


def _scores_to_metrics(scores: DetectionScores, num_samples: int, **tags: str) -> list[Metric]:
    num_scored = int((scores.class_objects > 0).sum())
    num_classes = format_count(len(scores.class_objects), "class", "classes")
    note = f"{scores.num_objects:,} objects of {num_scored} of {num_classes}"
    metrics: list[Metric] = []
    for kind, kind_scores in scores.kinds.items():
        intervals = kind_scores.bootstrap(scores.num_images, num_samples) if num_samples else {}
        for name, value in kind_scores.metrics.items():
            if value is None:
                continue
            interval = (100 * intervals[name][0], 100 * intervals[name][1]) if name in intervals else None
            metrics.append(
                Metric(
                    _METRIC_KEYS[name],
                    100 * value,
                    scores.num_images,
                    interval,
                    tags={"object_kind": kind, **tags},
                    notes=(note,) if not metrics else (),
                )
            )
    return metrics


def make_tables(scores: DetectionScores, names: Sequence[str], confusion_score: float) -> dict[str, str]:
    """Return the tables of a result as CSV by file name. Where there is no score, the cell is empty.

    `confusion_score` is the lowest score of the detections in the confusion matrix and among the errors.
    """
    kinds = scores.kinds
    class_columns = ["class", "name", "objects", *(f"{kind} {name}" for kind in kinds for name in ("AP", "AP50", "AR"))]
    curve_columns = ["kind", "class", "recall", *(f"precision at IoU {iou:g}" for iou in CURVE_IOUS)]
    size_columns = ["size", "objects", *(f"{kind} {name}" for kind in kinds for name in ("AP", "AR"))]
    confusion = zip([*names, "false alarm"], scores.confusion.tolist(), strict=True)
    return {
        CLASSES_FILE: format_csv([*class_columns, "mistaken for", "mistaken objects"], _list_class_rows(scores, names)),
        CURVES_FILE: format_csv(curve_columns, _list_curve_rows(scores, names)),
        SIZES_FILE: format_csv(size_columns, _list_size_rows(scores)),
        CONFUSION_FILE: format_csv(
            ["truth / predicted", *names, "missed"], ([name, *counts] for name, counts in confusion)
        ),
        ERRORS_FILE: format_csv(
            ("error", "count", "lowest score"),
            ((name, count, f"{confusion_score:g}") for name, count in scores.error_counts.items()),
        ),
    }


def _list_class_rows(scores: DetectionScores, names: Sequence[str]) -> list[list[object]]:
    counts = scores.confusion[:-1, :-1].tolist()
    mistakes: dict[int, tuple[str, int]] = {}
    for true, predicted in list_confused_pairs(counts):
        mistakes.setdefault(true, (names[predicted], counts[true][predicted]))
    rows = []
    for label, (name, num_objects) in enumerate(zip(names, scores.class_objects.tolist(), strict=True)):
        values = [
            column[label]
            for kind in scores.kinds.values()
            for column in (kind.class_ap, kind.class_ap50, kind.class_ar)
        ]
        rows.append([label, name, num_objects, *map(_to_percent, values), *mistakes.get(label, ("", 0))])
    return rows


def _list_size_rows(scores: DetectionScores) -> list[list[object]]:
    metrics = [kind.metrics for kind in scores.kinds.values()]
    sizes = {"small": ("APs", "ARs"), "medium": ("APm", "ARm"), "large": ("APl", "ARl"), "all": ("AP", "AR100")}
    counts = [*scores.size_objects, scores.num_objects]
    return [
        [size, count, *(_to_percent(kind[name]) for kind in metrics for name in columns)]
        for (size, columns), count in zip(sizes.items(), counts, strict=True)
    ]


def _list_curve_rows(scores: DetectionScores, names: Sequence[str]) -> Iterator[list[object]]:
    """Yield the precision of the mean over classes, and of each class that occurs, by recall."""
    for kind, kind_scores in scores.kinds.items():
        curves_by_name = [(MEAN_CURVE, kind_scores.curves.nanmean(dim=2))]
        curves_by_name += zip(names, kind_scores.curves.unbind(dim=2), strict=True)
        for name, curves in curves_by_name:
            if not curves.isnan().any():
                for recall, precision in enumerate(curves.T.tolist()):
                    yield [kind, name, f"{recall / 100:g}", *(f"{value:.4f}" for value in precision)]


def _to_percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.2f}"
