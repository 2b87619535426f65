import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from c2fmae.data.cached import CachedScenes
from c2fmae.data.combine import SubsetScenes
from c2fmae.data.generated import GeneratedScenes
from c2fmae.data.image_sizes import read_image_sizes
from c2fmae.data.objects import open_objects
from c2fmae.data.sources import open_scenes
from tests.data.dataset_files import encode_npy


def test_sizes_are_those_of_upright_images_without_decoding_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = Image.fromarray(np.zeros((24, 36, 3), np.uint8))
    for orientation in (1, 3, 6, 8):
        exif = Image.Exif()
        exif[0x0112] = orientation
        image.save(tmp_path / f"{orientation}.jpg", exif=exif)
    image.convert("L").save(tmp_path / "a.png")
    image.convert("CMYK").save(tmp_path / "b.jpg")
    (tmp_path / "c.jpg").write_bytes(b"\xff\xd8\xff broken")
    scenes = open_scenes(tmp_path)
    assert list(scenes.keys) == ["1", "3", "6", "8", "a", "b", "c"]
    expected = [[24, 36], [24, 36], [36, 24], [36, 24], [24, 36], [24, 36], [1, 1]]
    decoded = [list(scenes[index].maps["rgb"].shape[1:]) for index in range(6)]
    assert decoded == expected[:6]
    monkeypatch.setattr("simplejpeg.decode_jpeg", None)
    assert read_image_sizes(scenes).tolist() == expected


def test_images_without_a_header_are_loaded(tmp_path: Path) -> None:
    (tmp_path / "a.npy").write_bytes(encode_npy(np.zeros((5, 7, 3), np.uint8)))
    assert read_image_sizes(open_scenes(tmp_path)).tolist() == [[5, 7]]
    assert read_image_sizes(GeneratedScenes(size=32, length=2)).tolist() == [[32, 32]] * 2


def test_sizes_in_annotations_are_used_without_reading_the_images(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        Image.fromarray(np.zeros((4, 6, 3), np.uint8)).save(tmp_path / f"{name}.png")
    entries = [{"id": n, "file_name": f"{name}.png", "height": 40 + n, "width": 60} for n, name in enumerate("abc")]
    annotation = {"id": 1, "image_id": 0, "category_id": 1, "bbox": [0, 0, 2, 2], "area": 4, "iscrowd": 0}
    document = {"images": entries, "annotations": [annotation], "categories": [{"id": 1, "name": "cat"}]}
    (tmp_path / "instances.json").write_text(json.dumps(document))
    scenes = open_objects(str(tmp_path / "instances.json"))
    assert read_image_sizes(scenes).tolist() == [[40, 60], [41, 60], [42, 60]]
    subset = CachedScenes(SubsetScenes(scenes, np.array([2, 0])))
    assert read_image_sizes(subset).tolist() == [[42, 60], [40, 60]]
