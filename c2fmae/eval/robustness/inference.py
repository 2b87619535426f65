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
from c2fmae.core.progress import ProgressDisplay
from c2fmae.data import Scenes
from c2fmae.data.prefetch import prefetch
from c2fmae.eval.probes.extraction import BatchingConfig, Precision
from c2fmae.eval.robustness.image_classifier import ImageClassifier, ImageView, UncroppedImageView
from c2fmae.eval.robustness.prediction_store import summarise_logits, write_predictions


@dataclass(frozen=True)
class PredictionRequest:
    """What a classifier is asked about a cell, and where its answers are kept."""

    classifier: ImageClassifier
    view: ImageView
    columns: tuple[int, ...]
    """The logits that are open to it."""
    path: Path
    identity: str


@dataclass(frozen=True)
class CellRequests:
    """The questions about one cell that have no answers yet."""

    scenes: Scenes
    requests: tuple[PredictionRequest, ...]

    @property
    def distinct_views(self) -> tuple[ImageView, ...]:
        """The distinct views of each photo."""
        return tuple(dict.fromkeys(question.view for question in self.requests))


def select_pending(cell_requests: Sequence[CellRequests], world: World, *, again: bool = False) -> list[CellRequests]:
    """Return what is left to ask, as the first process finds it on its disk."""
    is_pending: list[list[bool]] = world.broadcast_object(
        [[again or not question.path.exists() for question in each.requests] for each in cell_requests]
    )
    pending = [
        CellRequests(
            each.scenes, tuple(question for question, is_left in zip(each.requests, flags, strict=True) if is_left)
        )
        for each, flags in zip(cell_requests, is_pending, strict=True)
    ]
    return [each for each in pending if each.requests]


@torch.inference_mode()
def run_predictions(
    cell_requests: Sequence[CellRequests],
    world: World,
    batching: BatchingConfig,
    *,
    precision: Precision,
    save_probabilities: bool = False,
) -> None:
    """Ask all questions, cell by cell, and keep the answers to a cell as soon as they are whole.

    Batches are the same for any number of processes, each of which takes whole ones and leaves the others' rows at
    zero: nothing is rounded where these are added up.
    """
    batches = [_split_local_batches(len(each.scenes), batching.batch_size, world) for each in cell_requests]
    total = sum(map(len, batches))
    for entrant in {
        id(question.classifier): question.classifier for each in cell_requests for question in each.requests
    }.values():
        entrant.model.to(world.device).eval()
    jobs = [(each, rows) for each, cell_batches in zip(cell_requests, batches, strict=True) for rows in cell_batches]
    is_quiet = not world.is_main
    with ProgressDisplay(total_steps=total, samples_per_step=batching.batch_size, is_quiet=is_quiet) as progress:
        view_batches = _track_progress(_load_view_batches(jobs, batching, world.device), progress)
        for each, cell_batches in zip(cell_requests, batches, strict=True):
            outputs = [dict[str, Tensor]() for _ in each.requests]
            for rows in cell_batches:
                batch = next(view_batches)
                for question, request_outputs in zip(each.requests, outputs, strict=True):
                    _fill_rows(
                        request_outputs,
                        batch.compute_outputs(question, precision, save_probabilities),
                        rows,
                        len(each.scenes),
                    )
            for question, request_outputs in zip(each.requests, outputs, strict=True):
                reduced = _all_reduce_outputs(request_outputs, question, len(each.scenes), save_probabilities, world)
                if world.is_main:
                    write_predictions(question.path, reduced, question.identity)
        next(view_batches, None)  # what the last batch took is told when another one is asked for


@dataclass
class _ViewBatch:
    """A batch of photos in all their views, and what was made of it so far."""

    views: dict[ImageView, UInt8[Tensor, "batch 3 height width"]]
    labels: Int64[Tensor, " batch"]
    image_digests: Int64[Tensor, " batch"]
    is_resized: dict[ImageView, Bool[Tensor, " batch"]]

    def __post_init__(self) -> None:
        self._logits = dict[tuple[int, ImageView], Tensor]()

    def compute_outputs(
        self, request: PredictionRequest, precision: Precision, save_probabilities: bool
    ) -> dict[str, Tensor]:
        """Return what is kept; an entrant looks at a view once, whatever it is asked about the batch."""
        logits_key = (id(request.classifier), request.view)
        if logits_key not in self._logits:
            images = self.views[request.view]
            with torch.autocast(images.device.type, torch.bfloat16, enabled=precision == "bf16"):
                self._logits[logits_key] = request.classifier.model(images).float()
        logits = self._logits[logits_key]
        outputs = {
            **summarise_logits(logits, request.columns),
            "labels": self.labels,
            "photos": self.image_digests,
            "is_resized": self.is_resized[request.view].long(),
        }
        return outputs | ({"probabilities": logits.softmax(dim=1)} if save_probabilities else {})


