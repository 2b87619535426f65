import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from c2fmae import __version__
from c2fmae.core.errors import UserError
from c2fmae.core.labels import LabelInfo
from c2fmae.core.locks import lock_dir
from c2fmae.core.scene import Scene
from c2fmae.data.class_dirs import class_dir_names
from c2fmae.data.combine import SubsetScenes, select_evenly
from c2fmae.data.corruption.apply import (
    centre_crop,
    corrupt_image,
    corruption_seed,
    corruption_tool_version,
    encode_jpeg,
)
from c2fmae.data.corruption.make_set import CorruptionConfig, CorruptionReport, corrupt_scenes, describe_source
from c2fmae.data.corruption.set_dir import image_file_names
from c2fmae.data.generated import GeneratedScenes
from c2fmae.data.info import DatasetInfo
from c2fmae.data.sources import open_scenes
from tests.data.dataset_files import assert_user_error

LABELS = (LabelInfo(name="house cat", wnid="n02121808"), None, LabelInfo(name="and/or"))
QUICK: dict[str, Any] = {"corruptions": ("gaussian_noise", "contrast"), "severities": (1, 4)}
CELLS = [(name, severity) for name in ("gaussian_noise", "contrast") for severity in (1, 4)]
SETTINGS = CorruptionConfig(quality=70, seed=3)


@dataclass(frozen=True)
class InMemory:
    """Images in memory with the given sizes, channels and labels."""

    keys: Sequence[str] = ("x/b.1", "x/a", "c")
    labels: Sequence[int | None] = (2, 0, 0)
    names: tuple[LabelInfo | None, ...] = LABELS
    shape: tuple[int, int, int] = (3, 34, 45)
    broken: str = ""
    seed: int = 0

    @property
    def info(self) -> DatasetInfo:
        return DatasetInfo(name="few", granularities=("rgb",), labels=self.names)

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, index: int) -> Scene:
        if self.keys[index] == self.broken:
            raise UserError(f"{self.broken}.jpg: broken")
        pixels = np.random.default_rng([self.seed, index]).integers(256, size=self.shape, dtype=np.uint8)
        return Scene(self.keys[index], {"rgb": torch.from_numpy(pixels)}, self.labels[index])

    def read_image_bytes(self, index: int) -> bytes | None:
        return None


def files(root: Path) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def read_record(out: Path) -> dict[str, Any]:
    record: dict[str, Any] = json.loads((out / "dataset.json").read_text())["corrupted"]
    return record


def test_a_set_has_the_layout_of_imagenet_c_and_a_creation_record(tmp_path: Path) -> None:
    report = corrupt_scenes(InMemory(), tmp_path / "out", SETTINGS, source="mine", **QUICK)
    written = files(tmp_path / "out")
    images = ["and_or/b.1.jpg", "n02121808/a.jpg", "n02121808/c.jpg"]
    assert set(written) == {
        *(f"{name}/{severity}/{image}" for name, severity in CELLS for image in images),
        "dataset.json",
    }
    size = sum(len(data) for name, data in written.items() if name != "dataset.json")
    assert report == CorruptionReport(num_images=3, num_written=12, num_existing=0, num_bytes=size, unfinished=())
    info = DatasetInfo.read_from_dir(tmp_path / "out")
    assert info is not None
    assert (info.name, info.granularities, info.labels) == ("few", ("rgb",), LABELS)
    assert {
        key: value for key, value in read_record(tmp_path / "out").items() if key not in ("keys", "first photo")
    } == {
        "made_by": f"c2fmae {__version__}",
        "tool": corruption_tool_version(),
        "source": "mine",
        "samples": 3,
        "size": None,
        "crop": None,
        "quality": 70,
        "seed": 3,
    }


