import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch

from c2fmae.core.errors import UserError
from c2fmae.core.scene import Scene, SceneBatch
from c2fmae.data.loader import SceneLoader
from c2fmae.data.sampler import DataPosition, Sampler
from c2fmae.data.sources import open_scenes
from c2fmae.data.transforms import RandomView
from tests.data.dataset_files import Files, assert_user_error, make_sample, write_tar

Start = Literal["fork", "spawn"]


def shard(folder: Path, keys: str = "abcdefghij", broken: str = "") -> Path:
    """A shard of one-letter samples; of some the photo is broken."""
    files: Files = {}
    for seed, key in enumerate(keys):
        files |= make_sample(key, seed, (16, 20))[0]
        if key in broken:
            files[f"{key}.jpg"] = b"junk"
    return write_tar(folder / "s.tar", files)


def loader(source: Path, *, batch_size: int = 4, rank: int = 0, world_size: int = 1, **options: object) -> SceneLoader:
    scenes = open_scenes(source)
    sampler = Sampler(num_samples=len(scenes), batch_size=batch_size, seed=3, rank=rank, world_size=world_size)
    return SceneLoader(scenes=scenes, transform=RandomView(size=(8, 8)), sampler=sampler, **options)  # type: ignore[arg-type]


def content(batches: Sequence[SceneBatch]) -> list[tuple[object, ...]]:
    return [(batch.keys, *(tensor.tolist() for tensor in batch.maps.values()), batch.labels) for batch in batches]


@pytest.mark.parametrize(("workers", "start"), [(1, "fork"), (4, "fork"), (1, "spawn"), (4, "spawn")])
def test_samples_do_not_depend_on_workers_or_on_how_these_start(tmp_path: Path, workers: int, start: Start) -> None:
    source = shard(tmp_path)
    alone = content(list(loader(source).stream_batches(3)))
    assert len(alone) == 6
    assert content(list(loader(source, workers=workers, start_method=start).stream_batches(3))) == alone


@pytest.mark.parametrize("world_size", [2, 4])
def test_samples_do_not_depend_on_the_number_of_ranks(tmp_path: Path, world_size: int) -> None:
    source = shard(tmp_path)
    alone = list(loader(source).stream_batches(2))
    ranks = [list(loader(source, rank=rank, world_size=world_size).stream_batches(2)) for rank in range(world_size)]
    for whole, parts in zip(alone, zip(*ranks, strict=True), strict=True):
        assert whole.keys == tuple(key for part in parts for key in part.keys)
        for name, tensor in whole.maps.items():
            assert torch.equal(tensor, torch.cat([part.maps[name] for part in parts]))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_stream_knows_its_position_and_another_goes_on_from_there(tmp_path: Path, workers: int) -> None:
    source = shard(tmp_path)
    whole = content(list(loader(source).stream_batches(3)))
    stream = loader(source, workers=workers).stream_batches(3)
    for _ in range(3):
        next(stream)
    assert stream.position == DataPosition(1, 1)
    stream.close()
    assert content(list(loader(source, workers=workers).stream_batches(3, stream.position))) == whole[3:]
    assert list(stream) == []


@pytest.mark.parametrize("workers", [0, 2])
def test_in_order_every_sample_comes_once_for_any_number_of_ranks(tmp_path: Path, workers: int) -> None:
    scenes = open_scenes(shard(tmp_path))
    keys: list[str] = []
    for rank in range(4):
        sampler = Sampler(num_samples=10, batch_size=8, shuffle=False, rank=rank, world_size=4)
        loader = SceneLoader(scenes=scenes, transform=RandomView(size=(8, 8)), sampler=sampler, workers=workers)
        keys += [key for batch in loader.stream_batches(1) for key in batch.keys]
    assert sorted(keys) == list("abcdefghij")


