"""What tells scenes from other scenes."""

import hashlib

import numpy as np

from c2fmae.data.scenes import Scenes

_LOOKED_AT = 64


def compute_scenes_digest(scenes: Scenes, source: str) -> str:
    """Return a digest of where scenes are from, what their ids mean, their keys, and some of them with all they have.

    Of all scenes it would cost as much as reading them.
    """
    digest = hashlib.sha256(f"{source}\n{scenes.info.model_dump_json()}\n".encode())
    for key in scenes.keys:
        digest.update(key.encode() + b"\n")
    for index in np.linspace(0, len(scenes), min(_LOOKED_AT, len(scenes)), endpoint=False).astype(int).tolist():
        scene = scenes[index]
        digest.update(str(scene.label).encode() + (scenes.read_image_bytes(index) or b"-"))
        for name, each in sorted(scene.maps.items()):
            digest.update(name.encode() + each.contiguous().numpy().tobytes())
    return digest.hexdigest()
