import io
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
from c2fmae.core.labels import LabelInfo
from c2fmae.core.locks import lock_dir
from c2fmae.core.scene import Scene
from c2fmae.data.combine import ConcatScenes
from c2fmae.data.decode import decode_ids, decode_image
from c2fmae.data.encode import encode_ids, encode_image
from c2fmae.data.info import ClassInfo, DatasetInfo
from c2fmae.data.pack import PackConfig, PackReport, pack_scenes
from c2fmae.data.sources import open_scenes

INFO = DatasetInfo(
    name="few",
    classes=(ClassInfo(name="sky"), ClassInfo(name="cat")),
    labels=(LabelInfo(name="a"), LabelInfo(name="b"), None),
)
HINT = (
    "\nTo pack the others: `c2fmae data check SOURCE --fix-list good.txt` lists all that is broken, then add"
    " `--keys good.txt` here"
)


def jpeg(pixels: np.ndarray, quality: int = 90) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG", quality=quality)
    return stream.getvalue()


@dataclass(frozen=True)
class Decoded:
    """Scenes in memory, of which one may be broken."""

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
        """Say that none is stored."""
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
            "rgb": decode_image(self.encoded(index), "photo"),
        }
        kept = {name: maps[name] for name in self.granularities}
        return Scene(self.keys[index], kept, (None, 1, 0)[index % 3], self.stride)


class Few(Decoded):
    """The same with encoded photos."""

    def read_image_bytes(self, index: int) -> bytes:
        return self.encoded(index)


def members(out: Path) -> dict[str, bytes]:
    found = {}
    for shard in sorted(out.glob("*.tar")):
        with tarfile.open(shard) as tar:
            for member in tar:
                stream = tar.extractfile(member)
                assert stream is not None
                found[member.name] = stream.read()
    return found


def contents(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in out.iterdir()}


def write_tree(root: Path, count: int) -> Path:
    """Scenes that other processes can open."""
    few = Few(keys=[f"{i:04d}" for i in range(count)])
    for index, key in enumerate(few.keys):
        scene = few[index]
        files = {f"rgb/{key}.jpg": few.read_image_bytes(index)}
        files |= {f"{name}/{key}.png": encode_ids(scene.maps[name].numpy()) for name in ("semantic", "instance")}
        for name, data in files.items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_bytes(data)
    return root


def test_a_pack_is_sorted_by_key_and_holds_photos_byte_for_byte(tmp_path: Path) -> None:
    few = Few()
    report = pack_scenes(few, tmp_path / "out", PackConfig(label_stride=1, shard_size=2))
    found = members(tmp_path / "out")
    assert list(found) == [
        *("a.jpg", "a.semantic.png", "a.instance.png", "a.cls"),
        *("b.jpg", "b.semantic.png", "b.instance.png"),
        *("c/a_1.jpg", "c/a_1.semantic.png", "c/a_1.instance.png", "c/a_1.cls"),
    ]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        *("dataset.json", "pack.json", "scenes-000000.tar", "scenes-000001.tar"),
    ]
    assert (found["a.cls"], found["c/a_1.cls"]) == (b"0", b"1")
    for index, key in enumerate(("b", "c/a_1", "a")):
        assert found[f"{key}.jpg"] == few.read_image_bytes(index)
        for name in ("semantic", "instance"):
            np.testing.assert_array_equal(decode_ids(found[f"{key}.{name}.png"], ""), few[index].maps[name])
    size = sum(path.stat().st_size for path in (tmp_path / "out").glob("*.tar"))
    assert report == PackReport(num_scenes=3, num_shards=2, num_existing_shards=0, num_bytes=size)