def test_each_image_is_corrupted_with_a_seed_of_its_key(tmp_path: Path) -> None:
    scenes = InMemory()
    corrupt_scenes(scenes, tmp_path, SETTINGS, **QUICK)
    for index, path in enumerate(("and_or/b.1.jpg", "n02121808/a.jpg", "n02121808/c.jpg")):
        for name, severity in CELLS:
            seed = corruption_seed(3, scenes.keys[index], name, severity)
            corrupted = corrupt_image(scenes[index].maps["rgb"], name, severity, seed)
            assert (tmp_path / name / str(severity) / path).read_bytes() == encode_jpeg(corrupted, 70)


def test_images_are_cropped_before_corruption(tmp_path: Path) -> None:
    scenes = InMemory(shape=(3, 20, 31))  # too small without resizing
    corrupt_scenes(scenes, tmp_path, CorruptionConfig(image_size=40), **QUICK)
    image = centre_crop(scenes[1].maps["rgb"], 40)
    corrupted = corrupt_image(image, "contrast", 4, corruption_seed(0, "x/a", "contrast", 4))
    assert (tmp_path / "contrast/4/n02121808/a.jpg").read_bytes() == encode_jpeg(corrupted, 85)
    assert (read_record(tmp_path)["size"], read_record(tmp_path)["crop"]) == ([40, 40], 0.875)


@pytest.mark.parametrize("channels", [1, 4])
def test_grey_and_transparent_images_are_converted_to_rgb(tmp_path: Path, channels: int) -> None:
    corrupt_scenes(InMemory(shape=(channels, 40, 33)), tmp_path, SETTINGS, **QUICK)
    for path in tmp_path.rglob("*.jpg"):
        with Image.open(path) as image:
            assert (image.mode, image.size) == ("RGB", (33, 40))


def test_a_cell_reads_back_with_the_right_labels(tmp_path: Path) -> None:
    corrupt_scenes(InMemory(), tmp_path, SETTINGS, **QUICK)
    for name, severity in CELLS:
        cell = open_scenes(tmp_path / name / str(severity))
        labels = {key: cell.info.label_names[cell[i].label or 0] for i, key in enumerate(cell.keys)}
        assert labels == {"and_or/b.1": "and_or", "n02121808/a": "n02121808", "n02121808/c": "n02121808"}


def test_unlabelled_images_are_in_no_class_directory_and_unnamed_labels_are_numbers(tmp_path: Path) -> None:
    corrupt_scenes(InMemory(labels=(None, 7, None), names=()), tmp_path, SETTINGS, **QUICK)
    cell = sorted(files(tmp_path / "contrast/1"))
    assert cell == ["7/a.jpg", "b.1.jpg", "c.jpg"]


def test_generated_scenes_can_be_corrupted(tmp_path: Path) -> None:
    scenes = open_scenes("generated", granularities=("rgb",), size=32, length=3)
    corrupt_scenes(scenes, tmp_path, SETTINGS, corruptions=("fog",), severities=(2,))
    names = {scenes.info.label_names[scenes[i].label or 0] for i in range(3)}
    assert {path.name for path in (tmp_path / "fog/2").iterdir()} == names
    assert len(open_scenes(tmp_path / "fog/2")) == 3


@pytest.mark.parametrize("other", [{"workers": 0}, {"corruptions": ("contrast",)}, {"severities": (4,)}])
def test_bytes_do_not_depend_on_workers_or_other_cells(tmp_path: Path, other: dict[str, Any]) -> None:
    corrupt_scenes(InMemory(), tmp_path / "all", SETTINGS, **QUICK)
    corrupt_scenes(InMemory(), tmp_path / "some", SETTINGS, **{**QUICK, **other})
    every, some = files(tmp_path / "all"), files(tmp_path / "some")
    assert some.items() <= every.items()
    assert len(some) > 3


def test_bytes_do_not_depend_on_other_images(tmp_path: Path) -> None:
    corrupt_scenes(InMemory(), tmp_path / "all", SETTINGS, **QUICK)
    corrupt_scenes(SubsetScenes(InMemory(), np.array([1])), tmp_path / "one", SETTINGS, **QUICK)
    path = "gaussian_noise/4/n02121808/a.jpg"
    assert (tmp_path / "one" / path).read_bytes() == (tmp_path / "all" / path).read_bytes()


