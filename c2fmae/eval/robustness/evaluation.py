"""Robustness of classifiers: the predictions that each set needs, and the metrics computed from them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from c2fmae.core.cores import resolve_num_workers
from c2fmae.core.distributed import World
from c2fmae.core.errors import UserError, unknown_name_error
from c2fmae.data import CentralView
from c2fmae.data.combine import LimitedScenes
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
"""Key and tags of the metrics in the paper's Score."""


@dataclass(frozen=True)
class RobustnessResult:
    """The metrics of one classifier, and its predictions on each set."""

    classifier: ImageClassifier
    metrics: tuple[Metric, ...]
    set_predictions: tuple[SetPredictions, ...]


def run_robustness(
    config: RobustnessEvaluation, models: Sequence[ModelUnderTest], *, recompute: bool = False
) -> Iterator[Outcome]:
    """Yield the metrics of each model in every process; in the main process, details are a `RobustnessResult`."""
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
    """Return the clean set, if there is one, and all other sets; they are opened once per command."""

    def open_set(set_config: EvaluationSetConfig) -> ShiftedSet:
        opened = open_shifted_set(set_config.suite, set_config.source, set_config.name)
        return limit_set(opened, config.limit) if config.limit is not None else opened

    key = f"evaluation sets {config.model_dump_json()}"
    if key not in model.memo:
        clean = open_set(config.clean) if config.clean is not None else None
        model.memo[key] = clean, tuple(map(open_set, config.sets))
    opened: tuple[ShiftedSet | None, tuple[ShiftedSet, ...]] = model.memo[key]
    return opened


def limit_set(shifted_set: ShiftedSet, limit: int) -> ShiftedSet:
    """Return a set with at most `limit` evenly spaced images in each cell, the same ones of each corruption."""
    cells = tuple(
        replace(
            cell,
            scenes=LimitedScenes(cell.scenes, limit),
            identity=f"{cell.identity or shifted_set.identity} limit {limit}",
        )
        for cell in shifted_set.cells
    )
    return replace(shifted_set, cells=cells, identity=f"{shifted_set.identity} limit {limit}")


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
    """Return the results of all classifiers on all sets in the main process, and an empty list in other processes.

    The drop of the accuracy is relative to the images of `clean` of the same classes. Predictions are cached cell by
    cell, in a directory for each classifier.
    """
    sources = [classifier.source for classifier in classifiers]
    if config.reference is not None and config.reference not in sources:
        raise unknown_name_error("model in this call for reference", config.reference, sources)
    if clean is not None and is_corruption_grid(clean):
        raise UserError(
            f"{clean.name}: is a corruption set (expected a clean set without corruptions). Use the images that it was "
            "made from"
        )
    plan = _RequestPlan(config)
    requests = [
        [
            _SetRequests(plan, classifier, directory, shifted_set, clean if shifted_set is not clean else None)
            for shifted_set in (*filter(None, [clean]), *sets)
        ]
        for classifier, directory in zip(classifiers, predictions_dirs, strict=True)
    ]
    pending = select_pending(plan.cell_requests(), world, recompute=recompute)
    batching = BatchingConfig(batch_size=config.batch_size, num_workers=resolve_num_workers(config.workers))
    run_predictions(pending, world, batching, precision=config.precision, save_probabilities=config.keep_probabilities)
    world.barrier()
    if not world.is_main:
        return []
    predictions = [[set_requests.read_predictions() for set_requests in by_set] for by_set in requests]
    reference = predictions[sources.index(config.reference)] if config.reference is not None else None
    return [
        RobustnessResult(classifier, tuple(compute_metrics(by_set, reference)), tuple(by_set))
        for classifier, by_set in zip(classifiers, predictions, strict=True)
    ]


def compute_metrics(
    predictions: Sequence[SetPredictions], reference: Sequence[SetPredictions] | None = None
) -> list[Metric]:
    """Return the metrics of a classifier on each set, and the paper's Score if all four of its sets are among them."""
    metrics: list[Metric] = []
    for index, set_predictions in enumerate(predictions):
        shifted_set = set_predictions.shifted_set
        tags: dict[str, TagValue] = {"set": format_set_name(shifted_set)}
        if is_corruption_grid(shifted_set):
            metrics += compute_corruption_metrics(set_predictions, tags, reference[index] if reference else None)
        else:
            metrics += compute_accuracy_metrics(set_predictions, tags, choose_open_classes(shifted_set))
    score_metrics = [find_metric(metrics, key, **tags) for key, tags in SCORE_METRICS]
    present = [metric for metric in score_metrics if metric is not None]
    if len(present) == len(SCORE_METRICS):
        has_notes = any(metric.notes for metric in present)
        notes = ("(A + R + Sketch + (100 - mCE)) / 4", *["see the notes of the sets"] * has_notes)
        score = compute_paper_score(*(metric.value for metric in present))
        metrics.append(Metric("robustness_score", score, len(present), notes=notes))
    return metrics


