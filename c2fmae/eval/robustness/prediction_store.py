"""What a classifier answered on a cell of a set, kept on the disk: a killed run goes on, what was done stays done."""

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

from c2fmae.eval.cache import load_tensors, save_tensors

_FORMAT = 2
_STORED_DTYPES = {"confidence": torch.float32, "probabilities": torch.float16, "is_resized": torch.uint8}


@dataclass(frozen=True)
class StoredPredictions:
    """Answers on the photos of a cell, in their order."""

    predicted: Int64[Tensor, " photo"]
    """The index of the logit that is highest among those that are open to the model."""
    predicted_all: Int64[Tensor, " photo"]
    """The same among all."""
    confidence: Float[Tensor, " photo"]
    """The probability of the first, of those that are open."""
    labels: Int64[Tensor, " photo"]
    """The set's labels; -1 where a photo has none."""
    image_digests: Int64[Tensor, " photo"]
    """A digest of each photo's key, by which it is found again in other cells."""
    num_resized: int
    """Of photos that were to be taken as they are, how many had another size than the model's."""


def summarise_logits(logits: Float[Tensor, "photo classes"], columns: Sequence[int]) -> dict[str, Tensor]:
    """Return what is kept of logits of which these columns are open; equal ones go to the first."""
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
    """Return everything that predictions depend on: weights, images, open logits, settings and the format."""
    return json.dumps([_FORMAT, classifier_digest, set_identity, list(cell_key), list(columns), dict(settings)])


def prediction_path(predictions_dir: Path, name: str, identity: str) -> Path:
    """Return the file of a cell, whose name tells a person what is in it, by all that `identity` told."""
    readable = re.sub(r"[^A-Za-z0-9._]+", "-", name)
    return predictions_dir / f"{readable}-{hashlib.sha256(identity.encode()).hexdigest()[:12]}.safetensors"


def write_predictions(path: Path, tensors: Mapping[str, Tensor], identity: str) -> None:
    """Write the predictions of a cell, each number in as few bytes as it needs."""
    narrowed = {
        name: values if name == "photos" else values.to(_STORED_DTYPES.get(name, torch.int32))
        for name, values in tensors.items()
    }
    save_tensors(path, narrowed, {"identity": identity})


def read_predictions(path: Path) -> StoredPredictions:
    """Read the predictions of a cell."""
    names = ("predicted", "predicted_all", "confidence", "labels", "photos", "is_resized")
    predicted, predicted_all, confidence, labels, image_digests, is_resized = load_tensors(path, names)
    return StoredPredictions(
        predicted.long(), predicted_all.long(), confidence, labels.long(), image_digests, int(is_resized.sum())
    )
