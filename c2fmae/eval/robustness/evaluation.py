"""Robustness of classifiers: which predictions each set takes, and the metrics that follow from them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from c2fmae.core.distributed import World
from c2fmae.core.errors import UserError, unknown_name_error
from c2fmae.data import CentralView
from c2fmae.data.corruption.names import CENTRE_CROP_RATIO
from c2fmae.data.suites import CUSTOM, Cell, ShiftedSet, open_shifted_set
from c2fmae.eval.engine import BatchingConfig
from c2fmae.eval.evaluation import ModelUnderTest, Outcome
from c2fmae.eval.metrics import Metric, TagValue, find_metric
from c2fmae.eval.robustness.accuracy_metrics import (
    ALL_CLASSES,
    CellPredictions,
    SetPredictions,
    compute_accuracy_metrics,
    is_corruption_grid,
)
from c2fmae.eval.robustness.class_matching import ClassMatching, match_classes
from c2fmae.eval.robustness.config import EvaluationSetConfig, RobustnessEvaluation
from c2fmae.eval.robustness.corruption_metrics import compute_corruption_metrics
from c2fmae.eval.robustness.image_classifier import CentralImageView, ImageClassifier, ImageView, UncroppedImageView
from c2fmae.eval.robustness.inference import CellRequests, PredictionRequest, run_predictions, select_pending
from c2fmae.eval.robustness.prediction_store import compute_prediction_identity, prediction_path, read_predictions
from c2fmae.eval.robustness.scores import compute_paper_score

SUBSET_200, OWN_CLASSES = "subset-200", "own classes"
SCORE_METRICS: tuple[tuple[str, dict[str, str]], ...] = (
    ("top1", {"set": "imagenet-a", "classes": SUBSET_200}),
    ("top1", {"set": "imagenet-r", "classes": SUBSET_200}),
    ("top1", {"set": "sketch"}),
    ("mce", {"set": "imagenet-c"}),
)
"""Key and tags of the metrics that the paper's score is made of."""


@dataclass(frozen=True)
class RobustnessResult:
    """The metrics of one classifier, and its predictions by set."""

    classifier: ImageClassifier
    metrics: tuple[Metric, ...]
    set_predictions: tuple[SetPredictions, ...]


def run_robustness(
    config: RobustnessEvaluation, models: Sequence[ModelUnderTest], *, recompute: bool = False
) -> Iterator[Outcome]:
    """Yield the metrics of all models in every process, and the predictions in the main one."""
    world, (clean, sets) = models[0].world, open_evaluation_sets(config, models[0])
    classifiers = [model.classifier for model in models]
    dirs = [model.output_dir / str(config.cache_name) for model in models]
    results = evaluate_robustness(config, classifiers, sets, clean, dirs, world, recompute=recompute)
    metrics: list[tuple[Metric, ...]] = world.broadcast_object([result.metrics for result in results])
    for index, model_metrics in enumerate(metrics):
        yield Outcome(model_metrics, results[index] if results else None)


def open_evaluation_sets(
    config: RobustnessEvaluation, model: ModelUnderTest
) -> tuple[ShiftedSet | None, tuple[ShiftedSet, ...]]:
    """Open the clean set, if there is one, and the others, once for a command."""

    def open_set(set_config: EvaluationSetConfig) -> ShiftedSet:
        return open_shifted_set(set_config.suite, set_config.source, set_config.name)

    key = f"evaluation sets {config.model_dump_json()}"
    if key not in model.memo:
        clean = open_set(config.clean) if config.clean is not None else None
        model.memo[key] = clean, tuple(map(open_set, config.sets))
    opened: tuple[ShiftedSet | None, tuple[ShiftedSet, ...]] = model.memo[key]
    return opened