def test_a_second_run_writes_only_what_is_missing(tmp_path: Path) -> None:
    corrupt_scenes(InMemory(), tmp_path, SETTINGS, **QUICK)
    before, status = files(tmp_path), (tmp_path / "contrast/1/n02121808/c.jpg").stat()
    for name in ("contrast/4/n02121808/a.jpg", "gaussian_noise/1/n02121808/a.jpg", "contrast/1/and_or/b.1.jpg"):
        (tmp_path / name).unlink()
    (tmp_path / "contrast/4/n02121808/.a.jpg.12.part").write_bytes(b"half")
    (tmp_path / ".dataset.json.12.part").write_bytes(b"half")
    seen = list[int]()
    report = corrupt_scenes(InMemory(), tmp_path, SETTINGS, progress=seen.append, **QUICK)
    assert files(tmp_path) == before
    assert (tmp_path / "contrast/1/n02121808/c.jpg").stat() == status
    assert (report.num_written, report.num_existing, seen) == (3, 9, [10, 1, 1])


def test_a_finished_set_is_unchanged_and_no_image_is_read(tmp_path: Path) -> None:
    scenes = InMemory()
    corrupt_scenes(scenes, tmp_path, SETTINGS, **QUICK)
    before = files(tmp_path)
    report = corrupt_scenes(InMemory(broken="c"), tmp_path, SETTINGS, **QUICK)
    assert (report.num_written, report.num_existing) == (0, 12)
    assert files(tmp_path) == before


def test_unfinished_cells_are_listed_until_they_are_complete(tmp_path: Path) -> None:
    scenes = InMemory(keys=[f"{i:02d}" for i in range(20)], labels=[0] * 20)
    with pytest.raises(UserError):
        corrupt_scenes(replace(scenes, broken="11"), tmp_path / "out", SETTINGS, **QUICK)
    assert len(list((tmp_path / "out").rglob("*.jpg"))) == 11 * 4
    assert read_record(tmp_path / "out")["unfinished"] == [f"{name}/{severity}" for name, severity in CELLS]
    report = corrupt_scenes(scenes, tmp_path / "out", SETTINGS, corruptions=("contrast", "fog"), severities=(4,))
    assert read_record(tmp_path / "out")["unfinished"] == ["gaussian_noise/1", "gaussian_noise/4", "contrast/1"]
    assert report.unfinished == (("gaussian_noise", 1), ("gaussian_noise", 4), ("contrast", 1))
    corrupt_scenes(scenes, tmp_path / "out", SETTINGS, **QUICK)
    assert "unfinished" not in read_record(tmp_path / "out")
    corrupt_scenes(scenes, tmp_path / "complete", SETTINGS, corruptions=("fog",), severities=(4,))
    corrupt_scenes(scenes, tmp_path / "complete", SETTINGS, **QUICK)
    assert files(tmp_path / "out") == files(tmp_path / "complete")


@pytest.mark.parametrize(
    ("scenes", "settings", "changes"),
    [
        (InMemory(), {"image_size": 32}, r"size None, now \[32, 32\]; crop None, now 0.875"),
        (InMemory(), {"quality": 71, "seed": 4}, "quality 70, now 71; seed 3, now 4"),
        (
            InMemory(keys=("a", "b"), labels=(0, 0)),
            {},
            "samples 3, now 2; keys '.{16}', now '.{16}'",
        ),
        (InMemory(seed=1), {}, "first photo '.{16}', now '.{16}'"),
        (InMemory(names=(*LABELS, None)), {}, "other labels"),
    ],
)
def test_other_settings_in_the_same_directory_are_refused_with_the_differences(
    tmp_path: Path, scenes: InMemory, settings: dict[str, int], changes: str
) -> None:
    corrupt_scenes(InMemory(), tmp_path, SETTINGS, **QUICK)
    before = files(tmp_path)
    message = (
        f"^{tmp_path}/dataset.json: this set was started with {changes}. Corrupt the same scenes with the same"
        " settings, or choose another directory$"
    )
    with pytest.raises(UserError, match=message):
        corrupt_scenes(scenes, tmp_path, CorruptionConfig.from_dict({**SETTINGS.model_dump(), **settings}), **QUICK)
    assert files(tmp_path) == before


