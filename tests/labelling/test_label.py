"""Shards, records and counts of a labelling, and its continuation."""

import hashlib
import json
import logging
import math
import os
import random
import signal
import socket
import tarfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from c2fmae.core.distributed import World, init_distributed
from c2fmae.core.errors import RunError, UserError
from c2fmae.core.files import PARTIAL_SUFFIX
from c2fmae.core.locks import lock_file
from c2fmae.data.check import check_dataset
from c2fmae.data.decode import decode_ids
from c2fmae.data.info import DatasetInfo
from c2fmae.data.sources import open_scenes
from c2fmae.labelling.config import LabelConfig, Part
from c2fmae.labelling.label import LabelReport, label_images, make_context, open_images
from c2fmae.labelling.pipeline import LabelPipeline
from c2fmae.labelling.protocol import LabelInput, LabelResult
from c2fmae.labelling.registry import build_labellers
from c2fmae.pretrain import pretrain
from c2fmae.recipes.config import load_recipe
from tests.labelling.simple_labellers import Brightness, write_images

SETTINGS = {"shard_size": 4, "batch_size": 2}


def label(
    source: Path | str, out: Path, *, labellers: Sequence[Any] = (), settings: dict[str, Any] = SETTINGS, **options: Any
) -> LabelReport:
    scenes = open_images(source)
    config = LabelConfig.from_dict({**SETTINGS, **settings})
    context = make_context(config, scenes.info, World())
    return label_images(
        scenes, labellers or [Brightness()], out, config, context, **{"is_quiet": True, "workers": 0, **options}
    )


def contents(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in out.iterdir() if path.suffix != ".index"}


def members(out: Path) -> dict[str, bytes]:
    found = {}
    for shard in sorted(out.glob("*.tar")):
        with tarfile.open(shard) as tar:
            for member in tar:
                file = tar.extractfile(member)
                assert file is not None
                found[member.name] = file.read()
    return found


def rows(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "manifest.jsonl").read_text().splitlines()]


