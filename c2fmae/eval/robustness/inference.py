"""Many classifiers on many cells: a photo is decoded once for all of them, and each distinct view of it made once."""

import hashlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Bool, Int64, UInt8
from torch import Tensor

from c2fmae.core.distributed import World
from c2fmae.core.progress import Progress
from c2fmae.data import Scenes
from c2fmae.data.prefetch import made_ahead
from c2fmae.eval.probes.extraction import Hands, Precision
from c2fmae.eval.robustness.image_classifier import AsItIs, Entrant, View
from c2fmae.eval.robustness.prediction_store import answer, write


@dataclass(frozen=True)
class Question:
    """What a classifier is asked about a cell, and where its answers are kept."""

    entrant: Entrant
    view: View
    columns: tuple[int, ...]
    """The logits that are open to it."""
    path: Path
    identity: str


@dataclass(frozen=True)
class Round:
    """The questions about one cell that have no answers yet."""

    scenes: Scenes
    questions: tuple[Question, ...]

    @property
    def views(self) -> tuple[View, ...]:
        """The distinct views of each photo."""
        return tuple(dict.fromkeys(question.view for question in self.questions))


def unanswered(rounds: Sequence[Round], world: World, *, again: bool = False) -> list[Round]:
    """Return what is left to ask, as the first process finds it on its disk."""
    left: list[list[bool]] = world.share(
        [[again or not question.path.exists() for question in each.questions] for each in rounds]
    )
    kept = [
        Round(each.scenes, tuple(question for question, is_left in zip(each.questions, flags, strict=True) if is_left))
        for each, flags in zip(rounds, left, strict=True)
    ]
    return [each for each in kept if each.questions]


@torch.inference_mode()
def predict(
    rounds: Sequence[Round], world: World, hands: Hands, *, precision: Precision, keep_probabilities: bool = False
) -> None:
    """Ask all questions, cell by cell, and keep the answers to a cell as soon as they are whole.

    Batches are the same for any number of processes, each of which takes whole ones and leaves the others' rows at
    zero: nothing is rounded where these are added up.
    """
    batches = [_batches(len(each.scenes), hands.batch_size, world) for each in rounds]
    total = sum(map(len, batches))
    for entrant in {id(question.entrant): question.entrant for each in rounds for question in each.questions}.values():
        entrant.logits.to(world.device).eval()
    work = [(each, rows) for each, mine in zip(rounds, batches, strict=True) for rows in mine]
    quiet = not world.is_first
    with Progress(total=total, samples_per_step=hands.batch_size, is_quiet=quiet) as progress:
        seen = _watched(_loaded(work, hands, world.device), progress)
        for each, mine in zip(rounds, batches, strict=True):
            answers = [dict[str, Tensor]() for _ in each.questions]
            for rows in mine:
                batch = next(seen)
                for question, made in zip(each.questions, answers, strict=True):
                    _fill(made, batch.answers(question, precision, keep_probabilities), rows, len(each.scenes))
            for question, made in zip(each.questions, answers, strict=True):
                whole = _added(made, question, len(each.scenes), keep_probabilities, world)
                if world.is_first:
                    write(question.path, whole, question.identity)
        next(seen, None)  # what the last batch took is told when another one is asked for


@dataclass
class _Seen:
    """A batch of photos in all their views, and what was made of it so far."""

    views: dict[View, UInt8[Tensor, "batch 3 height width"]]
    labels: Int64[Tensor, " batch"]
    photos: Int64[Tensor, " batch"]
    is_resized: dict[View, Bool[Tensor, " batch"]]

    def __post_init__(self) -> None:
        self._logits = dict[tuple[int, View], Tensor]()

    def answers(self, question: Question, precision: Precision, keep_probabilities: bool) -> dict[str, Tensor]:
        """Return what is kept; an entrant looks at a view once, whatever it is asked about the batch."""
        who = (id(question.entrant), question.view)
        if who not in self._logits:
            photos = self.views[question.view]
            with torch.autocast(photos.device.type, torch.bfloat16, enabled=precision == "bf16"):
                self._logits[who] = question.entrant.logits(photos).float()
        logits = self._logits[who]
        found = {
            **answer(logits, question.columns),
            "labels": self.labels,
            "photos": self.photos,
            "is_resized": self.is_resized[question.view].long(),
        }
        return found | ({"probabilities": logits.softmax(dim=1)} if keep_probabilities else {})