def test_the_creator_of_a_set_stays_in_its_record(tmp_path: Path) -> None:
    corrupt_scenes(InMemory(), tmp_path, SETTINGS, corruptions=("fog",), severities=(1,))
    text = (tmp_path / "dataset.json").read_text()
    (tmp_path / "dataset.json").write_text(text.replace(f"c2fmae {__version__}", "c2fmae 0.0.1"))
    corrupt_scenes(InMemory(), tmp_path, SETTINGS, **QUICK)
    assert read_record(tmp_path)["made_by"] == "c2fmae 0.0.1"


def test_a_directory_with_other_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "full").mkdir()
    (tmp_path / "full/thesis.tex").write_text("x")
    (tmp_path / "other").mkdir()
    (tmp_path / "other/dataset.json").write_text(DatasetInfo(name="x").to_json())
    for name, message in {
        "file": "is a file, not a directory. Choose a new or empty directory",
        "file/deeper": "cannot be created: Not a directory. Choose another directory",
        "full": "contains 'thesis.tex' but no dataset.json of a corruption set. Choose a new or empty directory",
        "other": "contains 'dataset.json' but no dataset.json of a corruption set. Choose a new or empty directory",
    }.items():
        assert_user_error(
            partial(corrupt_scenes, InMemory(), tmp_path / name, SETTINGS), f"{tmp_path / name}: {message}"
        )
    with lock_dir(tmp_path):
        assert_user_error(
            lambda: corrupt_scenes(InMemory(), tmp_path, SETTINGS),
            f"{tmp_path}: another process is writing into it. Wait for it, or choose another directory",
        )


@pytest.mark.parametrize(
    ("scenes", "message"),
    [
        (InMemory(keys=()), "there are no scenes to corrupt. Check the source"),
        (
            InMemory(broken="x/b.1"),
            "x/b.1.jpg: broken\nTo corrupt the others, list the valid samples with `c2fmae data check SOURCE --fix-list"
            " good.txt`, then add `--keys good.txt` here",
        ),
        (
            InMemory(shape=(3, 31, 50)),
            "sample 'x/b.1': the image has 50×31 pixels (expected at least 32 on each side). Resize all images with"
            " --image-size 32, or remove the image",
        ),
        (
            InMemory(keys=("a/b_c", "a_b/c", "d/c"), labels=(0, 0, 0)),
            "samples 'a/b_c' and 'a_b/c' would both be written as a_b_c.jpg. Rename one",
        ),
        (
            InMemory(names=(LabelInfo(name="crane"), None, LabelInfo(name="crane"))),
            "dataset.json: labels 0 and 2 have the same class directory 'crane'. Give each a `wnid`, or different"
            " names",
        ),
    ],
)
def test_scenes_that_cannot_be_corrupted_are_refused(tmp_path: Path, scenes: InMemory, message: str) -> None:
    assert_user_error(lambda: corrupt_scenes(scenes, tmp_path, SETTINGS, **QUICK), message)
    assert not list(tmp_path.rglob("*.jpg"))


def test_scenes_without_images_are_refused(tmp_path: Path) -> None:
    scenes = SubsetScenes(GeneratedScenes(size=32, length=2), granularities=("semantic",))
    assert_user_error(
        lambda: corrupt_scenes(scenes, tmp_path, SETTINGS),
        "these scenes have no rgb images to corrupt. Add the granularity rgb",
    )


def test_a_full_disk_is_refused_before_the_first_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=12 * 4096 - 1)  # each small image takes a block
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    assert_user_error(
        lambda: corrupt_scenes(InMemory(), tmp_path / "out", SETTINGS, **QUICK),
        f"{tmp_path}/out: the 12 images need 0.0 MB of disk space, but 0.0 MB are free. Free disk space, choose another"
        " --out, or create fewer with --limit, --only or --severity",
    )
    assert not list((tmp_path / "out").iterdir())
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=12 * 4096))
    corrupt_scenes(InMemory(), tmp_path / "out", SETTINGS, **QUICK)