def evaluate_robustness(
    config: RobustnessEvaluation,
    classifiers: Sequence[ImageClassifier],
    sets: Sequence[ShiftedSet],
    clean: ShiftedSet | None,
    predictions_dirs: Sequence[Path],
    world: World,
    *,
    recompute: bool = False,
) -> list[RobustnessResult]:
    """Return the metrics of all classifiers on all sets in the main process, and nothing in others.

    `clean` is the set without a shift, whose images of the same classes give the drop. Predictions are cached in a
    directory of each classifier, cell by cell.
    """
    sources = [classifier.source for classifier in classifiers]
    if config.reference is not None and config.reference not in sources:
        raise unknown_name_error("model in this call for reference", config.reference, sources)
    if clean is not None and is_corruption_grid(clean):
        raise UserError(
            f"{clean.name}: is a corruption set, so it cannot be the set without a shift. Use the images that it was "
            "made of"
        )
    all_sets, clean_index = [*([clean] if clean is not None else []), *sets], 0 if clean is not None else None
    plan = _RequestPlan(config, all_sets)
    requests = [
        [_SetRequests(plan, classifier, directory, all_sets, index, clean_index) for index in range(len(all_sets))]
        for classifier, directory in zip(classifiers, predictions_dirs, strict=True)
    ]
    pending = select_pending(plan.cell_requests(), world, recompute=recompute)
    batching = BatchingConfig(batch_size=config.batch_size, num_workers=config.workers)
    run_predictions(pending, world, batching, precision=config.precision, save_probabilities=config.keep_probabilities)
    world.barrier()
    if not world.is_main:
        return []
    predictions = [[each.read_predictions() for each in set_requests] for set_requests in requests]
    reference = predictions[sources.index(config.reference)] if config.reference is not None else None
    return [
        RobustnessResult(classifier, tuple(compute_metrics(by_set, reference)), tuple(by_set))
        for classifier, by_set in zip(classifiers, predictions, strict=True)
    ]


def compute_metrics(
    predictions: Sequence[SetPredictions], reference: Sequence[SetPredictions] | None = None
) -> list[Metric]:
    """Return the metrics of a classifier on each set, and the paper's score if all its sets are there."""
    metrics: list[Metric] = []
    for index, set_predictions in enumerate(predictions):
        shifted_set = set_predictions.shifted_set
        tags: dict[str, TagValue] = {"set": format_set_name(shifted_set)}
        if is_corruption_grid(shifted_set):
            metrics += compute_corruption_metrics(set_predictions, tags, reference[index] if reference else None)
        else:
            metrics += compute_accuracy_metrics(set_predictions, tags, choose_open_classes(shifted_set))
    score_metrics = [find_metric(metrics, key, **tags) for key, tags in SCORE_METRICS]
    found_metrics = [metric for metric in score_metrics if metric is not None]
    if len(found_metrics) == len(SCORE_METRICS):
        has_notes = any(metric.notes for metric in found_metrics)
        notes = ("(A + R + Sketch + (100 - mCE)) / 4", *["of sets with notes of their own"] * has_notes)
        a, r, sketch, mce = (metric.value for metric in found_metrics)
        score = compute_paper_score(a, r, sketch, mce)
        metrics.append(Metric("robustness_score", score, len(found_metrics), notes=notes))
    return metrics


def format_set_name(shifted_set: ShiftedSet) -> str:
    """Return the name of a set in tables, with a mark if it is not a released one."""
    return f"{shifted_set.name} (self-made)" if shifted_set.creation_sentence is not None else shifted_set.name


def choose_open_classes(shifted_set: ShiftedSet) -> str:
    """Return among which classes the protocol of a set lets the model choose."""
    if shifted_set.protocol_wnids is not None:
        return SUBSET_200
    return OWN_CLASSES if shifted_set.suite == CUSTOM else ALL_CLASSES


def describe_set_protocol(classifier: ImageClassifier, shifted_set: ShiftedSet) -> str:
    """Describe how predictions on a set are made and counted."""
    open_classes = choose_open_classes(shifted_set)
    num_classes = len(_choose_columns(classifier, shifted_set, _match_set(classifier, shifted_set)))
    if open_classes == ALL_CLASSES:
        choice = f"the highest of all {num_classes:,} logits"
    else:
        choice = f"the highest of the logits of the set's {num_classes:,} classes ({open_classes}); all logits apart"
    size = "×".join(map(str, classifier.image_size))
    view = f"images as they are, resized to {size} only from other sizes" if shifted_set.is_cropped else classifier.view
    creation = shifted_set.creation_sentence
    origin = f" {creation[:1].upper()}{creation[1:]}." if creation else ""
    return f"{format_set_name(shifted_set)}: {choice}; {view}; every image counts alike.{origin}"