@pytest.mark.parametrize("stride", [1, 2, 4, 7])
@pytest.mark.parametrize("highest", [3, 400])
def test_a_pack_reads_back_as_what_went_in_with_maps_thinned_out_to_the_stride(
    tmp_path: Path, stride: int, highest: int
) -> None:
    few = Few(highest=highest)
    pack_scenes(few, tmp_path / "out", PackConfig(label_stride=stride))
    packed = open_scenes(tmp_path / "out")
    assert list(packed.keys) == ["a", "b", "c/a_1"]
    assert packed.info == INFO.model_copy(update={"label_stride": stride})
    for place, index in enumerate((2, 0, 1)):
        before, after = few[index], packed[place]
        assert (after.label, after.label_stride) == (before.label, stride)
        assert torch.equal(after.maps["rgb"], before.maps["rgb"])
        for name in ("semantic", "instance"):
            for i, j in np.ndindex(*after.maps[name].shape):
                pixel = min(i * stride + stride // 2, 29), min(j * stride + stride // 2, 40)
                assert after.maps[name][i, j] == before.maps[name][pixel]


def test_a_long_photo_is_brought_down_and_its_maps_with_it(tmp_path: Path) -> None:
    few = Few(height=60, width=83)
    pack_scenes(few, tmp_path / "out", PackConfig(label_stride=2, short_side=20))
    scene = open_scenes(tmp_path / "out")[0]
    assert scene.maps["rgb"].shape == (3, 20, 28)
    assert scene.maps["semantic"].shape == (10, 14)
    with Image.open(io.BytesIO(members(tmp_path / "out")["a.jpg"])) as image:
        assert image.size == (28, 20)


@pytest.mark.parametrize("side", [30, 31])
def test_a_photo_that_is_short_enough_keeps_its_bytes(tmp_path: Path, side: int) -> None:
    pack_scenes(Few(), tmp_path / "out", PackConfig(short_side=side))
    assert members(tmp_path / "out")["a.jpg"] == Few().read_image_bytes(2)


def test_scenes_without_files_get_jpegs(tmp_path: Path) -> None:
    pack_scenes(Decoded(), tmp_path / "out", PackConfig())
    assert members(tmp_path / "out")["a.jpg"] == encode_image(Decoded()[2].maps["rgb"])


def test_photos_that_a_shard_cannot_hold_are_encoded_anew(tmp_path: Path) -> None:
    class Bitmaps(Few):
        def read_image_bytes(self, index: int) -> bytes:
            stream = io.BytesIO()
            Image.fromarray(self[index].maps["rgb"].permute(1, 2, 0).numpy()).save(stream, "BMP")
            return stream.getvalue()

    pack_scenes(Bitmaps(), tmp_path / "out", PackConfig())
    assert members(tmp_path / "out")["a.jpg"] == encode_image(Few()[2].maps["rgb"])


def test_what_a_killed_run_left_half_written_goes(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/.scenes-000000.tar.1.part").write_bytes(b"half")
    pack_scenes(Few(), tmp_path / "out", PackConfig())
    assert not list((tmp_path / "out").glob(".*"))


def test_photos_alone_can_be_packed(tmp_path: Path) -> None:
    pack_scenes(Few(granularities=("rgb",)), tmp_path / "out", PackConfig())
    assert list(members(tmp_path / "out")) == ["a.jpg", "a.cls", "b.jpg", "c/a_1.jpg", "c/a_1.cls"]
    packed = open_scenes(tmp_path / "out")
    assert (packed.info.granularities, packed.info.label_stride) == (("rgb",), 1)


def test_two_packs_into_one_folder_do_not_meet(tmp_path: Path) -> None:
    with lock_dir(tmp_path), pytest.raises(UserError, match=f"^{tmp_path}: another process is packing into it"):
        pack_scenes(Few(), tmp_path, PackConfig())
    assert not list(tmp_path.iterdir())


def test_a_thinned_source_in_a_mixture_is_not_resized(tmp_path: Path) -> None:
    pack_scenes(Few(), tmp_path / "thin", PackConfig(label_stride=4))
    mixture = ConcatScenes([Few(keys=("x", "y", "z")), open_scenes(tmp_path / "thin")])
    with pytest.raises(UserError, match=r"^sample 'a': its maps are stored at label_stride 4, so it cannot be resized"):
        pack_scenes(mixture, tmp_path / "out", PackConfig(label_stride=4, short_side=16))


def test_a_pack_of_a_pack_at_its_stride_is_the_same(tmp_path: Path) -> None:
    pack_scenes(Few(), tmp_path / "one", PackConfig(label_stride=4))
    pack_scenes(open_scenes(tmp_path / "one"), tmp_path / "two", PackConfig(label_stride=4))
    assert members(tmp_path / "one") == members(tmp_path / "two")
    assert (tmp_path / "one/dataset.json").read_bytes() == (tmp_path / "two/dataset.json").read_bytes()


def test_progress_counts_every_scene_once_also_those_of_shards_that_were_there(tmp_path: Path) -> None:
    config, seen = PackConfig(shard_size=2), list[int]()
    pack_scenes(Few(), tmp_path / "out", config, progress=seen.append)
    (tmp_path / "out" / "scenes-000001.tar").unlink()
    pack_scenes(Few(), tmp_path / "out", config, progress=seen.append)
    assert seen == [0, 1, 1, 1, 2, 1]


def test_running_it_again_writes_nothing_but_what_is_missing(tmp_path: Path) -> None:
    out, config = tmp_path / "out", PackConfig(shard_size=1)
    pack_scenes(Few(), out, config)
    before = contents(out)
    (out / "scenes-000001.tar").unlink()
    (out / "dataset.json").unlink()
    (out / ".scenes-000001.tar.123.part").write_bytes(b"half")
    kept = (out / "scenes-000000.tar").stat()
    report = pack_scenes(Few(), out, config)
    assert contents(out) == before
    assert (out / "scenes-000000.tar").stat() == kept
    assert (report.num_shards, report.num_existing_shards) == (3, 2)


def test_a_pack_without_dataset_json_is_not_finished(tmp_path: Path) -> None:
    few = Few(broken="c/a.1")
    with pytest.raises(UserError) as caught:
        pack_scenes(few, tmp_path / "out", PackConfig(shard_size=1))
    assert str(caught.value) == f"c/a.1.jpg: broken{HINT}"
    assert sorted(contents(tmp_path / "out")) == ["pack.json", "scenes-000000.tar", "scenes-000001.tar"]


@pytest.mark.parametrize(
    ("scenes", "settings", "changes"),
    [
        (Few(), {"label_stride": 2}, "label_stride 4, now 2"),
        (Few(), {"short_side": 8, "shard_size": 5}, "short_side None, now 8; shard_size 1000, now 5"),
        (Few(keys=("a", "b")), {}, "scenes 3, now 2; keys '.{16}', now '.{16}'; first scene '.{16}', now '.{16}'"),
        (Few(keys=("b", "d", "a")), {}, "keys '.{16}', now '.{16}'"),
        (Few(seed=1), {}, "first scene '.{16}', now '.{16}'"),
        (Few(granularities=("rgb",)), {}, "first scene '.{16}', now '.{16}'; dataset '.{16}', now '.{16}'"),
    ],
)
def test_another_pack_in_the_same_folder_is_refused_and_what_differs_is_named(
    tmp_path: Path, scenes: Few, settings: dict[str, int], changes: str
) -> None:
    pack_scenes(Few(), tmp_path / "out", PackConfig())
    before = contents(tmp_path / "out")
    message = (
        f"^{tmp_path}/out/pack.json: this pack was begun with {changes}. Pack the same scenes with the same settings,"
        " or give another folder$"
    )
    with pytest.raises(UserError, match=message):
        pack_scenes(scenes, tmp_path / "out", PackConfig.from_dict(settings))
    assert contents(tmp_path / "out") == before


@pytest.mark.parametrize(
    ("scenes", "settings", "message"),
    [
        (Few(keys=()), {}, "there are no scenes to pack"),
        (Few(granularities=("semantic",)), {}, "these scenes have no photos, which a pack needs. Add rgb"),
        (
            Few(stride=4),
            {"label_stride": 2},
            "label_stride: the maps of this source are stored at 4 and cannot be brought to 2. Give 4, or pack the"
            " full-size maps that they were made from",
        ),
        (
            Few(stride=4),
            {"short_side": 8},
            "short_side: the maps of this source are stored at label_stride 4, so its scenes cannot be resized"
            " exactly. Leave it out, or pack the full-size maps that they were made from",
        ),
        (Few(broken="a"), {}, f"a.jpg: broken{HINT}"),
        (
            Few(highest=65536),
            {},
            "sample 'a': id 65536 does not fit into the 16 bits of a PNG. Number the objects of a map from 1",
        ),
    ],
)
def test_what_cannot_be_packed_is_refused(tmp_path: Path, scenes: Few, settings: dict[str, int], message: str) -> None:
    config = PackConfig.from_dict({"label_stride": scenes.stride} | settings)
    with pytest.raises(UserError) as caught:
        pack_scenes(scenes, tmp_path / "out", config)
    assert str(caught.value) == message
    assert not list((tmp_path / "out").glob("*.tar"))


def test_a_place_that_is_not_ours_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("x")
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / "pack.json").write_text("x")
    for name, message in {
        "file": "a file, not a folder. Give a folder that is new or empty",
        "full": "holds 'thesis.tex' and no pack.json. Give a folder that is new or empty",
        "file/deeper": "cannot be used: Not a directory. Give another folder",
    }.items():
        with pytest.raises(UserError) as caught:
            pack_scenes(Few(), tmp_path / name, PackConfig())
        assert str(caught.value) == f"{tmp_path / name}: {message}"
    with pytest.raises(
        UserError, match=f"^{tmp_path}/odd/pack.json: not JSON .* Remove {tmp_path}/odd, and pack again"
    ):
        pack_scenes(Few(), tmp_path / "odd", PackConfig())


def test_a_disk_that_fills_up_is_one_clear_error_and_the_pack_goes_on_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, config = tmp_path / "out", PackConfig(shard_size=1)
    pack_scenes(Few(), tmp_path / "whole", config)
    real, calls = os.fsync, list[int]()

    def run_out(file: int) -> None:
        calls.append(file)
        if len(calls) == 5:  # a file and its folder: plan, first shard, then the second
            raise OSError(28, "No space left on device")
        real(file)

    monkeypatch.setattr(os, "fsync", run_out)
    with pytest.raises(UserError) as caught:
        pack_scenes(Few(), out, config)
    assert str(caught.value) == (
        f"{out}/scenes-000001.tar: cannot be written: No space left on device. Mend that and run this again; what is"
        " finished stays"
    )
    assert sorted(contents(out)) == ["pack.json", "scenes-000000.tar"]
    pack_scenes(Few(), out, config)
    assert contents(out) == contents(tmp_path / "whole")


def test_settings_that_make_no_sense_are_refused() -> None:
    with pytest.raises(UserError) as caught:
        PackConfig.from_dict({"label_stride": 0, "shard_size": 0, "name": "../a", "shrad": 1})
    assert str(caught.value).splitlines()[0] == "PackConfig: 4 problems"


SCRIPT = """
import signal, sys
from c2fmae.data.pack import PackConfig, pack_scenes
from c2fmae.data.sources import open_scenes
if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs begin without
    source, out, workers = sys.argv[1:]
    say = lambda done: print(done, flush=True)
    pack_scenes(open_scenes(source), out, PackConfig(shard_size=9), workers=int(workers), progress=say)
"""


def start(tmp_path: Path, out: Path, workers: int, scenes: int = 1) -> subprocess.Popen[str]:
    """Pack in a group of processes of its own; so many scenes are packed when this returns."""
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


@pytest.mark.once
def test_a_pack_that_is_interrupted_and_killed_ends_as_if_nothing_had_happened(tmp_path: Path) -> None:
    source = open_scenes(write_tree(tmp_path / "tree", 400))
    whole, out, config = tmp_path / "whole", tmp_path / "out", PackConfig(shard_size=9)
    pack_scenes(source, whole, config)

    process = start(tmp_path, out, 2)
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert errors.count("KeyboardInterrupt") == 1  # the parent's; the workers heard nothing
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
    assert contents(out) == contents(whole)
