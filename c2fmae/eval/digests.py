"""What tells weights from other weights."""

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from c2fmae.models.backbones import Backbone
from c2fmae.models.classifiers import Classifier


def weights_digest(model: Backbone | Classifier) -> str:
    """Return a digest of a backbone or classifier: what it is, and its weights."""
    return module_digest(model, model.spec.model_dump_json())


def module_digest(model: nn.Module, what: str) -> str:
    """Return a digest of any model of which `what` tells the rest."""
    return tensors_digest(model.state_dict(), what)


def tensors_digest(tensors: Mapping[str, Tensor], what: str) -> str:
    """Return a digest of tensors by name, of which `what` tells the rest."""
    digest = hashlib.sha256(what.encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