class _RequestPlan:
    """The predictions that are needed of each cell, each once however many sets need it."""

    def __init__(self, config: RobustnessEvaluation, sets: Sequence[ShiftedSet]) -> None:
        self._config, self._sets = config, sets
        self._requests: dict[tuple[int, int], dict[Path, PredictionRequest]] = {}

    def add(
        self,
        classifier: ImageClassifier,
        predictions_dir: Path,
        set_index: int,
        cell_index: int,
        view: ImageView,
        columns: tuple[int, ...],
    ) -> Path:
        """Add the predictions of a classifier on a cell, and return the file that they will be in."""
        shifted_set = self._sets[set_index]
        cell = shifted_set.cells[cell_index]
        cell_key = (cell.corruption, cell.severity)
        settings = {
            "precision": self._config.precision,
            "probabilities": self._config.keep_probabilities,
            "view": view.identity,
        }
        set_identity = cell.identity or shifted_set.identity
        identity = compute_prediction_identity(classifier.digest, set_identity, cell_key, columns, settings)
        name = "-".join(str(part) for part in (shifted_set.name, *cell_key) if part is not None)
        path = prediction_path(predictions_dir, name, identity)
        request = PredictionRequest(classifier, view, columns, path, identity)
        self._requests.setdefault((set_index, cell_index), {})[path] = request
        return path

    def cell_requests(self) -> list[CellRequests]:
        """Return all requests, cell by cell."""
        return [
            CellRequests(self._sets[set_index].cells[cell_index].scenes, tuple(requests.values()))
            for (set_index, cell_index), requests in self._requests.items()
        ]


class _SetRequests:
    """The predictions of one classifier that the metrics of one set are computed from."""

    def __init__(
        self,
        plan: _RequestPlan,
        classifier: ImageClassifier,
        predictions_dir: Path,
        sets: Sequence[ShiftedSet],
        set_index: int,
        clean_index: int | None,
    ) -> None:
        shifted_set = sets[set_index]
        self.classifier, self.shifted_set = classifier, shifted_set
        self.class_matching = _match_set(classifier, shifted_set)
        self.columns = _choose_columns(classifier, shifted_set, self.class_matching)
        view: ImageView = UncroppedImageView(classifier.image_size) if shifted_set.is_cropped else classifier.view
        self.paths = [
            plan.add(classifier, predictions_dir, set_index, cell_index, view, self.columns)
            for cell_index in range(len(shifted_set.cells))
        ]
        self.clean: tuple[Cell, Path, ClassMatching] | None = None
        if clean_index is not None and clean_index != set_index:
            clean = sets[clean_index]
            path = plan.add(
                classifier, predictions_dir, clean_index, 0, _clean_view(classifier, shifted_set), self.columns
            )
            self.clean = clean.cells[0], path, _match_set(classifier, clean)

    def read_predictions(self) -> SetPredictions:
        """Return the predictions on the set, and on clean images of the classes that it has images of."""
        cells = tuple(
            CellPredictions(cell, read_predictions(path), self.class_matching.accepted)
            for cell, path in zip(self.shifted_set.cells, self.paths, strict=True)
        )
        if not any(cell.num_images for cell in cells):
            raise UserError(
                f"{self.shifted_set.name}: has no images of classes that {self.classifier.source} has. Use another set"
            )
        clean: CellPredictions | None = None
        if self.clean is not None:
            clean_cell, path, matching = self.clean
            labels = torch.cat([cell.counted_labels for cell in cells]).unique()
            present_columns = self.class_matching.accepted[labels].any(dim=0)
            is_present = (matching.accepted & present_columns).any(dim=1, keepdim=True)
            clean = CellPredictions(clean_cell, read_predictions(path), matching.accepted & is_present)
        return SetPredictions(self.classifier, self.shifted_set, self.class_matching, self.columns, cells, clean)


def _clean_view(classifier: ImageClassifier, shifted_set: ShiftedSet) -> ImageView:
    """Return the transform of clean images for comparison with a set: the model's own, or that of ImageNet-C."""
    if shifted_set.is_cropped:
        return CentralImageView(CentralView(size=classifier.image_size, crop=CENTRE_CROP_RATIO))
    return classifier.view


def _choose_columns(
    classifier: ImageClassifier, shifted_set: ShiftedSet, class_matching: ClassMatching
) -> tuple[int, ...]:
    """Return the logits that the model may choose from."""
    is_restricted = choose_open_classes(shifted_set) != ALL_CLASSES
    return class_matching.columns if is_restricted else tuple(range(len(classifier.labels)))


def _match_set(classifier: ImageClassifier, shifted_set: ShiftedSet) -> ClassMatching:
    return match_classes(
        shifted_set.accepted_classes,
        shifted_set.protocol_wnids,
        classifier.labels,
        set_name=shifted_set.name,
        model_name=classifier.source,
    )