def test_a_full_disk_is_one_error_and_the_set_can_be_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, real = tmp_path / "out", os.fsync

    def run_out(file: int) -> None:
        if len(list(out.rglob("*.jpg"))) == 5:
            raise OSError(28, "No space left on device")
        real(file)

    monkeypatch.setattr(os, "fsync", run_out)
    with pytest.raises(
        UserError, match="jpg: cannot be written: No space left on device. Free space or fix its permissions, then run"
    ):
        corrupt_scenes(InMemory(), out, SETTINGS, **QUICK)
    monkeypatch.setattr(os, "fsync", real)
    corrupt_scenes(InMemory(), out, SETTINGS, **QUICK)
    corrupt_scenes(InMemory(), tmp_path / "complete", SETTINGS, **QUICK)
    assert files(out) == files(tmp_path / "complete")


def test_keys_and_labels_are_converted_to_file_names() -> None:
    assert image_file_names(["a/.hidden", "b\\c", "v1.0"]) == ["_hidden", "b_c", "v1.0"]
    assert image_file_names(["a/1", "b/1", "c"]) == ["a_1", "b_1", "c"]
    assert class_dir_names([LabelInfo(name="tench, Tinca tinca"), None, LabelInfo(name="..")]) == [
        *("tench, Tinca tinca", "", "_."),
    ]


def test_selected_scenes_are_evenly_spaced() -> None:
    scenes = GeneratedScenes(size=32, length=10)
    assert list(select_evenly(scenes, 3).keys) == [scenes.keys[i] for i in (1, 5, 8)]
    assert list(select_evenly(scenes, 99).keys) == list(scenes.keys)


SCRIPT = """
import sys
from c2fmae.data.corruption.make_set import CorruptionConfig, corrupt_scenes
from c2fmae.data.sources import open_scenes
scenes = open_scenes("generated", granularities=("rgb",), size=64, length=12)
corruptions = ("impulse_noise", "defocus_blur", "frost", "elastic_transform", "spatter")
report = lambda done: print(done, flush=True)
corrupt_scenes(scenes, sys.argv[1], CorruptionConfig(), corruptions=corruptions, progress=report)
"""


@pytest.mark.unchecked
def test_a_killed_run_is_finished_by_two_processes_with_the_same_bytes(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with subprocess.Popen([sys.executable, "-c", SCRIPT, str(out)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        while process.stdout.readline() not in ("1\n", ""):
            pass
        time.sleep(random.Random(0).uniform(0.05, 0.1))
        process.send_signal(signal.SIGKILL)
    assert len(read_record(out)["unfinished"]) == 25
    assert 0 < len(list(out.rglob("*.jpg"))) < 12 * 25
    scenes = open_scenes("generated", granularities=("rgb",), size=64, length=12)
    corruptions = ("impulse_noise", "defocus_blur", "frost", "elastic_transform", "spatter")
    finish = corrupt_scenes(scenes, out, CorruptionConfig(), corruptions=corruptions, workers=2)
    corrupt_scenes(scenes, tmp_path / "complete", CorruptionConfig(), corruptions=corruptions, workers=0)
    assert finish.num_existing > 0
    assert finish.num_existing + finish.num_written == 12 * 25
    assert files(out) == files(tmp_path / "complete")


def test_the_source_of_a_set_is_named_by_its_data_set_and_its_path(tmp_path: Path) -> None:
    named = GeneratedScenes(size=32, length=1)
    assert describe_source("generated", named) == named.info.name
    assert describe_source("packs/voc", named) == f"{named.info.name} (voc)"
    Image.new("RGB", (40, 40)).save(tmp_path / "one.png")
    assert describe_source(str(tmp_path), open_scenes(tmp_path)) == tmp_path.name
