"""Many classifiers on many cells: a photo is decoded once for all of them, and each distinct view of it made once."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Bool, Int64, UInt8
from torch import Tensor, nn

from c2fmae.core.distributed import World
from c2fmae.data import Scenes
from c2fmae.eval.engine import BatchingConfig, gather_rows, iterate_batches
from c2fmae.eval.evaluation import Precision
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


def select_pending(
    cell_requests: Sequence[CellRequests], world: World, *, recompute: bool = False
) -> list[CellRequests]:
    """Return what is left to ask, as the first process finds it on its disk."""
    is_pending: list[list[bool]] = world.broadcast_object(
        [[recompute or not question.path.exists() for question in each.requests] for each in cell_requests]
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
    """Compute what is requested of each cell, and write it as soon as the cell is complete."""
    batches = [
        (requested, rows)
        for requested in cell_requests
        for rows in world.rank_chunks(len(requested.scenes), batching.batch_size)
    ]
    for requested in cell_requests:
        for request in requested.requests:
            request.classifier.model.to(world.device).eval()
    loaded = iterate_batches(_load_views, batches, world, batching)
    for requested in cell_requests:
        num_images = len(requested.scenes)
        cell_batches = islice(loaded, len(world.rank_chunks(num_images, batching.batch_size)))
        outputs = (
            (rows, _predict_batch(requested, views, world.device, precision, save_probabilities))
            for (_, rows), views in cell_batches
        )
        gathered = gather_rows(outputs, num_images, world)
        if world.is_main:
            for index, request in enumerate(requested.requests):
                tensors = {name: values for (owner, name), values in gathered.items() if owner in (None, index)}
                write_predictions(request.path, tensors, request.identity)
    next(loaded, None)  # the time of the last batch is shown when another one is requested


class _ViewBatch(NamedTuple):
    """Some images of a cell, in each distinct view."""

    views: tuple[UInt8[Tensor, "batch 3 height width"], ...]
    is_resized: tuple[Bool[Tensor, " batch"], ...]
    labels: Int64[Tensor, " batch"]
    image_digests: Int64[Tensor, " batch"]


def _load_views(batch: tuple[CellRequests, range]) -> _ViewBatch:
    requested, rows = batch
    scenes = [requested.scenes[row] for row in rows]
    images = [scene.maps["rgb"] for scene in scenes]
    keys = b"".join(hashlib.blake2b(scene.key.encode(), digest_size=8).digest() for scene in scenes)
    return _ViewBatch(
        views=tuple(torch.stack([view(image) for image in images]) for view in requested.distinct_views),
        is_resized=tuple(
            torch.tensor(
                [isinstance(view, UncroppedImageView) and tuple(image.shape[1:]) != view.size for image in images]
            )
            for view in requested.distinct_views
        ),
        labels=torch.tensor([-1 if scene.label is None else scene.label for scene in scenes]),
        image_digests=torch.frombuffer(bytearray(keys), dtype=torch.int64),
    )


def _predict_batch(
    requested: CellRequests, batch: _ViewBatch, device: torch.device, precision: Precision, save_probabilities: bool
) -> dict[tuple[int | None, str], Tensor]:
    """Return what is stored of a batch by index of the request; what all requests store alike is of None.

    A classifier runs once over each view, however many requests there are about it.
    """
    outputs: dict[tuple[int | None, str], Tensor] = {
        (None, "labels"): batch.labels,
        (None, "photos"): batch.image_digests,
    }
    views = {
        view: images.to(device, non_blocking=True)
        for view, images in zip(requested.distinct_views, batch.views, strict=True)
    }
    is_resized = dict(zip(requested.distinct_views, batch.is_resized, strict=True))
    logits_by_view: dict[tuple[nn.Module, ImageView], Tensor] = {}
    for index, request in enumerate(requested.requests):
        key = (request.classifier.model, request.view)
        if key not in logits_by_view:
            with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
                logits_by_view[key] = request.classifier.model(views[request.view]).float()
        logits = logits_by_view[key]
        stored = {**summarise_logits(logits, request.columns), "is_resized": is_resized[request.view].long()}
        if save_probabilities:
            stored["probabilities"] = logits.softmax(dim=1)
        outputs |= {(index, name): values for name, values in stored.items()}
    return outputs
