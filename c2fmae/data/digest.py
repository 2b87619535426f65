"""What tells scenes from other scenes."""

import hashlib

from c2fmae.data.scenes import Scenes
from c2fmae.data.spacing import evenly_spaced_indices

_NUM_SAMPLED = 64


def compute_scenes_digest(scenes: Scenes, source: str) -> str:
    """Return a digest of where scenes are from, what their ids mean, their keys, and some of them with all they have.

    Of all scenes it would cost as much as reading them.
    """
    digest = hashlib.sha256(f"{source}\n{scenes.info.model_dump_json()}\n".encode())
    for key in scenes.keys:
        digest.update(key.encode() + b"\n")
    for index in evenly_spaced_indices(len(scenes), _NUM_SAMPLED):
        scene = scenes[index]
        digest.update(str(scene.label).encode() + (scenes.read_image_bytes(index) or b"-"))
        for name, each in sorted(scene.maps.items()):
            digest.update(name.encode() + each.contiguous().numpy().tobytes())
    return digest.hexdigest()
