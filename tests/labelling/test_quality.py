"""The page of a labelling shows what its manifest and maps contain."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from c2fmae.core.distributed import World
from c2fmae.core.labels import ClassInfo
from c2fmae.core.scene import Scene
from c2fmae.data import preview
from c2fmae.data.tar_index import load_or_build_index
from c2fmae.labelling import quality
from c2fmae.labelling.config import LabelConfig
from c2fmae.labelling.label import label_images, make_context, open_images
from c2fmae.labelling.protocol import LabelInput, LabelResult
from c2fmae.labelling.quality import read_manifest
from c2fmae.report.drawing import draw_tile_sheet
from tests.labelling.simple_labellers import Brightness, write_images

THRESHOLDS = (0.5, 0.5, 0.25)
UNSURE = [("0011", "confidence 89.0 %\nthreshold 25.0 %"), ("0010", "confidence 90.0 %\nthreshold 50.0 %")]


class Things(Brightness):
    """What is bright is a thing; confidences and thresholds depend on the key."""

    classes = ClassInfo(name="dark", is_thing=False), ClassInfo(name="bright", is_thing=True)

    def _label_image(self, labelled: LabelInput, stride: int) -> LabelResult:
        result, number = super()._label_image(labelled, stride), int(labelled.key)
        metadata: dict[str, Any] = {"threshold": THRESHOLDS[number % 3]}
        if "semantic" in self.granularities:
            metadata["confidence"] = 1 - number / 100
        return replace(result, metadata=metadata)


def label(
    tmp_path: Path, count: int, *, images: str = "keep", labeller: Brightness | None = None, **files: Any
) -> tuple[Path, str]:
    """Label images and return the directory and the page."""
    source = write_images(tmp_path / "images", count, **files)
    scenes, config = open_images(str(source)), LabelConfig(max_failed=0.5, shard_size=4, images=images)
    context, out = make_context(config, scenes.info, World()), tmp_path / "maps"
    label_images(scenes, [labeller or Things()], out, config, context, workers=0, is_quiet=True)
    return out, (out / "quality.html").read_text()


def test_the_page_shows_counts_and_contact_sheets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[tuple[list[str], list[str]]] = []
    draw = preview.draw_scenes

    def spy(scenes: Any, info: Any, *, notes: Any, **options: Any) -> Any:
        shown = [*scenes]
        drawn.append(([scene.key for scene in shown], notes))
        return draw(shown, info, notes=notes, **options)

    monkeypatch.setattr(quality, "_NUM_EVEN", 3)
    monkeypatch.setattr(quality, "_NUM_CHOSEN", 2)
    monkeypatch.setattr(quality, "draw_scenes", spy)
    out, page = label(tmp_path, 12, dark=[0, 2, 9], broken=[5])
    even, unsure, crowded, empty = drawn
    assert even[0] == ["0001", "0006", "0010"]  # of eleven: without 0005
    assert unsure == (["0011", "0010"], [f"{count_objects(out, key)}\n{rest}" for key, rest in UNSURE])
    counts = read_manifest(out / "manifest.jsonl").numbers["instances"]
    assert [counts[int(key)] for key in crowded[0]] == sorted(counts[~np.isnan(counts)], reverse=True)[:2]
    assert empty[0] == ["0000", "0002"]
    assert page.count("<img ") == 4
    for text in (
        "<dt>images</dt><dd>11</dd>",
        "<dt>without objects</dt><dd>3</dd>",
        "<dt>failed</dt><dd>1</dd>",
        "Objects in an image",
        "Part of the image that an object covers, in 11 images",
        "<dt>objects whose class is a thing</dt>",
        "Classes in 11 images",
        "0005.jpg: cannot be decoded",
    ):
        assert text in page
    assert f">{100 * 8 / 11:.1f}</text>" in page  # of the images have a threshold of 0.5


def count_objects(out: Path, key: str) -> str:
    number = int(read_manifest(out / "manifest.jsonl").numbers["instances"][int(key)])
    return f"{number} object{'' if number == 1 else 's'}"


@pytest.mark.parametrize(
    ("granularities", "images", "columns"),
    [
        (("semantic",), "keep", ["image", "semantic map", "classes"]),
        (("instance",), "leave-out", ["instance map"]),
        (("semantic", "instance"), "keep", ["image", "semantic map", "instance map", "outlines", "classes"]),
    ],
)
def test_the_page_shows_the_maps_that_exist(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, granularities: tuple[str, ...], images: str, columns: list[str]
) -> None:
    titles: list[list[str]] = []

    def spy(rows: Any, *, column_titles: list[str], **options: Any) -> Any:
        titles.append(column_titles)
        return draw_tile_sheet(rows, column_titles=column_titles, **options)

    monkeypatch.setattr(preview, "draw_tile_sheet", spy)
    _, page = label(tmp_path, 3, images=images, labeller=Things(granularities=granularities))
    assert sorted(titles[0]) == sorted(columns)
    assert ("Objects in an image" in page) == ("instance" in granularities)
    assert ("without classes" in page) == ("instance" not in granularities)
    assert ("Classes in 3 images" in page) == ("semantic" in granularities)


def test_of_many_shards_only_a_few_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[Path] = []

    def spy(path: Path, scan: Any) -> Any:
        opened.append(path)
        return load_or_build_index(path, scan)

    monkeypatch.setattr(quality, "load_or_build_index", spy)
    monkeypatch.setattr(quality, "_NUM_COUNTED", 5)
    _, page = label(tmp_path, 30, labeller=Things(granularities=("instance",)))
    assert [path.name for path in opened] == ["scenes-000001.tar", "scenes-000005.tar"]  # of images 7 and 22
    assert "Part of the image that an object covers, in 5 images" in page


def test_things_and_objects_are_compared_where_both_maps_are_known() -> None:
    semantic = torch.tensor([[1, 1, 1, 0, 255, 1]], dtype=torch.uint8)
    instance = torch.tensor([[1, 1, 0, 2, 2, 255]], dtype=torch.uint8)
    is_thing = np.arange(256) == 1
    scene = Scene("a", {"semantic": semantic, "instance": instance})
    assert quality._count_things(scene, is_thing) == (2, 3, 3)