def _batches(length: int, size: int, world: World) -> list[range]:
    """Return this process's batches of a cell."""
    return [
        range(first, min(first + size, length))
        for number, first in enumerate(range(0, length, size))
        if number % world.size == world.rank
    ]


def _fill(made: dict[str, Tensor], found: dict[str, Tensor], rows: range, length: int) -> None:
    for name, values in found.items():
        if name not in made:
            made[name] = values.new_zeros(length, *values.shape[1:])
        made[name][rows.start : rows.stop] = values


def _added(
    made: dict[str, Tensor], question: Question, length: int, keep_probabilities: bool, world: World
) -> dict[str, Tensor]:
    """Return a cell's answers, added up over the processes; one that had no batch of it has zeros."""
    kinds = {"predicted": torch.int64, "predicted_all": torch.int64, "confidence": torch.float32}
    kinds |= {"labels": torch.int64, "photos": torch.int64, "is_resized": torch.int64}
    whole = {}
    for name, dtype in (kinds | ({"probabilities": torch.float32} if keep_probabilities else {})).items():
        shape = (length, len(question.entrant.labels)) if name == "probabilities" else (length,)
        values = made[name] if name in made else torch.zeros(shape, dtype=dtype, device=world.device)
        whole[name] = world.add(values.to(world.device)).cpu()
    return whole


def _loaded(work: Sequence[tuple[Round, range]], hands: Hands, device: torch.device) -> Iterator[_Seen]:
    make = _Batches([(each.scenes, rows, each.views) for each, rows in work])
    loaded = made_ahead(make, len(work), workers=hands.workers, pin=device.type == "cuda")
    for (each, _), (shown, labels, photos, is_resized) in zip(work, loaded, strict=True):
        yield _Seen(
            {view: some.to(device, non_blocking=True) for view, some in zip(each.views, shown, strict=True)},
            labels.to(device),
            photos.to(device),
            {view: some.to(device) for view, some in zip(each.views, is_resized, strict=True)},
        )


def _watched(seen: Iterator[_Seen], progress: Progress) -> Iterator[_Seen]:
    """Go through batches and tell how long each took, and how much of that was spent waiting for it."""
    clock = time.perf_counter()
    for step, batch in enumerate(seen, start=1):
        waited = time.perf_counter() - clock
        yield batch
        now = time.perf_counter()
        progress.step(step, {}, seconds=now - clock, waited=waited / (now - clock))
        clock = now


@dataclass(frozen=True)
class _Batches:
    """Batches by number: each view of the photos, their labels, digests of their keys, and which were resized."""

    batches: Sequence[tuple[Scenes, range, tuple[View, ...]]]

    def __call__(self, number: int) -> tuple[list[Tensor], Tensor, Tensor, list[Tensor]]:
        scenes, rows, views = self.batches[number]
        found = [scenes[row] for row in rows]
        photos = [scene.maps["rgb"] for scene in found]
        labels = torch.tensor([-1 if scene.label is None else scene.label for scene in found])
        made = [torch.stack([view(photo) for photo in photos]) for view in views]
        is_resized = [
            torch.tensor([isinstance(view, AsItIs) and tuple(photo.shape[1:]) != view.size for photo in photos])
            for view in views
        ]
        keys = b"".join(hashlib.blake2b(scene.key.encode(), digest_size=8).digest() for scene in found)
        return made, labels, torch.frombuffer(bytearray(keys), dtype=torch.int64), is_resized