def _split_local_batches(num_images: int, batch_size: int, world: World) -> list[range]:
    """Return this process's batches of a cell."""
    return [
        range(first, min(first + batch_size, num_images))
        for index, first in enumerate(range(0, num_images, batch_size))
        if index % world.size == world.rank
    ]


def _fill_rows(buffers: dict[str, Tensor], outputs: dict[str, Tensor], rows: range, num_images: int) -> None:
    for name, values in outputs.items():
        if name not in buffers:
            buffers[name] = values.new_zeros(num_images, *values.shape[1:])
        buffers[name][rows.start : rows.stop] = values


def _all_reduce_outputs(
    buffers: dict[str, Tensor], request: PredictionRequest, num_images: int, save_probabilities: bool, world: World
) -> dict[str, Tensor]:
    """Return a cell's answers, added up over the processes; one that had no batch of it has zeros."""
    dtypes = {"predicted": torch.int64, "predicted_all": torch.int64, "confidence": torch.float32}
    dtypes |= {"labels": torch.int64, "photos": torch.int64, "is_resized": torch.int64}
    reduced = {}
    for name, dtype in (dtypes | ({"probabilities": torch.float32} if save_probabilities else {})).items():
        shape = (num_images, len(request.classifier.labels)) if name == "probabilities" else (num_images,)
        values = buffers[name] if name in buffers else torch.zeros(shape, dtype=dtype, device=world.device)
        reduced[name] = world.all_reduce(values.to(world.device)).cpu()
    return reduced


def _load_view_batches(
    jobs: Sequence[tuple[CellRequests, range]], batching: BatchingConfig, device: torch.device
) -> Iterator[_ViewBatch]:
    make_batch = _ViewBatchMaker([(each.scenes, rows, each.distinct_views) for each, rows in jobs])
    loaded = prefetch(make_batch, len(jobs), num_workers=batching.num_workers, pin_memory=device.type == "cuda")
    for (each, _), (images_by_view, labels, image_digests, is_resized) in zip(jobs, loaded, strict=True):
        yield _ViewBatch(
            {
                view: view_tensor.to(device, non_blocking=True)
                for view, view_tensor in zip(each.distinct_views, images_by_view, strict=True)
            },
            labels.to(device),
            image_digests.to(device),
            {view: view_tensor.to(device) for view, view_tensor in zip(each.distinct_views, is_resized, strict=True)},
        )


def _track_progress(view_batches: Iterator[_ViewBatch], progress: ProgressDisplay) -> Iterator[_ViewBatch]:
    """Go through batches and tell how long each took, and how much of that was spent waiting for it."""
    clock = time.perf_counter()
    for step, batch in enumerate(view_batches, start=1):
        waited = time.perf_counter() - clock
        yield batch
        now = time.perf_counter()
        progress.update(step, {}, seconds=now - clock, wait_fraction=waited / (now - clock))
        clock = now


@dataclass(frozen=True)
class _ViewBatchMaker:
    """Batches by number: each view of the photos, their labels, digests of their keys, and which were resized."""

    batches: Sequence[tuple[Scenes, range, tuple[ImageView, ...]]]

    def __call__(self, number: int) -> tuple[list[Tensor], Tensor, Tensor, list[Tensor]]:
        scenes, rows, views = self.batches[number]
        loaded = [scenes[row] for row in rows]
        images = [scene.maps["rgb"] for scene in loaded]
        labels = torch.tensor([-1 if scene.label is None else scene.label for scene in loaded])
        stacked_views = [torch.stack([view(photo) for photo in images]) for view in views]
        is_resized = [
            torch.tensor(
                [isinstance(view, UncroppedImageView) and tuple(photo.shape[1:]) != view.size for photo in images]
            )
            for view in views
        ]
        keys = b"".join(hashlib.blake2b(scene.key.encode(), digest_size=8).digest() for scene in loaded)
        return stacked_views, labels, torch.frombuffer(bytearray(keys), dtype=torch.int64), is_resized