def format_set_name(shifted_set: ShiftedSet) -> str:
    """Return the name of a set in tables, marked as self-made if it is not a released set."""
    return f"{shifted_set.name} (self-made)" if shifted_set.creation_sentence is not None else shifted_set.name


def choose_open_classes(shifted_set: ShiftedSet) -> str:
    """Return the name of the classes that the protocol of a set lets the model choose from."""
    if shifted_set.protocol_wnids is not None:
        return SUBSET_200
    return OWN_CLASSES if shifted_set.suite == CUSTOM else ALL_CLASSES


def describe_set_protocol(classifier: ImageClassifier, shifted_set: ShiftedSet) -> str:
    """Describe how predictions on a set are made and counted."""
    open_classes = choose_open_classes(shifted_set)
    num_classes = len(_choose_columns(classifier, shifted_set, _match_set(classifier, shifted_set)))
    if open_classes == ALL_CLASSES:
        choice = f"the highest of {num_classes:,} logits"
    else:
        choice = (
            f"the highest logit of the set's {num_classes:,} classes ({open_classes}), and of all classes separately"
        )
    size = "×".join(map(str, classifier.image_size))
    view = f"uncropped images, resized only if they are not of {size}" if shifted_set.is_cropped else classifier.view
    creation = shifted_set.creation_sentence
    origin = f" {creation[:1].upper()}{creation[1:]}." if creation else ""
    return f"{format_set_name(shifted_set)}: {choice}; {view}; every image counts alike.{origin}"


class _RequestPlan:
    """The requested predictions of all cells, without duplicates."""

    def __init__(self, config: RobustnessEvaluation) -> None:
        self._config = config
        self._requests: dict[int, tuple[Cell, dict[Path, PredictionRequest]]] = {}  # by the id of the cell

    def add(
        self,
        classifier: ImageClassifier,
        predictions_dir: Path,
        shifted_set: ShiftedSet,
        cell: Cell,
        view: ImageView,
        columns: tuple[int, ...],
    ) -> Path:
        """Request the predictions of a classifier on a cell, and return the file that they will be written to."""
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
        _, requests = self._requests.setdefault(id(cell), (cell, {}))
        requests[path] = PredictionRequest(classifier, view, columns, path, identity)
        return path

    def cell_requests(self) -> list[CellRequests]:
        """Return the requests of each cell."""
        return [CellRequests(cell.scenes, tuple(requests.values())) for cell, requests in self._requests.values()]


class _SetRequests:
    """The requested predictions of one classifier that the metrics of one set need."""

    def __init__(
        self,
        plan: _RequestPlan,
        classifier: ImageClassifier,
        predictions_dir: Path,
        shifted_set: ShiftedSet,
        clean: ShiftedSet | None,
    ) -> None:
        self.classifier, self.shifted_set = classifier, shifted_set
        self.class_matching = _match_set(classifier, shifted_set)
        self.columns = _choose_columns(classifier, shifted_set, self.class_matching)
        view: ImageView = UncroppedImageView(classifier.image_size) if shifted_set.is_cropped else classifier.view
        self.paths = [
            plan.add(classifier, predictions_dir, shifted_set, cell, view, self.columns) for cell in shifted_set.cells
        ]
        self.clean: tuple[Cell, Path, ClassMatching] | None = None
        self.clean_suite = clean.suite if clean is not None else None
        if clean is not None:
            cell, view = clean.cells[0], _choose_clean_view(classifier, shifted_set)
            path = plan.add(classifier, predictions_dir, clean, cell, view, self.columns)
            self.clean = cell, path, _match_set(classifier, clean)

    def read_predictions(self) -> SetPredictions:
        """Return the predictions on the set, and on the clean images of the classes of which the set has images."""
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
        return SetPredictions(
            self.classifier, self.shifted_set, self.class_matching, self.columns, cells, clean, self.clean_suite
        )


def _choose_clean_view(classifier: ImageClassifier, shifted_set: ShiftedSet) -> ImageView:
    """Return the view of clean images for comparison with a set: the model's own, or that of ImageNet-C if cropped."""
    if shifted_set.is_cropped:
        return CentralImageView(CentralView(size=classifier.image_size, crop=CENTRE_CROP_RATIO))
    return classifier.view


def _choose_columns(
    classifier: ImageClassifier, shifted_set: ShiftedSet, class_matching: ClassMatching
) -> tuple[int, ...]:
    """Return the open logits of a set."""
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