def test_images_and_maps_are_written_as_scenes_without_problems(tmp_path: Path) -> None:
    images = write_images(tmp_path / "images", 10)
    report = label(images, tmp_path / "out")
    scenes = open_scenes(tmp_path / "out")
    assert list(scenes.keys) == [f"{number:04d}" for number in range(10)]
    assert scenes.info.class_names == ("dark", "bright")
    assert (scenes.info.label_stride, scenes.info.maps_know_labels) == (4, False)
    assert not check_dataset(scenes).problems
    assert (report.num_shards, report.num_existing_shards, report.counts.total) == (3, 0, 10)
    assert report.num_bytes == sum(path.stat().st_size for path in (tmp_path / "out").glob("*.tar"))
    packed = members(tmp_path / "out")
    assert list(packed)[:4] == ["0000.jpg", "0000.semantic.png", "0000.instance.png", "0000.json"]
    for index in range(len(scenes)):
        scene = scenes[index]
        key = scene.key
        assert packed[f"{key}.jpg"] == (images / f"{key}.jpg").read_bytes()
        height, width = scene.maps["rgb"].shape[1:]
        (expected,) = Brightness().label([LabelInput(key, scene.maps["rgb"])], 4)
        for name in ("semantic", "instance"):
            assert tuple(scene.maps[name].shape) == (-(-height // 4), -(-width // 4))
            np.testing.assert_array_equal(decode_ids(packed[f"{key}.{name}.png"], ""), expected.maps[name])
        assert json.loads(packed[f"{key}.json"])["size"] == [width, height]


def test_records_and_rows_agree_with_the_maps(tmp_path: Path) -> None:
    class Void(Brightness):
        def _label_image(self, labelled: LabelInput, stride: int) -> LabelResult:
            result = super()._label_image(labelled, stride)
            result.maps["semantic"][0] = 255
            return LabelResult(result.maps, result.objects, {**result.metadata, "threshold": 0.5, "steps": 3})

    out = tmp_path / "out"
    label(write_images(tmp_path / "images", 6, dark=[2]), out, labellers=[Void()])
    packed, scenes = members(out), open_scenes(out)
    plan = json.dumps(json.loads((out / "pack.json").read_text()), sort_keys=True).encode()
    for index, row in enumerate(rows(out)):
        scene = scenes[index]
        record = json.loads(packed[f"{scene.key}.json"])
        semantic, instance = scene.maps["semantic"], scene.maps["instance"]
        ignored = round(float((semantic == 255).float().mean()), 4)
        assert record["semantic"] == {"confidence": 0.1235, "ignored": ignored}
        assert (record["threshold"], record["metadata"]) == (0.5, {"steps": 3})
        assert record["plan"] == hashlib.blake2b(plan, digest_size=8).hexdigest()[:8]
        assert [each["id"] for each in record["instances"]] == list(range(1, int(instance.max()) + 1))
        assert row == {
            "key": scene.key,
            "status": "done" if int(instance.max()) else "empty",
            "why": None,
            "instances": int(instance.max()),
            "threshold": 0.5,
            "covered": round(float((instance != 0).double().mean()), 4),
            "confidence": 0.1235,
            "ignored": ignored,
            "classes": len(set(semantic.unique().tolist()) - {255}),
            "batch_size": 2,
        }
    assert [row["status"] for row in rows(out)][2] == "empty"


def test_unreadable_images_are_left_out_and_listed(tmp_path: Path) -> None:
    images, out = write_images(tmp_path / "images", 50, broken=[3, 20, 49]), tmp_path / "out"
    counts = label(images, out, settings={"shard_size": 20}).counts
    assert (counts.failed, counts.done + counts.empty, counts.total) == (3, 47, 50)
    label(images, tmp_path / "threads", settings={"shard_size": 20}, workers=2)
    lines = (out / "failed.txt").read_text().splitlines()
    assert [line.partition(": ")[0] for line in lines] == ["0003", "0020", "0049"]
    assert all(f"{images}/{line[:4]}.jpg: cannot be decoded" in line for line in lines)
    assert len(open_scenes(images, granularities=("rgb",), keys=(out / "good.txt").read_text().split())) == 47
    assert [row["key"] for row in rows(out) if row["status"] == "failed"] == ["0003", "0020", "0049"]
    assert contents(out) == contents(tmp_path / "threads")


def test_shards_with_failed_images_are_written_again_on_request(tmp_path: Path) -> None:
    images, out = write_images(tmp_path / "images", 12, broken=[5]), tmp_path / "out"
    label(images, out)
    unchanged = (out / "scenes-000000.tar").stat()
    write_images(images, 12)
    assert label(images, out).counts.failed == 1
    report = label(images, out, again=True)
    assert (report.num_existing_shards, report.counts.failed) == (2, 0)
    assert (out / "scenes-000000.tar").stat() == unchanged
    label(images, tmp_path / "whole")
    assert contents(out) == contents(tmp_path / "whole")


def test_many_failed_images_stop_the_labelling(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("c2fmae.labelling.label._MIN_IMAGES", 20)
    images = write_images(tmp_path / "images", 30, broken=[1, 2, 4, 25])
    with pytest.raises(UserError) as caught:
        label(images, tmp_path / "out", settings={"max_failed": 0.1})
    assert str(caught.value).startswith(
        f"3 of 20 images cannot be read, more than the fraction max_failed = 0.1: {images}/0001.jpg: cannot be decoded"
    )
    assert str(caught.value).endswith("Check the images, or set a higher max_failed")
    assert label(images, tmp_path / "out", settings={"max_failed": 0.2}).counts.failed == 4


def test_a_set_in_which_no_image_can_be_read_is_an_error(tmp_path: Path) -> None:
    images = write_images(tmp_path / "images", 3, broken=[0, 1, 2])
    with pytest.raises(UserError, match=r"^no image can be read: .*0000.jpg.*\. Check the images$"):
        label(images, tmp_path / "out")
    with pytest.raises(UserError, match=r"is an unfinished pack\. Run the .* or `c2fmae label` command"):
        open_scenes(tmp_path / "out")


def test_batches_have_images_of_one_key_in_order(tmp_path: Path) -> None:
    labeller = Brightness()
    images = write_images(tmp_path / "images", 16)
    label(images, tmp_path / "out", labellers=[labeller], settings={"shard_size": 16, "batch_size": 3})
    scenes = open_images(images)
    sizes = {key: tuple(scenes[index].maps["rgb"].shape[1:]) for index, key in enumerate(scenes.keys)}
    keys = [[labeller.batch_key(*sizes[key]) for key in batch] for batch in labeller.batches]
    assert all(len(set(batch)) == 1 for batch in keys)
    assert sorted(key for batch in labeller.batches for key in batch) == sorted(sizes)
    starts: dict[object, str] = {}
    for batch, (key, *_) in zip(labeller.batches, keys, strict=True):
        assert list(batch) == sorted(batch)
        assert len(batch) == 3 or keys[-1 - keys[::-1].index([key] * len(batch))] == [key] * len(batch)
        starts.setdefault(key, batch[0])
    assert list(starts.values()) == sorted(starts.values())


def test_labellers_of_one_map_each_give_what_one_of_both_gives(tmp_path: Path) -> None:
    images = write_images(tmp_path / "images", 5)
    label(images, tmp_path / "both")
    label(
        images,
        tmp_path / "each",
        labellers=[Brightness(granularities=["semantic"]), Brightness(granularities=["instance"])],
    )
    assert members(tmp_path / "both") == members(tmp_path / "each")


def test_maps_alone_can_be_written(tmp_path: Path) -> None:
    images = write_images(tmp_path / "images", 3)
    label(images, tmp_path / "out", settings={"images": "leave-out"})
    assert open_scenes(tmp_path / "out").info.granularities == ("semantic", "instance")
    assert not [name for name in members(tmp_path / "out") if name.endswith("jpg")]


def test_maps_alone_are_joined_to_the_images_by_their_keys(tmp_path: Path) -> None:
    images = tmp_path / "images"
    write_images(images / "v1.0", 3)  # a packed key has no such dot
    for name, mode in (("kept", "keep"), ("alone", "leave-out")):
        label(images, tmp_path / name, settings={"images": mode})
    context = make_context(LabelConfig(), DatasetInfo(), World())
    stored = f"maps:{tmp_path / 'alone'}"
    label(images, tmp_path / "joined", labellers=build_labellers(stored, stored, context))
    whole, joined = (members(tmp_path / name) for name in ("kept", "joined"))
    assert whole.keys() == joined.keys()
    assert [name for name in whole if not name.endswith("json") and whole[name] != joined[name]] == []


def test_images_that_are_not_stored_are_encoded_and_labels_stored(tmp_path: Path) -> None:
    scenes = open_scenes("generated", granularities=("rgb",), size=32, length=3)
    config = LabelConfig()
    label_images(
        scenes, [Brightness()], tmp_path, config, make_context(config, scenes.info, World()), workers=0, is_quiet=True
    )
    written = open_scenes(tmp_path)
    assert written.info.label_names == scenes.info.label_names
    for index in range(3):
        after, before = written[index], scenes[index]
        assert after.label == before.label
        assert float((after.maps["rgb"].float() - before.maps["rgb"].float()).abs().mean()) < 12


@pytest.mark.parametrize(
    ("known", "expected"),
    [((False, False), False), ((False, True), True), ((None, False), None), ((None, True), True)],
)
def test_maps_know_labels_if_one_of_the_labellers_does(
    tmp_path: Path, known: tuple[bool | None, ...], expected: bool | None
) -> None:
    labellers = [Brightness(granularities=["semantic"]), Brightness(granularities=["instance"])]
    for labeller, knows in zip(labellers, known, strict=True):
        labeller.maps_know_labels = knows
    label(write_images(tmp_path / "images", 1), tmp_path / "out", labellers=labellers)
    assert open_scenes(tmp_path / "out").info.maps_know_labels is expected


def test_other_settings_in_the_same_directory_are_refused_with_the_differences(tmp_path: Path) -> None:
    images, out = write_images(tmp_path / "images", 5), tmp_path / "out"
    label(images, out)
    before = contents(out)
    with pytest.raises(UserError) as caught:
        label(images, out, labellers=[Brightness(limit=99)], settings={"label_stride": 1})
    assert str(caught.value) == (
        f"{out}/pack.json: this pack was started with label_stride 4, now 1; semantics.limit 128, now 99;"
        " instances.limit 128, now 99. Label the same images with the same settings, or choose another directory"
    )
    write_images(images, 6)
    with pytest.raises(UserError, match="num_images 5, now 6; keys "):
        label(images, out)
    (images / "0005.jpg").unlink()
    (images / "0001.jpg").rename(images / "0000.jpg")
    write_images(tmp_path / "other", 2)
    (tmp_path / "other" / "0001.jpg").rename(images / "0001.jpg")
    with pytest.raises(UserError, match=r"this pack was started with first image '\w+', now '\w+'\. Label "):
        label(images, out)
    assert contents(out) == before


def test_another_machine_is_refused_unless_it_is_allowed_and_then_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, out = write_images(tmp_path / "images", 5), tmp_path / "out"
    label(images, out, part=Part(0, 2))
    monkeypatch.setattr("c2fmae.labelling.plan.version", lambda name: "9.9")
    with pytest.raises(UserError, match=r"versions\.c2fmae '.*', now '9\.9'; versions\.torch '.*', now '9\.9'\. "):
        label(images, out, part=Part(1, 2))
    label(images, out, part=Part(1, 2), settings={"mixed_machines": True})
    info = json.loads((out / "dataset.json").read_text())
    assert [change.partition(" ")[0] for change in info["mixed_machines"]] == ["versions.c2fmae", "versions.torch"]
    assert len({json.loads(data)["plan"] for name, data in members(out).items() if name.endswith("json")}) == 1
    assert len(open_scenes(out)) == 5


def test_a_part_is_labelled_by_one_process_at_a_time(tmp_path: Path) -> None:
    images, out = write_images(tmp_path / "images", 5), tmp_path / "out"
    out.mkdir()
    with lock_file(out / ".part-1-of-2.lock"):
        with pytest.raises(UserError, match=r"^.*/out: another process labels part 1/2 of it\. Wait for it"):
            label(images, out, part=Part(1, 2))
        with pytest.raises(UserError, match=r"part 1/2 of it\. Wait for it, or divide it by 2 too$"):
            label(images, out)
        assert label(images, out, part=Part(0, 2)).num_missing_shards == 1
    assert label(images, out).num_missing_shards == 0


def test_a_finished_directory_is_left_as_it_is(tmp_path: Path) -> None:
    images, out = write_images(tmp_path / "images", 9), tmp_path / "out"
    first, times = label(images, out), {path: path.stat().st_mtime_ns for path in out.iterdir()}
    again = label(images, out)
    assert {path: path.stat().st_mtime_ns for path in out.iterdir()} == times
    assert asdict(again) == asdict(first) | {"num_existing_shards": 3}


def test_shards_are_halved_batches_where_memory_runs_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    class Small(Brightness):
        def label(self, inputs: Sequence[LabelInput], stride: int) -> list[LabelResult]:
            if len(inputs) > 2 and inputs[-1].key > "0008":
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 MiB")
            return super().label(inputs, stride)

        def batch_key(self, height: int, width: int) -> int:
            return 0

    images = write_images(tmp_path / "images", 24, broken=[17])
    settings = {"shard_size": 8, "batch_size": 8}
    with caplog.at_level(logging.WARNING):
        report = label(images, tmp_path / "out", labellers=[Small()], settings=settings, workers=2)
    assert [row["batch_size"] for row in rows(tmp_path / "out")] == [8] * 8 + [2] * 16
    assert report.counts.failed == 1
    assert caplog.messages[0] == (
        "shard 1: memory ran out with batches of 8; it begins again with 4. To save the attempts, set batch_size=4"
    )
    label(images, tmp_path / "whole", settings=settings)
    assert members(tmp_path / "whole").keys() == members(tmp_path / "out").keys()


def test_memory_that_does_not_hold_one_image_is_an_error(tmp_path: Path) -> None:
    class Large(Brightness):
        def label(self, inputs: Sequence[LabelInput], stride: int) -> list[LabelResult]:
            raise MemoryError

    with pytest.raises(RunError, match="^memory ran out with a batch of one image"):
        label(write_images(tmp_path / "images", 3), tmp_path / "out", labellers=[Large()])


def test_an_exception_of_a_labeller_stops_with_the_key_of_the_image(tmp_path: Path) -> None:
    class Failing(Brightness):
        def label(self, inputs: Sequence[LabelInput], stride: int) -> list[LabelResult]:
            if any(each.key == "0003" for each in inputs):
                raise ZeroDivisionError("division by zero")
            return super().label(inputs, stride)

        def batch_key(self, height: int, width: int) -> int:
            return 0

    message = r"^image '0003': the labeller brightness failed: ZeroDivisionError: division by zero$"
    with pytest.raises(RuntimeError, match=message) as caught:
        label(write_images(tmp_path / "images", 5), tmp_path / "out", labellers=[Failing()], workers=1)
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
    assert not [path for path in (tmp_path / "out").iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda maps: {"semantic": maps["semantic"]}, r"returned maps of \['semantic'\] \(expected \['instance', 'sem"),
        (lambda maps: {**maps, "semantic": maps["semantic"][1:]}, r"returned a semantic map of \(.*\) cells"),
        (lambda maps: {**maps, "semantic": maps["semantic"] + 2}, r"returned the semantic id 2 \(expected ids below 2"),
        (
            lambda maps: {**maps, "instance": maps["instance"] * 0 + 9},
            r"returned objects .* \[9\]… are in the instance",
        ),
    ],
)
def test_maps_that_break_the_interface_are_refused(tmp_path: Path, change: Callable[[Any], Any], message: str) -> None:
    class Wrong(Brightness):
        def _label_image(self, labelled: LabelInput, stride: int) -> LabelResult:
            result = super()._label_image(labelled, stride)
            return LabelResult(change(result.maps), result.objects)

    with pytest.raises(RunError, match=f"^image '0000': the labeller brightness {message}"):
        label(write_images(tmp_path / "images", 1), tmp_path / "out", labellers=[Wrong()])


def test_no_image_is_decoded_ahead_of_its_batch_beyond_the_limit_of_memory(tmp_path: Path) -> None:
    class CountingPipeline(LabelPipeline):
        def _decode(self, *args: Any) -> Any:
            decoded.append(args)
            return super()._decode(*args)

    class Watch(Brightness):
        def label(self, inputs: Sequence[LabelInput], stride: int) -> list[LabelResult]:
            num_ahead.append(len(decoded) - sum(map(len, self.batches)) - len(inputs))
            return super().label(inputs, stride)

    decoded, num_ahead = list[Any](), list[int]()
    scenes, options = open_images(write_images(tmp_path, 8)), {"stride": 4, "batch_size": 2, "num_workers": 2}
    pipeline = CountingPipeline(scenes, scenes.keys, [Watch()], decode_bytes=1, plan_digest="", **options)
    for _ in pipeline.run([0], lambda shard: range(len(scenes)), lambda shard, samples: None):
        pass
    assert len(num_ahead) >= 4
    assert set(num_ahead) == {0}


@pytest.mark.parametrize("workers", [1, 3])
def test_threads_and_parts_give_the_same_bytes(tmp_path: Path, workers: int) -> None:
    images = write_images(tmp_path / "images", 22, broken=[7])
    label(images, tmp_path / "plain")
    reports = [
        label(images, tmp_path / "out", part=Part(index, 3), workers=workers)
        for index in random.Random(workers).sample(range(3), 3)
    ]
    assert [report.num_missing_shards > 0 for report in reports] == [True, True, False]
    assert contents(tmp_path / "out") == contents(tmp_path / "plain")


def fork(work: Callable[[], object]) -> int:
    """Start a copy of this process that ends after the work, with code 1 if it fails."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            torch.set_num_threads(1)
            work()
            code = 0
        finally:
            os._exit(code)
    return pid


@pytest.mark.unchecked
def test_killed_processes_leave_what_the_same_command_finishes_to_the_byte(tmp_path: Path) -> None:
    images = write_images(tmp_path / "images", 24, broken=[9])
    started_at = time.monotonic()
    label(images, tmp_path / "whole", settings={"shard_size": 3}, workers=2)
    seconds = time.monotonic() - started_at
    draw, finished, number = random.Random(0), 0, 0
    for _ in range(10):
        out = tmp_path / f"out{number}"
        pid = fork(lambda out=out: label(images, out, settings={"shard_size": 3}, workers=2))  # type: ignore[misc]
        time.sleep(draw.uniform(0, seconds))
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        if (out / "dataset.json").exists():
            number += 1
    for out in (tmp_path / f"out{index}" for index in range(number + 1)):
        label(images, out, settings={"shard_size": 3})
        finished += contents(out) == contents(tmp_path / "whole")
    assert finished == number + 1


@pytest.mark.unchecked
def test_processes_at_once_give_the_bytes_of_one(tmp_path: Path) -> None:
    images = write_images(tmp_path / "images", 30, broken=[7])
    label(images, tmp_path / "plain")
    pids = [fork(lambda part=part: label(images, tmp_path / "parts", part=Part(part, 3))) for part in range(3)]  # type: ignore[misc]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    def label_as_rank(rank: int) -> None:
        os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": str(rank)}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        with init_distributed("cpu") as world:
            assert label(images, tmp_path / "ranks", world=world).counts.failed == 1

    pids += [fork(lambda rank=rank: label_as_rank(rank)) for rank in range(2)]  # type: ignore[misc]
    assert [os.waitpid(pid, 0)[1] for pid in pids] == [0] * 5
    for out in ("parts", "ranks"):
        assert contents(tmp_path / out) == contents(tmp_path / "plain")


def test_files_of_killed_processes_are_removed_at_the_end(tmp_path: Path) -> None:
    images, out = write_images(tmp_path / "images", 5), tmp_path / "out"
    label(images, out, part=Part(0, 2))
    (out / f".scenes-000001.tar.123{PARTIAL_SUFFIX}").write_bytes(b"half")
    (out / ".part-5-of-9.lock").touch()
    (out / "scenes-000001.jsonl").write_bytes(b'{"key": "rows without their shard"}\n')
    label(images, out, part=Part(1, 2))
    label(images, tmp_path / "whole")
    assert contents(out) == contents(tmp_path / "whole")


def test_images_without_objects_or_classes_can_be_trained_on(tmp_path: Path) -> None:
    class Void(Brightness):
        def _label_image(self, labelled: LabelInput, stride: int) -> LabelResult:
            result = super()._label_image(labelled, stride)
            is_void = labelled.key in ("0001", "0003")
            return LabelResult({name: ids.fill_(255) for name, ids in result.maps.items()}) if is_void else result

    images, out = write_images(tmp_path / "images", 10, dark=[0, 2, 4, 6, 8]), tmp_path / "out"
    assert label(images, out, labellers=[Void()], settings={"shard_size": 10}).counts.empty >= 7
    settings = ["training.steps=10", "training.batch_size=4", "training.device=cpu", "data.workers=0"]
    recipe = load_recipe("c2fmae-debug", [*settings, f"data.train={out}", "data.held_out=null"])
    assert pretrain(recipe, tmp_path / "run").status == "finished"
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    losses = [value for line in lines for key, value in line.items() if key.startswith("loss")]
    assert len(lines) == 10
    assert all(value is not None and math.isfinite(value) for value in losses)


def test_parts_are_read_from_text() -> None:
    for text in ("3/3", "1", "-1/2", "a/b", "0/0"):
        with pytest.raises(UserError, match=r"^--part: expected I/N with I from 0 to N - 1, got "):
            Part.parse(text)
