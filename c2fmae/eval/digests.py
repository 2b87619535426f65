"""Digests that tell weights, settings and results from others."""

import hashlib
import json
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from c2fmae.core.specs import spec_identity
from c2fmae.models.backbones import Backbone
from c2fmae.models.classifiers import Classifier


def compute_json_digest(document: object, *, length: int) -> str:
    """Return the first hexadecimal digits of the SHA-256 of a document's JSON."""
    return hashlib.sha256(json.dumps(document).encode()).hexdigest()[:length]


def compute_weights_digest(model: Backbone | Classifier) -> str:
    """Return a digest of a backbone or classifier: what it is, and its weights."""
    return compute_module_digest(model, spec_identity(model.spec))


def compute_module_digest(model: nn.Module, description: str) -> str:
    """Return a digest of any model of which `description` tells the rest."""
    return compute_tensors_digest(model.state_dict(), description)


def compute_tensors_digest(tensors: Mapping[str, Tensor], description: str) -> str:
    """Return a digest of tensors by name, of which `description` tells the rest."""
    digest = hashlib.sha256(description.encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
