"""Classifiers on shifted sets: which questions that takes, and the numbers that come of the answers."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
from pydantic import Field

from c2fmae.core.config import Config, PositiveInt
from c2fmae.core.distributed import World
from c2fmae.core.errors import UserError, unknown_name_error
from c2fmae.data import CentralView
from c2fmae.data.corruption.names import CENTRE_CROP_RATIO
from c2fmae.data.suites import CUSTOM, Cell, ShiftedSet
from c2fmae.eval.engine import BatchingConfig
from c2fmae.eval.metrics import Metric, find_metric
from c2fmae.eval.probes.extraction import Precision
from c2fmae.eval.robustness import prediction_store
from c2fmae.eval.robustness.accuracy_metrics import (
    ALL_CLASSES,
    CellPredictions,
    SetPredictions,
    compute_accuracy_metrics,
    is_corruption_grid,
)
from c2fmae.eval.robustness.class_matching import ClassMatching, match_classes
from c2fmae.eval.robustness.corruption_metrics import compute_corruption_metrics
from c2fmae.eval.robustness.image_classifier import CentralImageView, ImageClassifier, ImageView, UncroppedImageView
from c2fmae.eval.robustness.inference import CellRequests, PredictionRequest, run_predictions, select_pending
from c2fmae.eval.robustness.scores import compute_paper_score

SUBSET_200, OWN_CLASSES = "subset-200", "own classes"
SCORE_METRICS: tuple[tuple[str, dict[str, str]], ...] = (
    ("top1", {"set": "imagenet-a", "classes": SUBSET_200}),
    ("top1", {"set": "imagenet-r", "classes": SUBSET_200}),
    ("top1", {"set": "sketch"}),
    ("mce", {"set": "imagenet-c"}),
)
"""Key and tags of what the paper's score is made of."""


class RobustnessConfig(Config):
    """How it is done."""

    batch_size: PositiveInt = 64
    workers: Annotated[int, Field(ge=0)] = 2
    precision: Precision = "fp32"
    keep_probabilities: bool = False
    """Whether all probabilities are kept beside the answers, in half precision."""
    reference: str | None = None
    """The one among the models that takes AlexNet's place in a second mCE."""


@dataclass(frozen=True)
class RobustnessResult:
    """What came out for one model."""

    classifier: ImageClassifier
    metrics: tuple[Metric, ...]
    set_predictions: tuple[SetPredictions, ...]
    """By set, in their order."""


def format_set_name(shifted_set: ShiftedSet) -> str:
    """Return what a set is called beside numbers: one that somebody made says so."""
    return f"{shifted_set.name} (self-made)" if shifted_set.creation_sentence is not None else shifted_set.name


def choose_open_classes(shifted_set: ShiftedSet) -> str:
    """Return among which classes the protocol of a set lets the model choose."""
    if shifted_set.protocol_wnids is not None:
        return SUBSET_200
    return OWN_CLASSES if shifted_set.suite == CUSTOM else ALL_CLASSES


def evaluate_robustness(
    classifiers: Sequence[ImageClassifier],
    sets: Sequence[ShiftedSet],
    clean_set: ShiftedSet | None,
    config: RobustnessConfig,
    get_predictions_dir: Callable[[ImageClassifier], Path],
    world: World,
    *,
    again: bool = False,
) -> list[RobustnessResult]:
    """Return the numbers of all classifiers on all sets, in the first process; elsewhere nothing.

    `clean_set` is the set without any shift, by whose photos of the same classes a drop is told. Answers are kept in a
    folder of each classifier's, cell by cell.
    """
    if config.reference is not None and config.reference not in [entrant.source for entrant in classifiers]:
        raise unknown_name_error("model in this call for reference", config.reference, [e.source for e in classifiers])
    if clean_set is not None and is_corruption_grid(clean_set):
        raise UserError(
            f"{clean_set.name}: holds corruptions, so it cannot be the set without a shift. Give the photos that "
            "they were "
            "made of"
        )
    plan = _RequestPlan(config, get_predictions_dir)
    all_sets = [*([clean_set] if clean_set is not None else []), *sets]
    request_sets = {
        (id(entrant), id(shifted_set)): _SetRequests(plan, entrant, shifted_set, clean_set)
        for entrant in classifiers
        for shifted_set in all_sets
    }
    pending = select_pending(plan.build_cell_requests(), world, again=again)
    batching = BatchingConfig(batch_size=config.batch_size, num_workers=config.workers)
    run_predictions(pending, world, batching, precision=config.precision, save_probabilities=config.keep_probabilities)
    world.barrier()
    if not world.is_main:
        return []
    set_predictions = {key: paper.read_set_predictions() for key, paper in request_sets.items()}
    by_source = {entrant.source: entrant for entrant in classifiers}
    reference = by_source[config.reference] if config.reference is not None else None
    return [
        _build_result(
            entrant,
            [set_predictions[id(entrant), id(shifted_set)] for shifted_set in all_sets],
            None
            if reference is None
            else [set_predictions[id(reference), id(shifted_set)] for shifted_set in all_sets],
        )
        for entrant in classifiers
    ]


