"""Cached results: digests that identify their inputs, and files of tensors that take long to compute."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from c2fmae.core.errors import UserError
from c2fmae.core.files import check_regular_file, write_atomic
from c2fmae.core.specs import spec_identity
from c2fmae.models.backbones import Backbone
from c2fmae.models.classifiers import Classifier
from c2fmae.models.detectors import Detector
from c2fmae.models.segmenters import Segmenter

_FIX = "Delete it; the next evaluation computes it again"


def compute_json_digest(document: object, *, length: int) -> str:
    """Return the first hexadecimal digits of the SHA-256 of a document's JSON."""
    return hashlib.sha256(json.dumps(document).encode()).hexdigest()[:length]


def compute_weights_digest(model: Backbone | Classifier | Segmenter | Detector) -> str:
    """Return a digest of the spec and the weights of a model."""
    return compute_module_digest(model, spec_identity(model.spec))


def compute_module_digest(model: nn.Module, description: str) -> str:
    """Return a digest of a description and a module's tensors."""
    return compute_tensors_digest(model.state_dict(), description)


def compute_tensors_digest(tensors: Mapping[str, Tensor], description: str) -> str:
    """Return a digest of a description and of tensors by name."""
    digest = hashlib.sha256(description.encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def save_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write tensors from any device into one file, completely or not at all."""
    contiguous = {name: values.cpu().contiguous() for name, values in tensors.items()}
    write_atomic(path, save(contiguous, dict(metadata) if metadata else None), is_shared=True)


def open_tensors(path: Path) -> Any:
    """Open a file of tensors; read them with `get_tensor(name)` or `get_slice(name)`."""
    check_regular_file(path, fix=_FIX)
    try:
        return safe_open(path, framework="pt")
    except (OSError, SafetensorError) as error:
        raise _unreadable_error(path, error) from error


def load_tensors(path: Path, names: Sequence[str]) -> list[Tensor]:
    """Return tensors of a file by name."""
    opened = open_tensors(path)
    try:
        return [opened.get_tensor(name) for name in names]
    except (OSError, SafetensorError) as error:
        raise _unreadable_error(path, error) from error


def load_slice(path: Path, name: str) -> Any:
    """Return a tensor of a file of which only the requested rows are read. It has at least one dimension."""
    try:
        stored = open_tensors(path).get_slice(name)
    except (OSError, SafetensorError) as error:
        raise _unreadable_error(path, error) from error
    if not stored.get_shape():
        raise corrupted_error(path)
    return stored


def corrupted_error(path: Path) -> UserError:
    """Return the error for a cached file with unexpected content."""
    return UserError(f"{path}: is corrupted. {_FIX}")


def _unreadable_error(path: Path, error: Exception) -> UserError:
    reason = f"cannot be read: {error}" if isinstance(error, OSError) else "is corrupted"
    return UserError(f"{path}: {reason}. {_FIX}")