def test_a_loader_that_makes_no_sense_is_refused(tmp_path: Path) -> None:
    source = shard(tmp_path)
    scenes, view = open_scenes(source), RandomView(size=(8, 8))
    message = "sampler: made for 18 samples, but there are 10"
    assert_user_error(
        lambda: SceneLoader(scenes=scenes, transform=view, sampler=Sampler(num_samples=18, batch_size=2)), message
    )
    assert_user_error(lambda: loader(source, workers=-1), "workers: expected at least 0, got -1")
    assert_user_error(lambda: loader(source, prefetch=0), "prefetch: expected at least 1, got 0")
    with pytest.raises((UserError, TypeError)):  # the run with shape checks finds it first
        loader(source, on_broken="raise")


def test_workers_end_even_while_the_error_that_ended_them_is_kept(tmp_path: Path) -> None:
    stream = loader(shard(tmp_path, broken="c"), workers=2, on_broken="error").stream_batches(1)
    kept = None
    try:
        list(stream)
    except UserError as error:
        kept = error
    assert kept is not None
    assert kept.__traceback__ is not None
    assert not torch.multiprocessing.active_children()


def test_a_sample_is_seen_differently_in_every_epoch_and_repetition(tmp_path: Path) -> None:
    source = shard(tmp_path, "ab")
    scenes = open_scenes(source)
    sampler = Sampler(num_samples=2, batch_size=2, repeats=2)
    batches = list(SceneLoader(scenes=scenes, transform=RandomView(size=(8, 8)), sampler=sampler).stream_batches(8))
    views = {
        (key, str(photo.tolist()))
        for batch in batches
        for key, photo in zip(batch.keys, batch.maps["rgb"], strict=True)
    }
    assert all(batch.keys[0] == batch.keys[1] for batch in batches)
    assert len(views) == 16


class Slow:
    """Scenes that take a while."""

    def __init__(self, source: Path) -> None:
        self.inner = open_scenes(source)
        self.info, self.keys = self.inner.info, self.inner.keys

    def __len__(self) -> int:
        return len(self.inner)

    def __getitem__(self, index: int) -> Scene:
        time.sleep(0.01)
        return self.inner[index]

    def read_image_bytes(self, index: int) -> bytes | None:
        return self.inner.read_image_bytes(index)


def test_the_time_that_was_waited_is_told(tmp_path: Path) -> None:
    slow = Slow(shard(tmp_path))
    sampler = Sampler(num_samples=len(slow), batch_size=5)
    stream = SceneLoader(scenes=slow, transform=RandomView(size=(8, 8)), sampler=sampler).stream_batches(1)
    started = time.perf_counter()
    list(stream)
    assert 0.1 <= stream.wait_seconds <= time.perf_counter() - started


# Broken samples


@pytest.mark.parametrize("workers", [0, 2])
def test_a_broken_sample_is_replaced_told_once_and_counted(
    tmp_path: Path, workers: int, caplog: pytest.LogCaptureFixture
) -> None:
    source = shard(tmp_path, broken="c")
    stream = loader(source, workers=workers, max_broken=0.1, batch_size=5).stream_batches(4)
    with caplog.at_level(logging.WARNING):
        batches = list(stream)
    assert {len(batch) for batch in batches} == {5}
    assert all("c" not in batch.keys for batch in batches)
    assert all(sorted(batches[i].keys + batches[i + 1].keys) == sorted("abddefghij") for i in (0, 2, 4, 6))
    assert len(stream.skip_reasons) == 1
    (text,) = stream.skip_reasons
    assert text.startswith(f"{source}: c.jpg: not readable as a picture")
    assert [record.message for record in caplog.records] == [f"skipped: {text}"]


def test_replacements_do_not_depend_on_workers(tmp_path: Path) -> None:
    source = shard(tmp_path, broken="cdj")
    streams = [loader(source, workers=workers, max_broken=0.5).stream_batches(2) for workers in (0, 3)]
    first, second = (content(list(stream)) for stream in streams)
    assert first == second
    assert streams[0].skip_reasons == streams[1].skip_reasons


