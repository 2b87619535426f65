"""The digest of scenes depends on all of their data."""

from dataclasses import replace

import torch

from c2fmae.core.objects import Objects
from c2fmae.core.scene import Scene
from c2fmae.data.digest import compute_scenes_digest
from tests.eval.tiny_backbones import InMemoryScenes


def test_the_digest_depends_on_all_data_of_objects() -> None:
    labels = torch.tensor([1])
    objects = Objects(torch.ones(1, 4), labels, labels == 0, torch.ones(1), labels, (b"04",))
    changes = {
        "boxes": torch.zeros(1, 4),
        "labels": labels + 1,
        "is_crowd": labels == 1,
        "areas": torch.zeros(1),
        "ids": labels + 1,
        "masks": (b"13",),
        "image_id": 7,
    }
    assert set(changes) == set(vars(objects))
    variants = [None, objects, replace(objects, masks=None)]
    variants += [replace(objects, **{name: value}) for name, value in changes.items()]  # type: ignore[arg-type]
    image = torch.zeros(3, 2, 2, dtype=torch.uint8)
    digests = [
        compute_scenes_digest(InMemoryScenes([Scene("a", {"rgb": image}, objects=variant)]), "source")
        for variant in variants
    ]
    assert len(set(digests)) == len(variants)
