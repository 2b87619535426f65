"""What a classifier answered on a cell of a set, kept on the disk: a killed run goes on, what was done stays done."""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float, Int64
from safetensors.torch import load, save
from torch import Tensor

from c2fmae.core.errors import UserError
from c2fmae.core.files import write_atomic

_FORMAT = 1
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
    classifier_digest: str, set_identity: str, cell_key: Sequence[object], columns: Sequence[int], settings_text: str
) -> str:
    """Return what answers depend on: weights, photos, which classes are open, precision, and this version's way."""
    return json.dumps([_FORMAT, classifier_digest, set_identity, list(cell_key), list(columns), settings_text])


def prediction_path(predictions_dir: Path, name: str, identity: str) -> Path:
    """Return the file of a cell, whose name tells a person what is in it, by all that `identity` told."""
    readable = re.sub(r"[^A-Za-z0-9._]+", "-", name)
    return predictions_dir / f"{readable}-{hashlib.sha256(identity.encode()).hexdigest()[:12]}.safetensors"


def write_predictions(path: Path, tensors: Mapping[str, Tensor], identity: str) -> None:
    """Write a cell's answers; no number takes more bytes than it needs."""
    narrowed = {
        name: each if name == "photos" else each.to(_STORED_DTYPES.get(name, torch.int32))
        for name, each in tensors.items()
    }
    write_atomic(
        path, save({name: each.contiguous() for name, each in narrowed.items()}, {"identity": identity}), is_shared=True
    )


def read_predictions(path: Path) -> StoredPredictions:
    """Read a cell's answers; a file that is damaged is named."""
    try:
        tensors = load(path.read_bytes())
        widened = {name: tensors[name].long() for name in ("predicted", "predicted_all", "labels")}
        return StoredPredictions(
            confidence=tensors["confidence"],
            image_digests=tensors["photos"].long(),
            num_resized=int(tensors["is_resized"].sum()),
            **widened,
        )
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}. Remove it: it is made again") from error
    except Exception as error:  # whatever can be wrong in a file
        raise UserError(f"{path}: is damaged. Remove it: it is made again by the next evaluation") from error
