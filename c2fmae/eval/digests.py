"""What tells weights from other weights, and scenes from other scenes."""

import hashlib
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from c2fmae.data import Scenes
from c2fmae.models.backbones import Backbone
from c2fmae.models.classifiers import Classifier

_LOOKED_AT = 64


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


def scenes_digest(scenes: Scenes, source: str) -> str:
    """Return a digest of where scenes are from, what their ids mean, their keys, and some of them with all they have.

    Of all scenes it would cost as much as reading them.
    """
    digest = hashlib.sha256(f"{source}\n{scenes.info.model_dump_json()}\n".encode())
    for key in scenes.keys:
        digest.update(key.encode() + b"\n")
    for index in np.linspace(0, len(scenes), min(_LOOKED_AT, len(scenes)), endpoint=False).astype(int).tolist():
        scene = scenes[index]
        digest.update(str(scene.label).encode() + (scenes.photo(index) or b"-"))
        for name, each in sorted(scene.maps.items()):
            digest.update(name.encode() + each.contiguous().numpy().tobytes())
    return digest.hexdigest()
