import io
import logging
import os
import random
import signal
import subprocess
import sys
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from c2fmae.core.errors import UserError
from c2fmae.core.labels import ClassInfo, LabelInfo
from c2fmae.core.locks import lock_dir
from c2fmae.core.scene import Scene
from c2fmae.data.combine import ConcatScenes
from c2fmae.data.decode import decode_ids, decode_image
from c2fmae.data.encode import encode_ids, encode_image
from c2fmae.data.info import DatasetInfo
from c2fmae.data.pack import PackConfig, PackReport, pack_scenes
from c2fmae.data.sources import open_scenes
from c2fmae.data.tar_index import INDEX_SUFFIX

INFO = DatasetInfo(
    name="few",
    classes=(ClassInfo(name="sky"), ClassInfo(name="cat")),
    labels=(LabelInfo(name="a"), LabelInfo(name="b"), None),
)
HINT = (
    "\nTo pack the others, list the valid samples with `c2fmae data check SOURCE --fix-list good.txt`, then add"
    " `--keys good.txt` here"
)


def jpeg(pixels: np.ndarray, quality: int = 90) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG", quality=quality)
    return stream.getvalue()


@dataclass(frozen=True)
class InMemory:
    """Scenes in memory, of which one may be broken; none is stored encoded."""

    keys: Sequence[str] = ("b", "c/a.1", "a")
    height: int = 30
    width: int = 41
    stride: int = 1
    granularities: tuple[str, ...] = ("semantic", "instance", "rgb")
    broken: str = ""
    highest: int = 3
    seed: int = 0

    @property
    def info(self) -> DatasetInfo:
        return INFO.model_copy(update={"granularities": self.granularities, "label_stride": self.stride, "ignore": 0})

    def __len__(self) -> int:
        return len(self.keys)

    def encoded(self, index: int) -> bytes:
        rng = np.random.default_rng([self.seed, index])
        return jpeg(rng.integers(256, size=(self.height, self.width, 3), dtype=np.uint8))

    def read_image_bytes(self, index: int) -> bytes | None:
        return None

    def __getitem__(self, index: int) -> Scene:
        if self.keys[index] == self.broken:
            raise UserError(f"{self.broken}.jpg: broken")
        rng = np.random.default_rng([index])
        cells = (-(-self.height // self.stride), -(-self.width // self.stride))
        instance = rng.integers(self.highest + 1, size=cells, dtype=np.int32)
        instance.flat[0] = self.highest
        maps = {
            "semantic": torch.from_numpy(rng.choice(np.array([0, 1, 255], np.uint8), size=cells)),
            "instance": torch.from_numpy(instance if self.highest > 255 else instance.astype(np.uint8)),
            "rgb": decode_image(self.encoded(index), "image"),
        }
        maps = {name: maps[name] for name in self.granularities}
        return Scene(self.keys[index], maps, (None, 1, 0)[index % 3], self.stride)


class StoredInMemory(InMemory):
    """The same scenes with stored images."""

    def read_image_bytes(self, index: int) -> bytes:
        return self.encoded(index)


def members(out: Path) -> dict[str, bytes]:
    contents_by_name = {}
    for shard in sorted(out.glob("*.tar")):
        with tarfile.open(shard) as tar:
            for member in tar:
                file = tar.extractfile(member)
                assert file is not None
                contents_by_name[member.name] = file.read()
    return contents_by_name


def contents(out: Path) -> dict[str, bytes]:
    """Return the files that do not depend on the time of writing."""
    return {path.name: path.read_bytes() for path in out.iterdir() if path.suffix != INDEX_SUFFIX}


def write_tree(root: Path, count: int) -> Path:
    """Write scenes that other processes can open."""
    scenes = StoredInMemory(keys=[f"{i:04d}" for i in range(count)])
    for index, key in enumerate(scenes.keys):
        scene = scenes[index]
        files = {f"rgb/{key}.jpg": scenes.read_image_bytes(index)}
        files |= {f"{name}/{key}.png": encode_ids(scene.maps[name].numpy()) for name in ("semantic", "instance")}
        for name, data in files.items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_bytes(data)
    return root


def test_a_pack_is_sorted_by_key_and_holds_images_byte_for_byte(tmp_path: Path) -> None:
    scenes = StoredInMemory()
    report = pack_scenes(scenes, tmp_path / "out", PackConfig(label_stride=1, shard_size=2))
    packed = members(tmp_path / "out")
    assert list(packed) == [
        *("a.jpg", "a.semantic.png", "a.instance.png", "a.cls"),
        *("b.jpg", "b.semantic.png", "b.instance.png"),
        *("c/a_1.jpg", "c/a_1.semantic.png", "c/a_1.instance.png", "c/a_1.cls"),
    ]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        *("dataset.json", "pack.json"),
        *("scenes-000000.tar", "scenes-000000.tar.index", "scenes-000001.tar", "scenes-000001.tar.index"),
    ]
    assert (packed["a.cls"], packed["c/a_1.cls"]) == (b"0", b"1")
    for index, key in enumerate(("b", "c/a_1", "a")):
        assert packed[f"{key}.jpg"] == scenes.read_image_bytes(index)
        for name in ("semantic", "instance"):
            np.testing.assert_array_equal(decode_ids(packed[f"{key}.{name}.png"], ""), scenes[index].maps[name])
    size = sum(path.stat().st_size for path in (tmp_path / "out").glob("*.tar"))
    assert report == PackReport(num_scenes=3, num_shards=2, num_existing_shards=0, num_bytes=size)


@pytest.mark.parametrize("stride", [1, 2, 4, 7])
@pytest.mark.parametrize("highest", [3, 400])
def test_a_pack_reads_back_with_maps_subsampled_to_the_stride(tmp_path: Path, stride: int, highest: int) -> None:
    scenes = StoredInMemory(highest=highest)
    pack_scenes(scenes, tmp_path / "out", PackConfig(label_stride=stride))
    packed = open_scenes(tmp_path / "out")
    assert list(packed.keys) == ["a", "b", "c/a_1"]
    assert packed.info == INFO.model_copy(update={"label_stride": stride})
    for row, index in enumerate((2, 0, 1)):
        before, after = scenes[index], packed[row]
        assert (after.label, after.label_stride) == (before.label, stride)
        assert torch.equal(after.maps["rgb"], before.maps["rgb"])
        for name in ("semantic", "instance"):
            for i, j in np.ndindex(*after.maps[name].shape):
                pixel = min(i * stride + stride // 2, 29), min(j * stride + stride // 2, 40)
                assert after.maps[name][i, j] == before.maps[name][pixel]


def test_a_large_image_is_resized_with_its_maps(tmp_path: Path) -> None:
    scenes = StoredInMemory(height=60, width=83)
    pack_scenes(scenes, tmp_path / "out", PackConfig(label_stride=2, short_side=20))
    scene = open_scenes(tmp_path / "out")[0]
    assert scene.maps["rgb"].shape == (3, 20, 28)
    assert scene.maps["semantic"].shape == (10, 14)
    with Image.open(io.BytesIO(members(tmp_path / "out")["a.jpg"])) as image:
        assert image.size == (28, 20)


@pytest.mark.parametrize("side", [30, 31])
def test_a_small_image_keeps_its_bytes(tmp_path: Path, side: int) -> None:
    pack_scenes(StoredInMemory(), tmp_path / "out", PackConfig(short_side=side))
    assert members(tmp_path / "out")["a.jpg"] == StoredInMemory().read_image_bytes(2)


def test_scenes_without_stored_images_are_encoded_as_jpeg(tmp_path: Path) -> None:
    pack_scenes(InMemory(), tmp_path / "out", PackConfig())
    assert members(tmp_path / "out")["a.jpg"] == encode_image(InMemory()[2].maps["rgb"])


def test_images_of_formats_that_a_shard_cannot_hold_are_encoded_as_jpeg(tmp_path: Path) -> None:
    class Bitmaps(StoredInMemory):
        def read_image_bytes(self, index: int) -> bytes:
            stream = io.BytesIO()
            Image.fromarray(self[index].maps["rgb"].permute(1, 2, 0).numpy()).save(stream, "BMP")
            return stream.getvalue()

    pack_scenes(Bitmaps(), tmp_path / "out", PackConfig())
    assert members(tmp_path / "out")["a.jpg"] == encode_image(StoredInMemory()[2].maps["rgb"])


def test_partial_files_of_a_killed_run_are_removed(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/.scenes-000000.tar.1.part").write_bytes(b"half")
    pack_scenes(StoredInMemory(), tmp_path / "out", PackConfig())
    assert not list((tmp_path / "out").glob(".*"))


def test_images_without_maps_can_be_packed(tmp_path: Path) -> None:
    pack_scenes(StoredInMemory(granularities=("rgb",)), tmp_path / "out", PackConfig())
    assert list(members(tmp_path / "out")) == ["a.jpg", "a.cls", "b.jpg", "c/a_1.jpg", "c/a_1.cls"]
    packed = open_scenes(tmp_path / "out")
    assert (packed.info.granularities, packed.info.label_stride) == (("rgb",), 1)


def test_two_processes_cannot_pack_into_one_directory(tmp_path: Path) -> None:
    with lock_dir(tmp_path), pytest.raises(UserError, match=f"^{tmp_path}: another process is packing into it"):
        pack_scenes(StoredInMemory(), tmp_path, PackConfig())
    assert not list(tmp_path.iterdir())


def test_subsampled_maps_in_a_concatenation_are_not_resized(tmp_path: Path) -> None:
    pack_scenes(StoredInMemory(), tmp_path / "strided", PackConfig(label_stride=4))
    combined = ConcatScenes([StoredInMemory(keys=("x", "y", "z")), open_scenes(tmp_path / "strided")])
    with pytest.raises(UserError, match=r"^sample 'a': its maps are stored at label_stride 4, so it cannot be resized"):
        pack_scenes(combined, tmp_path / "out", PackConfig(label_stride=4, short_side=16))


def test_a_pack_of_a_pack_at_its_stride_is_the_same(tmp_path: Path) -> None:
    pack_scenes(StoredInMemory(), tmp_path / "one", PackConfig(label_stride=4))
    pack_scenes(open_scenes(tmp_path / "one"), tmp_path / "two", PackConfig(label_stride=4))
    assert members(tmp_path / "one") == members(tmp_path / "two")
    assert (tmp_path / "one/dataset.json").read_bytes() == (tmp_path / "two/dataset.json").read_bytes()


def test_progress_counts_every_scene_once_also_those_of_existing_shards(tmp_path: Path) -> None:
    config, seen = PackConfig(shard_size=2), list[int]()
    pack_scenes(StoredInMemory(), tmp_path / "out", config, progress=seen.append)
    (tmp_path / "out" / "scenes-000001.tar").unlink()
    pack_scenes(StoredInMemory(), tmp_path / "out", config, progress=seen.append)
    assert seen == [0, 1, 1, 1, 2, 1]


def test_a_second_run_writes_only_what_is_missing(tmp_path: Path) -> None:
    out, config = tmp_path / "out", PackConfig(shard_size=1)
    pack_scenes(StoredInMemory(), out, config)
    before = contents(out)
    (out / "scenes-000001.tar").unlink()
    (out / "dataset.json").unlink()
    (out / ".scenes-000001.tar.123.part").write_bytes(b"half")
    status = (out / "scenes-000000.tar").stat()
    report = pack_scenes(StoredInMemory(), out, config)
    assert contents(out) == before
    assert (out / "scenes-000000.tar").stat() == status
    assert (report.num_shards, report.num_existing_shards) == (3, 2)


def test_a_pack_is_opened_without_being_indexed_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    pack_scenes(StoredInMemory(), tmp_path / "out", PackConfig(shard_size=1))
    (tmp_path / "out/scenes-000002.tar.index").unlink()  # as if the pack was killed before it was written
    with caplog.at_level(logging.INFO):
        assert list(open_scenes(tmp_path / "out").keys) == ["a", "b", "c/a_1"]
    assert caplog.messages == [f"indexing {tmp_path / 'out/scenes-000002.tar'}"]


def test_an_unfinished_pack_has_no_dataset_json(tmp_path: Path) -> None:
    scenes = StoredInMemory(broken="c/a.1")
    with pytest.raises(UserError) as caught:
        pack_scenes(scenes, tmp_path / "out", PackConfig(shard_size=1))
    assert str(caught.value) == f"c/a.1.jpg: broken{HINT}"
    assert sorted(contents(tmp_path / "out")) == ["pack.json", "scenes-000000.tar", "scenes-000001.tar"]


@pytest.mark.parametrize(
    ("scenes", "settings", "changes"),
    [
        (StoredInMemory(), {"label_stride": 2}, "label_stride 4, now 2"),
        (StoredInMemory(), {"short_side": 8, "shard_size": 5}, "short_side None, now 8; shard_size 1000, now 5"),
        (
            StoredInMemory(keys=("a", "b")),
            {},
            "scenes 3, now 2; keys '.{16}', now '.{16}'; first scene '.{16}', now '.{16}'",
        ),
        (StoredInMemory(keys=("b", "d", "a")), {}, "keys '.{16}', now '.{16}'"),
        (StoredInMemory(seed=1), {}, "first scene '.{16}', now '.{16}'"),
        (StoredInMemory(granularities=("rgb",)), {}, "first scene '.{16}', now '.{16}'; dataset '.{16}', now '.{16}'"),
    ],
)
def test_another_pack_in_the_same_directory_is_refused_with_the_differences(
    tmp_path: Path, scenes: StoredInMemory, settings: dict[str, int], changes: str
) -> None:
    pack_scenes(StoredInMemory(), tmp_path / "out", PackConfig())
    before = contents(tmp_path / "out")
    message = (
        f"^{tmp_path}/out/pack.json: this pack was started with {changes}. Pack the same scenes with the same settings,"
        " or choose another directory$"
    )
    with pytest.raises(UserError, match=message):
        pack_scenes(scenes, tmp_path / "out", PackConfig.from_dict(settings))
    assert contents(tmp_path / "out") == before


@pytest.mark.parametrize(
    ("scenes", "settings", "message"),
    [
        (StoredInMemory(keys=()), {}, "there are no scenes to pack. Check the source"),
        (
            StoredInMemory(granularities=("semantic",)),
            {},
            "these scenes have no rgb images, which a pack needs. Add the granularity rgb",
        ),
        (
            StoredInMemory(stride=4),
            {"label_stride": 2},
            "label_stride: the maps of this source are stored at 4 and cannot be converted to 2. Set it to 4, or "
            "pack the"
            " full-size maps",
        ),
        (
            StoredInMemory(stride=4),
            {"short_side": 8},
            "short_side: the maps of this source are stored at label_stride 4, so its scenes cannot be resized"
            " exactly. Leave it unset, or pack the full-size maps",
        ),
        (StoredInMemory(broken="a"), {}, f"a.jpg: broken{HINT}"),
        (
            StoredInMemory(highest=65536),
            {},
            "sample 'a': id 65536 does not fit into the 16 bits of a PNG. Number the objects of a map from 1",
        ),
    ],
)
def test_scenes_and_settings_that_cannot_be_packed_are_refused(
    tmp_path: Path, scenes: StoredInMemory, settings: dict[str, int], message: str
) -> None:
    config = PackConfig.from_dict({"label_stride": scenes.stride} | settings)
    with pytest.raises(UserError) as caught:
        pack_scenes(scenes, tmp_path / "out", config)
    assert str(caught.value) == message
    assert not list((tmp_path / "out").glob("*.tar"))


def test_a_directory_with_other_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("x")
    (tmp_path / "invalid").mkdir()
    (tmp_path / "invalid" / "pack.json").write_text("x")
    for name, message in {
        "file": "is a file, not a directory. Choose a new or empty directory",
        "full": "contains 'thesis.tex' but no pack.json. Choose a new or empty directory",
        "file/deeper": "cannot be created: Not a directory. Choose another directory",
    }.items():
        with pytest.raises(UserError) as caught:
            pack_scenes(StoredInMemory(), tmp_path / name, PackConfig())
        assert str(caught.value) == f"{tmp_path / name}: {message}"
    with pytest.raises(
        UserError, match=f"^{tmp_path}/invalid/pack.json: is not JSON .* Remove {tmp_path}/invalid, and pack again"
    ):
        pack_scenes(StoredInMemory(), tmp_path / "invalid", PackConfig())


def test_a_full_disk_is_one_error_and_the_pack_can_be_continued(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, config = tmp_path / "out", PackConfig(shard_size=1)
    pack_scenes(StoredInMemory(), tmp_path / "complete", config)
    real, calls = os.fsync, list[int]()

    def run_out(file: int) -> None:
        calls.append(file)
        if len(calls) == 7:  # twice for each of plan, first shard and its index, then the second shard
            raise OSError(28, "No space left on device")
        real(file)

    monkeypatch.setattr(os, "fsync", run_out)
    with pytest.raises(UserError) as caught:
        pack_scenes(StoredInMemory(), out, config)
    assert str(caught.value) == (
        f"{out}/scenes-000001.tar: cannot be written: No space left on device. Free space or fix its permissions, then"
        " run again"
    )
    assert sorted(contents(out)) == ["pack.json", "scenes-000000.tar"]
    pack_scenes(StoredInMemory(), out, config)
    assert contents(out) == contents(tmp_path / "complete")


def test_invalid_settings_are_refused() -> None:
    with pytest.raises(UserError) as caught:
        PackConfig.from_dict({"label_stride": 0, "shard_size": 0, "name": "../a", "shrad": 1})
    assert str(caught.value).splitlines()[0] == "PackConfig: 4 problems"


SCRIPT = """
import signal, sys
from c2fmae.data.pack import PackConfig, pack_scenes
from c2fmae.data.sources import open_scenes
if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs start without
    source, out, workers = sys.argv[1:]
    report = lambda done: print(done, flush=True)
    pack_scenes(open_scenes(source), out, PackConfig(shard_size=9), workers=int(workers), progress=report)
"""


def start(tmp_path: Path, out: Path, workers: int, scenes: int = 1) -> subprocess.Popen[str]:
    """Start packing in a process group of its own, and return after `scenes` scenes."""
    (tmp_path / "script.py").write_text(SCRIPT)
    command = [sys.executable, str(tmp_path / "script.py"), str(tmp_path / "tree"), str(out), str(workers)]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    assert process.stdout is not None
    done = 0
    while done < scenes and (line := process.stdout.readline()):
        done += line == "1\n"
    return process


@pytest.mark.unchecked
def test_an_interrupted_and_killed_pack_ends_with_the_same_bytes(tmp_path: Path) -> None:
    source = open_scenes(write_tree(tmp_path / "tree", 400))
    complete, out, config = tmp_path / "complete", tmp_path / "out", PackConfig(shard_size=9)
    pack_scenes(source, complete, config)

    process = start(tmp_path, out, 2)
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert errors.count("KeyboardInterrupt") == 1  # of the parent only
    assert not list(out.glob(".*"))

    finished = [len(list(out.glob("*.tar")))]
    draw = random.Random(0)
    for workers in (1, 2):
        process = start(tmp_path, out, workers, draw.randint(10, 40))
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        assert not (out / "dataset.json").exists()
        finished.append(len(list(out.glob("*.tar"))))
    assert finished == sorted(finished)
    assert 0 < finished[-1] < 45
    pack_scenes(source, out, config, workers=2)
    assert contents(out) == contents(complete)


def test_arrays_are_packed_unchanged(tmp_path: Path) -> None:
    (tmp_path / "own").mkdir()
    (tmp_path / "own/dataset.json").write_text('{"channels": 5, "value_range": [-1, 1]}')
    rng = np.random.default_rng(0)
    for index in range(3):
        np.save(tmp_path / f"own/{index}.npy", rng.uniform(-1, 1, size=(5, 20, 30)).astype(np.float32))
    before = open_scenes(tmp_path / "own")
    pack_scenes(before, tmp_path / "packed", PackConfig())
    after = open_scenes(tmp_path / "packed")
    for index in range(3):
        assert after.read_image_bytes(index) == (tmp_path / f"own/{index}.npy").read_bytes()
        assert torch.equal(after[index].maps["rgb"], before[index].maps["rgb"])
    with pytest.raises(UserError, match=r"^short_side: resized images are stored as JPEG, which has no value_range"):
        pack_scenes(before, tmp_path / "small", PackConfig(short_side=10))