def _build_result(
    classifier: ImageClassifier,
    predictions_by_set: Sequence[SetPredictions],
    reference_predictions: Sequence[SetPredictions] | None,
) -> RobustnessResult:
    metrics: list[Metric] = []
    for set_index, set_predictions in enumerate(predictions_by_set):
        tags = {"set": format_set_name(set_predictions.shifted_set)}
        if is_corruption_grid(set_predictions.shifted_set):
            reference = reference_predictions[set_index] if reference_predictions else None
            metrics += compute_corruption_metrics(set_predictions, tags, reference)
        else:
            open_classes = choose_open_classes(set_predictions.shifted_set)
            metrics += compute_accuracy_metrics(set_predictions, tags, open_classes)
    score_metrics = [find_metric(metrics, key, **tags) for key, tags in SCORE_METRICS]
    found_metrics = [metric for metric in score_metrics if metric is not None]
    if len(found_metrics) == len(SCORE_METRICS):
        has_notes = any(metric.notes for metric in found_metrics)
        notes = ("(A + R + Sketch + (100 - mCE)) / 4", *["of sets with remarks of their own"] * has_notes)
        a, r, sketch, mce = (metric.value for metric in found_metrics)
        score = compute_paper_score(a, r, sketch, mce)
        metrics.append(Metric("robustness_score", score, len(found_metrics), notes=notes))
    return RobustnessResult(classifier, tuple(metrics), tuple(predictions_by_set))


class _RequestPlan:
    """The questions about each cell, each asked once whoever needs the answer."""

    def __init__(self, config: RobustnessConfig, get_predictions_dir: Callable[[ImageClassifier], Path]) -> None:
        self._config, self._get_predictions_dir = config, get_predictions_dir
        self._requests: dict[int, dict[Path, PredictionRequest]] = {}
        self._cells = dict[int, Cell]()

    def add_request(
        self,
        classifier: ImageClassifier,
        shifted_set: ShiftedSet,
        cell: Cell,
        view: ImageView,
        columns: tuple[int, ...],
    ) -> Path:
        """Note a question, and return where its answers will be."""
        settings_text = (
            f"{self._config.precision}{', probabilities' if self._config.keep_probabilities else ''}, {view!r}"
        )
        cell_key = (cell.corruption, cell.severity)
        identity = prediction_store.compute_prediction_identity(
            classifier.digest, cell.identity or shifted_set.identity, cell_key, columns, settings_text
        )
        name = "-".join(str(each) for each in (shifted_set.name, *cell_key) if each is not None)
        path = prediction_store.prediction_path(self._get_predictions_dir(classifier), name, identity)
        self._cells[id(cell)] = cell
        self._requests.setdefault(id(cell), {})[path] = PredictionRequest(classifier, view, columns, path, identity)
        return path

    def build_cell_requests(self) -> list[CellRequests]:
        """Return all questions, cell by cell."""
        return [CellRequests(self._cells[cell].scenes, tuple(asked.values())) for cell, asked in self._requests.items()]


class _SetRequests:
    """What one classifier is asked about one set, and on clean photos for the sake of it."""

    def __init__(
        self, plan: _RequestPlan, classifier: ImageClassifier, shifted_set: ShiftedSet, clean_set: ShiftedSet | None
    ) -> None:
        self.classifier, self.shifted_set = classifier, shifted_set
        self.class_matching = _match_set(classifier, shifted_set)
        is_restricted = choose_open_classes(shifted_set) != ALL_CLASSES
        self.columns = self.class_matching.columns if is_restricted else tuple(range(len(classifier.labels)))
        view: ImageView = UncroppedImageView(classifier.image_size) if shifted_set.is_cropped else classifier.view
        self.paths = [
            (cell, plan.add_request(classifier, shifted_set, cell, view, self.columns)) for cell in shifted_set.cells
        ]
        self.clean_path: tuple[Cell, Path] | None = None
        if clean_set is not None and clean_set is not shifted_set:
            self.clean_matching = _match_set(classifier, clean_set)
            path = plan.add_request(
                classifier, clean_set, clean_set.cells[0], _clean_view(classifier, shifted_set), self.columns
            )
            self.clean_path = (clean_set.cells[0], path)

    def read_set_predictions(self) -> SetPredictions:
        """Return what was answered."""
        cells = tuple(
            CellPredictions.from_stored(
                cell, prediction_store.read_predictions(path), self.class_matching.label_to_column
            )
            for cell, path in self.paths
        )
        if not any(cell.num_images for cell in cells):
            raise UserError(
                f"{self.shifted_set.name}: has no photos of classes that {self.classifier.source} knows. Give "
                "another set"
            )
        return SetPredictions(
            self.classifier,
            self.shifted_set,
            self.class_matching,
            self.columns,
            cells,
            self._read_clean_predictions(cells),
        )

    def _read_clean_predictions(self, cells: Sequence[CellPredictions]) -> CellPredictions | None:
        """Return the answers on clean photos of the classes that the set has photos of."""
        if self.clean_path is None:
            return None
        cell, path = self.clean_path
        present_columns = torch.cat([each.target_columns[each.is_counted] for each in cells]).unique()
        label_to_column = self.clean_matching.label_to_column
        label_to_column = torch.where(torch.isin(label_to_column, present_columns), label_to_column, -1)
        return CellPredictions.from_stored(cell, prediction_store.read_predictions(path), label_to_column)


def _clean_view(classifier: ImageClassifier, shifted_set: ShiftedSet) -> ImageView:
    """Return how clean photos are cut beside a set's: as the model's own view does, or as ImageNet-C was made."""
    return (
        CentralImageView(CentralView(size=classifier.image_size, crop=CENTRE_CROP_RATIO))
        if shifted_set.is_cropped
        else classifier.view
    )


def _match_set(classifier: ImageClassifier, shifted_set: ShiftedSet) -> ClassMatching:
    return match_classes(
        shifted_set.labels,
        shifted_set.protocol_wnids,
        classifier.labels,
        set_name=shifted_set.name,
        model_name=classifier.source,
    )
