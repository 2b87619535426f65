"""Cached predictions of a classifier on the cells of a set, so that an interrupted evaluation can resume."""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from c2fmae.eval.cache import corrupted_error, load_tensors, save_tensors

_FORMAT = 2
_STORED_DTYPES = {"confidence": torch.float32, "probabilities": torch.float16, "is_resized": torch.uint8}


@dataclass(frozen=True)
class StoredPredictions:
    """Predictions on the images of a cell, in the order of the images."""

    predicted: Int64[Tensor, " image"]
    """The index of the highest open logit."""
    predicted_all: Int64[Tensor, " image"]
    """The index of the highest of all logits."""
    confidence: Float[Tensor, " image"]
    """The probability of `predicted` among the open logits."""
    labels: Int64[Tensor, " image"]
    """The set's labels; -1 for an image without one."""
    image_digests: Int64[Tensor, " image"]
    """A digest of each image's key, by which the same image is recognised in other cells."""
    num_resized: int
    """The number of uncropped images that were resized, since their size is not the model's."""


def summarise_logits(logits: Float[Tensor, "image classes"], columns: Sequence[int]) -> dict[str, Tensor]:
    """Return the predictions to store. `columns` are the open logits; of equal logits, the first is chosen."""
    logits = logits.float()
    open_columns = torch.tensor(columns, device=logits.device)
    open_logits = logits[:, open_columns]
    top = open_logits.argmax(dim=1)
    confidence = open_logits.softmax(dim=1).gather(1, top[:, None])[:, 0]
    return {"predicted": open_columns[top], "predicted_all": logits.argmax(dim=1), "confidence": confidence}


def compute_prediction_identity(
    classifier_digest: str,
    set_identity: str,
    cell_key: Sequence[object],
    columns: Sequence[int],
    settings: Mapping[str, Any],
) -> str:
    """Return all that predictions depend on: weights, images, open logits, settings and the format of the file."""
    return json.dumps([_FORMAT, classifier_digest, set_identity, list(cell_key), list(columns), dict(settings)])


def prediction_path(predictions_dir: Path, name: str, identity: str) -> Path:
    """Return the file of a cell's predictions: a readable name and a digest of `identity`."""
    readable_name = re.sub(r"[^A-Za-z0-9._]+", "-", name)
    return predictions_dir / f"{readable_name}-{hashlib.sha256(identity.encode()).hexdigest()[:12]}.safetensors"


def write_predictions(path: Path, tensors: Mapping[str, Tensor], identity: str) -> None:
    """Write the predictions of a cell, in small dtypes; the tensor 'photos' holds the image digests."""
    narrowed = {
        name: values if name == "photos" else values.to(_STORED_DTYPES.get(name, torch.int32))
        for name, values in tensors.items()
    }
    save_tensors(path, narrowed, {"identity": identity})


def read_predictions(path: Path) -> StoredPredictions:
    """Read the predictions of a cell."""
    names = ("predicted", "predicted_all", "confidence", "labels", "photos", "is_resized")
    tensors = dict(zip(names, load_tensors(path, names), strict=True))
    for name, values in tensors.items():
        dtype = torch.int64 if name == "photos" else _STORED_DTYPES.get(name, torch.int32)
        if values.dtype != dtype or values.ndim != 1 or len(values) != len(tensors["predicted"]):
            raise corrupted_error(path)
    predicted, predicted_all, confidence, labels, image_digests, is_resized = tensors.values()
    return StoredPredictions(
        predicted.long(), predicted_all.long(), confidence, labels.long(), image_digests, int(is_resized.sum())
    )
