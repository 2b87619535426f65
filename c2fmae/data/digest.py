"""A digest that identifies scenes."""

import hashlib

from torch import Tensor

from c2fmae.data.scenes import Scenes
from c2fmae.data.spacing import evenly_spaced_indices

_NUM_SAMPLED = 64


def compute_scenes_digest(scenes: Scenes, source: str) -> str:
    """Return a digest of the source, `dataset.json`, all keys, and all data of 64 evenly spaced scenes.

    Reading all scenes would take as long as the evaluation that the digest identifies.
    """
    digest = hashlib.sha256(f"{source}\n{scenes.info.model_dump_json()}\n".encode())
    for key in scenes.keys:
        digest.update(key.encode() + b"\n")
    for index in evenly_spaced_indices(len(scenes), _NUM_SAMPLED):
        scene = scenes[index]
        digest.update(str(scene.label).encode() + (scenes.read_image_bytes(index) or b"-"))
        for name, tensor in sorted(scene.maps.items()):
            digest.update(name.encode() + tensor.contiguous().numpy().tobytes())
        if scene.objects is not None:
            for name, column in sorted(vars(scene.objects).items()):
                data = column.numpy().tobytes() if isinstance(column, Tensor) else repr(column).encode()
                digest.update(name.encode() + data)
    return digest.hexdigest()
