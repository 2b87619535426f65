"""Predictions of many classifiers on many cells: each image is decoded once, and each distinct view computed once."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import compress, islice
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Bool, Int64, UInt8
from torch import Tensor, nn
from torch.utils.data import default_collate

from c2fmae.core.distributed import World
from c2fmae.data import Scenes
from c2fmae.eval.engine import BatchingConfig, gather_rows, iterate_batches
from c2fmae.eval.evaluation import Precision
from c2fmae.eval.robustness.image_classifier import ImageClassifier, ImageView, UncroppedImageView
from c2fmae.eval.robustness.prediction_store import summarise_logits, write_predictions


@dataclass(frozen=True)
class PredictionRequest:
    """The predictions of a classifier on a cell that are to be computed, and the file for them."""

    classifier: ImageClassifier
    view: ImageView
    columns: tuple[int, ...]
    """The open logits: those that the classifier chooses from."""
    path: Path
    identity: str


@dataclass(frozen=True)
class CellRequests:
    """The requests for predictions on one cell."""

    scenes: Scenes
    requests: tuple[PredictionRequest, ...]

    @property
    def distinct_views(self) -> tuple[ImageView, ...]:
        """The views of each image, without duplicates."""
        return tuple(dict.fromkeys(request.view for request in self.requests))


def select_pending(
    cell_requests: Sequence[CellRequests], world: World, *, recompute: bool = False
) -> list[CellRequests]:
    """Return the requests whose files do not exist on the main process's disk; with `recompute`, all requests."""
    is_pending: list[list[bool]] = world.broadcast_object(
        [[recompute or not request.path.exists() for request in cell.requests] for cell in cell_requests]
    )
    pending = [
        CellRequests(cell.scenes, tuple(compress(cell.requests, flags)))
        for cell, flags in zip(cell_requests, is_pending, strict=True)
    ]
    return [cell for cell in pending if cell.requests]


@torch.inference_mode()
def run_predictions(
    cell_requests: Sequence[CellRequests],
    world: World,
    batching: BatchingConfig,
    *,
    precision: Precision,
    save_probabilities: bool = False,
) -> None:
    """Compute the requested predictions, and write those of each cell as soon as the cell is complete."""
    batches = [
        (cell, rows) for cell in cell_requests for rows in world.rank_chunks(len(cell.scenes), batching.batch_size)
    ]
    for cell in cell_requests:
        for request in cell.requests:
            request.classifier.model.to(world.device).eval()
    loaded = iterate_batches(_load_views, batches, world, batching)
    for cell in cell_requests:
        num_images = len(cell.scenes)
        cell_batches = islice(loaded, len(world.rank_chunks(num_images, batching.batch_size)))
        outputs = (
            (rows, _predict_batch(cell, views, world.device, precision, save_probabilities))
            for (_, rows), views in cell_batches
        )
        gathered = gather_rows(outputs, num_images, world)
        if world.is_main:
            for index, request in enumerate(cell.requests):
                tensors = {name: values for (owner, name), values in gathered.items() if owner in (None, index)}
                write_predictions(request.path, tensors, request.identity)
    next(loaded, None)  # advances the progress display past the last batch


class _ViewBatch(NamedTuple):
    """Some images of a cell, in each distinct view."""

    views: tuple[UInt8[Tensor, "batch 3 height width"], ...]
    is_resized: tuple[Bool[Tensor, " batch"], ...]
    labels: Int64[Tensor, " batch"]
    image_digests: Int64[Tensor, " batch"]


def _load_views(batch: tuple[CellRequests, range]) -> _ViewBatch:
    cell, rows = batch
    scenes = [cell.scenes[row] for row in rows]
    images = [scene.maps["rgb"] for scene in scenes]
    keys = b"".join(hashlib.blake2b(scene.key.encode(), digest_size=8).digest() for scene in scenes)
    return _ViewBatch(
        views=tuple(default_collate([view(image) for image in images]) for view in cell.distinct_views),
        is_resized=tuple(
            torch.tensor(
                [isinstance(view, UncroppedImageView) and tuple(image.shape[1:]) != view.size for image in images]
            )
            for view in cell.distinct_views
        ),
        labels=torch.tensor([-1 if scene.label is None else scene.label for scene in scenes]),
        image_digests=torch.frombuffer(bytearray(keys), dtype=torch.int64),
    )


def _predict_batch(
    cell: CellRequests, batch: _ViewBatch, device: torch.device, precision: Precision, save_probabilities: bool
) -> dict[tuple[int | None, str], Tensor]:
    """Return the tensors to store, by index of the request and name; the index is None for tensors of all requests.

    A classifier runs once on each view, even if several requests need its logits.
    """
    outputs: dict[tuple[int | None, str], Tensor] = {
        (None, "labels"): batch.labels,
        (None, "photos"): batch.image_digests,
    }
    views = {
        view: images.to(device, non_blocking=True)
        for view, images in zip(cell.distinct_views, batch.views, strict=True)
    }
    is_resized = dict(zip(cell.distinct_views, batch.is_resized, strict=True))
    logits_by_view: dict[tuple[nn.Module, ImageView], Tensor] = {}
    for index, request in enumerate(cell.requests):
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