@pytest.mark.parametrize("workers", [0, 2])
def test_more_broken_samples_than_are_allowed_end_the_run(tmp_path: Path, workers: int) -> None:
    stream = loader(shard(tmp_path, broken="bc"), workers=workers, max_broken=0.1).stream_batches(9)
    message = (
        r"^2 of 10 samples are broken, more than the 10\.00% that may be skipped; the last: \S+: \w\.jpg: .*\n"
        r"List them all with `c2fmae data check`$"
    )
    with pytest.raises(UserError, match=message):
        list(stream)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_broken_sample_ends_the_run_where_that_is_wished(tmp_path: Path, workers: int) -> None:
    source = shard(tmp_path, broken="c")
    stream = loader(source, workers=workers, on_broken="error").stream_batches(1)
    with pytest.raises(UserError, match=rf"^{source}: c\.jpg: not readable as a picture \([^\n]*$"):
        list(stream)


def test_a_source_of_nothing_but_broken_samples_does_not_hang(tmp_path: Path) -> None:
    keys = "abcdefghijklmnopqrst"
    stream = loader(shard(tmp_path, keys, broken=keys), max_broken=1.0).stream_batches(1)
    with pytest.raises(UserError, match=r"^16 samples in a row are broken, the last: \S+: \w\.jpg: not readable"):
        next(stream)


def test_maps_that_only_some_samples_have_are_told(tmp_path: Path) -> None:
    class Uneven(Slow):
        def __getitem__(self, index: int) -> Scene:
            scene = self.inner[index]
            maps = dict(scene.maps)
            if index % 2:
                del maps["semantic"]
            return Scene(scene.key, maps)

    uneven = Uneven(shard(tmp_path))
    sampler = Sampler(num_samples=10, batch_size=2, shuffle=False)
    assert_user_error(
        lambda: list(SceneLoader(scenes=uneven, transform=RandomView(size=(8, 8)), sampler=sampler).stream_batches(1)),
        "b: semantic is None, but (8, 8) in a",
    )


# Processes


PROGRAM = """
import sys, time
from c2fmae.data.loader import SceneLoader
from c2fmae.data.sampler import Sampler
from c2fmae.data.sources import open_scenes
from c2fmae.data.transforms import RandomView

if __name__ == "__main__":
    scenes = open_scenes(sys.argv[1])
    sampler = Sampler(num_samples=len(scenes), batch_size=2)
    loader = SceneLoader(scenes=scenes, transform=RandomView(size=(8, 8)), sampler=sampler, workers=3)
    stream = loader.stream_batches(10**9)
    for number, _ in enumerate(stream):
        if number == 5:
            print("running", flush=True)
"""


@pytest.mark.once
def test_ctrl_c_ends_the_workers(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    process = subprocess.Popen(
        [sys.executable, str(program), str(shard(tmp_path))],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "running\n"
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        assert len(children) == 3
        os.killpg(process.pid, signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    assert errors.count("Traceback") == 1, errors  # its own, none of the workers'
    assert "KeyboardInterrupt" in errors
    end = time.monotonic() + 60
    while any(Path(f"/proc/{child}").exists() for child in children):
        assert time.monotonic() < end
        time.sleep(0.01)


class Memory:
    """Tells what a worker process has for itself alone, after it has looked at every key."""

    def __init__(self, scenes: Slow) -> None:
        self.scenes = scenes

    def __call__(self, scene: Scene, rng: np.random.Generator) -> Scene:
        del rng
        before = private_bytes()
        count = sum(len(self.scenes.keys[index]) for index in range(0, len(self.scenes.keys), 50))
        grown = private_bytes() - before
        return Scene(scene.key, {"rgb": torch.tensor([[[grown, count]]])})


def private_bytes() -> int:
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return 1024 * sum(int(line.split()[1]) for line in lines if line.startswith("Private_Dirty"))


@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_workers_share_the_index(tmp_path: Path, start: Start) -> None:
    from c2fmae.data.key_list import KeyList

    scenes = Slow(shard(tmp_path))
    scenes.keys = KeyList.from_names(f"{number:064d}" for number in range(200_000))  # 13 MB
    sampler = Sampler(num_samples=10, batch_size=2)
    loader = SceneLoader(scenes=scenes, transform=Memory(scenes), sampler=sampler, workers=2, start_method=start)
    grown = [int(batch.maps["rgb"][:, 0, 0, 0].max()) for batch in loader.stream_batches(1)]
    assert max(grown) < 2_000_000
