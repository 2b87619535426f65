"""Classifiers on shifted sets: which questions that takes, and the numbers that come of the answers."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
from pydantic import Field

from c2fmae.core.config import Config, Count
from c2fmae.core.distributed import World
from c2fmae.core.errors import UserError, unknown_name
from c2fmae.data import CentralView
from c2fmae.data.corruption.names import CROP
from c2fmae.data.suites.cells import Cell
from c2fmae.data.suites.official import CUSTOM
from c2fmae.data.suites.shifted_set import ShiftedSet
from c2fmae.eval.evaluation import Metric
from c2fmae.eval.probes.extraction import Hands, Precision
from c2fmae.eval.robustness import prediction_store
from c2fmae.eval.robustness.accuracy_metrics import TOP_1, Answered, Answers, is_grid, plain_metrics
from c2fmae.eval.robustness.class_matching import Matched, match
from c2fmae.eval.robustness.corruption_metrics import MCE, corrupted_metrics
from c2fmae.eval.robustness.image_classifier import AsItIs, Centre, Entrant, View
from c2fmae.eval.robustness.inference import Question, Round, predict, unanswered
from c2fmae.eval.robustness.scores import paper_score

SUBSET_200, OWN_CLASSES = "subset-200", "own classes"
OF_SCORE = (("imagenet-a", SUBSET_200), ("imagenet-r", SUBSET_200), ("sketch", TOP_1), ("imagenet-c", MCE))


class RobustnessConfig(Config):
    """How it is done."""

    batch_size: Count = 64
    workers: Annotated[int, Field(ge=0)] = 2
    precision: Precision = "fp32"
    keep_probabilities: bool = False
    """Whether all probabilities are kept beside the answers, in half precision."""
    reference: str | None = None
    """The one among the models that takes AlexNet's place in a second mCE."""


@dataclass(frozen=True)
class Found:
    """What came out for one model."""

    entrant: Entrant
    metrics: tuple[Metric, ...]
    answers: tuple[Answers, ...]
    """By set, in their order."""


def shown_name(of: ShiftedSet) -> str:
    """Return what a set is called beside numbers: one that somebody made says so."""
    return f"{of.name} (self-made)" if of.self_made is not None else of.name


def own_number(of: ShiftedSet) -> str:
    """Return what the first number of a set without corruptions is called."""
    if of.protocol_wnids is not None:
        return SUBSET_200
    return OWN_CLASSES if of.kind == CUSTOM else TOP_1


def evaluate_robustness(
    entrants: Sequence[Entrant],
    sets: Sequence[ShiftedSet],
    clean: ShiftedSet | None,
    config: RobustnessConfig,
    folder_of: Callable[[Entrant], Path],
    world: World,
    *,
    again: bool = False,
) -> list[Found]:
    """Return the numbers of all classifiers on all sets, in the first process; elsewhere nothing.

    `clean` is the set without any shift, by whose photos of the same classes a drop is told. Answers are kept in a
    folder of each classifier's, cell by cell.
    """
    if config.reference is not None and config.reference not in [entrant.source for entrant in entrants]:
        raise unknown_name("model in this call for reference", config.reference, [e.source for e in entrants])
    if clean is not None and is_grid(clean):
        raise UserError(
            f"{clean.name}: holds corruptions, so it cannot be the set without a shift. Give the photos that they were "
            "made of"
        )
    plan = _Plan(config, folder_of)
    every = [*([clean] if clean is not None else []), *sets]
    papers = {(id(entrant), id(of)): _Paper(plan, entrant, of, clean) for entrant in entrants for of in every}
    left = unanswered(plan.rounds(), world, again=again)
    hands = Hands(batch_size=config.batch_size, workers=config.workers)
    predict(left, world, hands, precision=config.precision, keep_probabilities=config.keep_probabilities)
    world.wait()
    if not world.is_first:
        return []
    answers = {key: paper.answers() for key, paper in papers.items()}
    by_source = {entrant.source: entrant for entrant in entrants}
    reference = by_source[config.reference] if config.reference is not None else None
    return [
        _found(
            entrant,
            [answers[id(entrant), id(of)] for of in every],
            None if reference is None else [answers[id(reference), id(of)] for of in every],
        )
        for entrant in entrants
    ]


def _found(entrant: Entrant, every: Sequence[Answers], reference: Sequence[Answers] | None) -> Found:
    metrics: list[Metric] = []
    for place, answers in enumerate(every):
        name = shown_name(answers.of)
        if is_grid(answers.of):
            metrics += corrupted_metrics(answers, name, reference[place] if reference else None)
        else:
            metrics += plain_metrics(answers, name, own_number(answers.of))
    value = {metric.name: metric.value for metric in metrics}
    four = [value.get(f"{name}, {number}") for name, number in OF_SCORE]
    if None not in four:
        a, r, sketch, mce = (each for each in four if each is not None)
        note = "(A + R + Sketch + (100 - mCE)) / 4"
        has_remarks = any(metric.note for metric in metrics if metric.name in {f"{n}, {p}" for n, p in OF_SCORE})
        note += "; of sets with remarks of their own" if has_remarks else ""
        metrics.append(Metric("Score", paper_score(a, r, sketch, mce), 4, note=note))
    return Found(entrant, tuple(metrics), tuple(every))


class _Plan:
    """The questions about each cell, each asked once whoever needs the answer."""

    def __init__(self, config: RobustnessConfig, folder_of: Callable[[Entrant], Path]) -> None:
        self._config, self._folder_of = config, folder_of
        self._questions: dict[int, dict[Path, Question]] = {}
        self._cells = dict[int, Cell]()

    def ask(self, entrant: Entrant, of: ShiftedSet, cell: Cell, view: View, columns: tuple[int, ...]) -> Path:
        """Note a question, and return where its answers will be."""
        way = f"{self._config.precision}{', probabilities' if self._config.keep_probabilities else ''}, {view!r}"
        where = (cell.corruption, cell.severity)
        told = prediction_store.identity(entrant.digest, cell.identity or of.identity, where, columns, way)
        name = "-".join(str(each) for each in (of.name, *where) if each is not None)
        path = prediction_store.place(self._folder_of(entrant), name, told)
        self._cells[id(cell)] = cell
        self._questions.setdefault(id(cell), {})[path] = Question(entrant, view, columns, path, told)
        return path

    def rounds(self) -> list[Round]:
        """Return all questions, cell by cell."""
        return [Round(self._cells[cell].scenes, tuple(asked.values())) for cell, asked in self._questions.items()]


class _Paper:
    """What one classifier is asked about one set, and on clean photos for the sake of it."""

    def __init__(self, plan: _Plan, entrant: Entrant, of: ShiftedSet, clean: ShiftedSet | None) -> None:
        self.entrant, self.of = entrant, of
        self.matched = _match(entrant, of)
        is_masked = own_number(of) != TOP_1
        self.columns = self.matched.columns if is_masked else tuple(range(len(entrant.labels)))
        view: View = AsItIs(entrant.size) if of.is_cut else entrant.view
        self.paths = [(cell, plan.ask(entrant, of, cell, view, self.columns)) for cell in of.cells]
        self.clean_path: tuple[Cell, Path] | None = None
        if clean is not None and clean is not of:
            self.clean_matched = _match(entrant, clean)
            path = plan.ask(entrant, clean, clean.cells[0], _clean_view(entrant, of), self.columns)
            self.clean_path = (clean.cells[0], path)

    def answers(self) -> Answers:
        """Return what was answered."""
        cells = tuple(
            Answered.of(cell, prediction_store.read(path), self.matched.column_of) for cell, path in self.paths
        )
        if not any(cell.num_photos for cell in cells):
            raise UserError(
                f"{self.of.name}: has no photos of classes that {self.entrant.source} knows. Give another set"
            )
        return Answers(self.entrant, self.of, self.matched, self.columns, cells, self._clean(cells))

    def _clean(self, cells: Sequence[Answered]) -> Answered | None:
        """Return the answers on clean photos of the classes that the set has photos of."""
        if self.clean_path is None:
            return None
        cell, path = self.clean_path
        there = torch.cat([each.truth[each.counts] for each in cells]).unique()
        column_of = self.clean_matched.column_of
        column_of = torch.where(torch.isin(column_of, there), column_of, -1)
        return Answered.of(cell, prediction_store.read(path), column_of)


def _clean_view(entrant: Entrant, of: ShiftedSet) -> View:
    """Return how clean photos are cut beside a set's: as the model's own view does, or as ImageNet-C was made."""
    return Centre(CentralView(size=entrant.size, crop=CROP)) if of.is_cut else entrant.view


def _match(entrant: Entrant, of: ShiftedSet) -> Matched:
    return match(of.labels, of.protocol_wnids, entrant.labels, set_name=of.name, model_name=entrant.source)
