import errno
import logging
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch

from c2fmae.core import workers as core_workers
from c2fmae.core.errors import RunError, UserError
from c2fmae.core.loading_speed import LoadTimes
from c2fmae.core.scene import Scene, SceneBatch
from c2fmae.data.loader import SceneLoader
from c2fmae.data.sampler import DataPosition, Sampler
from c2fmae.data.sources import open_scenes
from c2fmae.data.transforms import RandomView
from tests.data.dataset_files import Files, assert_user_error, make_sample, write_tar


@contextmanager
def default_start_method(method: str) -> Iterator[None]:
    """Start processes in the block by a method."""
    previous = multiprocessing.get_start_method(allow_none=True)
    multiprocessing.set_start_method(method, force=True)
    try:
        yield
    finally:
        multiprocessing.set_start_method(previous, force=True)


def shard(folder: Path, keys: str = "abcdefghij", broken: str = "") -> Path:
    """Write a shard of one-letter samples; the images of those in `broken` cannot be decoded."""
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


class SlowTransform:
    """A transform that takes three milliseconds."""

    def __call__(self, scene: Scene, rng: np.random.Generator) -> Scene:
        time.sleep(0.003)
        return RandomView(size=(8, 8))(scene, rng)


@pytest.mark.parametrize("workers", [0, 2])
def test_the_times_of_loading_are_measured_where_the_samples_are_loaded(tmp_path: Path, workers: int) -> None:
    stream = replace(loader(shard(tmp_path), workers=workers), transform=SlowTransform()).stream_batches(1)
    assert (stream.num_workers, stream.load_times) == (workers, LoadTimes())
    next(stream)
    times = stream.load_times
    assert times.num_samples == 4
    assert times.crop >= 4 * 0.003 > 0
    assert min(times.decode, times.stack) > 0
    next(stream)
    assert stream.load_times.minus(times).num_samples == 4


@pytest.mark.parametrize(("workers", "method"), [(1, "fork"), (4, "fork"), (1, "spawn"), (4, "spawn")])
def test_samples_do_not_depend_on_workers_or_their_start_method(tmp_path: Path, workers: int, method: str) -> None:
    source = shard(tmp_path)
    expected = content(list(loader(source).stream_batches(3)))
    assert len(expected) == 6
    with default_start_method(method):
        assert content(list(loader(source, workers=workers).stream_batches(3))) == expected


def are_shared(_: DataPosition, batch: SceneBatch) -> list[bool]:
    return [tensor.is_shared() for tensor in batch.maps.values()]


@pytest.mark.parametrize("workers", [0, 1])
def test_workers_stack_straight_into_shared_memory(tmp_path: Path, workers: int) -> None:
    stream = loader(shard(tmp_path), workers=workers, finish=are_shared).stream_batches(1)
    assert next(stream) == [workers > 0] * 3


def fail_to_allocate(_: DataPosition, batch: SceneBatch) -> SceneBatch:
    raise RuntimeError("unable to allocate shared memory(shm) for file </torch_18152_1>: No space left on device (28)")


@pytest.mark.parametrize("finish", [None, fail_to_allocate])
def test_shared_memory_that_runs_out_is_named_with_its_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, finish: Callable[[DataPosition, SceneBatch], SceneBatch] | None
) -> None:
    if finish is None:
        monkeypatch.setattr(core_workers, "_MIN_SHARED_BYTES", 1 << 60)
    with pytest.raises(RunError, match=r"^shared memory ran out: /dev/shm has [\d,]+ MiB and must hold"):
        next(loader(shard(tmp_path), workers=1, finish=finish).stream_batches(1))


class KeysAndSums(NamedTuple):
    """A batch type of a user."""

    keys: list[str]
    sums: list[int]


def make_key_and_sum(scene: Scene, rng: np.random.Generator) -> tuple[str, int]:
    return scene.key, int(RandomView(size=(8, 8))(scene, rng).maps["rgb"].sum())


def collate_keys_and_sums(samples: list[tuple[str, int]]) -> KeysAndSums:
    return KeysAndSums([key for key, _ in samples], [total for _, total in samples])


@pytest.mark.parametrize("workers", [0, 2])
def test_samples_and_batches_may_be_of_any_type(tmp_path: Path, workers: int) -> None:
    source = shard(tmp_path, broken="d")
    scene_batches = list(loader(source, max_broken=1.0).stream_batches(2))
    own = replace(
        loader(source, workers=workers, max_broken=1.0), transform=make_key_and_sum, collate=collate_keys_and_sums
    )
    expected = [
        KeysAndSums(list(batch.keys), batch.maps["rgb"].flatten(1).long().sum(dim=1).tolist())
        for batch in scene_batches
    ]
    assert list(own.stream_batches(2)) == expected


@pytest.mark.parametrize("world_size", [2, 4])
def test_samples_do_not_depend_on_the_number_of_ranks(tmp_path: Path, world_size: int) -> None:
    source = shard(tmp_path)
    global_batches = list(loader(source).stream_batches(2))
    ranks = [list(loader(source, rank=rank, world_size=world_size).stream_batches(2)) for rank in range(world_size)]
    for batch, parts in zip(global_batches, zip(*ranks, strict=True), strict=True):
        assert batch.keys == tuple(key for part in parts for key in part.keys)
        for name, tensor in batch.maps.items():
            assert torch.equal(tensor, torch.cat([part.maps[name] for part in parts]))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_stream_continues_from_the_position_of_another(tmp_path: Path, workers: int) -> None:
    source = shard(tmp_path)
    expected = content(list(loader(source).stream_batches(3)))
    stream = loader(source, workers=workers).stream_batches(3)
    for _ in range(3):
        next(stream)
    assert stream.position == DataPosition(1, 1)
    stream.close()
    assert content(list(loader(source, workers=workers).stream_batches(3, stream.position))) == expected[3:]
    assert list(stream) == []


@pytest.mark.parametrize("workers", [0, 2])
def test_without_shuffle_every_sample_is_loaded_once_over_all_ranks(tmp_path: Path, workers: int) -> None:
    scenes = open_scenes(shard(tmp_path))
    keys: list[str] = []
    for rank in range(4):
        sampler = Sampler(num_samples=10, batch_size=8, shuffle=False, rank=rank, world_size=4)
        loader = SceneLoader(scenes=scenes, transform=RandomView(size=(8, 8)), sampler=sampler, workers=workers)
        keys += [key for batch in loader.stream_batches(1) for key in batch.keys]
    assert sorted(keys) == list("abcdefghij")


def test_invalid_loaders_are_refused(tmp_path: Path) -> None:
    source = shard(tmp_path)
    scenes, view = open_scenes(source), RandomView(size=(8, 8))
    message = "sampler: num_samples is 18, but there are 10 scenes"
    assert_user_error(
        lambda: SceneLoader(scenes=scenes, transform=view, sampler=Sampler(num_samples=18, batch_size=2)), message
    )
    assert_user_error(lambda: loader(source, workers=-1), "workers: expected at least 0, got -1")
    assert_user_error(lambda: loader(source, prefetch=0), "prefetch: expected at least 1, got 0")
    with pytest.raises((UserError, TypeError)):  # with shape checks it is a TypeError
        loader(source, on_broken="raise")


def test_the_error_of_workers_that_cannot_be_started_is_raised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = shard(tmp_path)

    def fail(*_: object) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(torch.multiprocessing, "Queue", fail)
    with pytest.raises(OSError, match="Too many open files"):
        loader(source, workers=2).stream_batches(1)


def test_workers_end_even_while_the_error_is_referenced(tmp_path: Path) -> None:
    stream = loader(shard(tmp_path, broken="c"), workers=2, on_broken="error").stream_batches(1)
    raised = None
    try:
        list(stream)
    except UserError as error:
        raised = error
    assert raised is not None
    assert raised.__traceback__ is not None
    assert not torch.multiprocessing.active_children()


def test_views_of_a_sample_differ_in_every_epoch_and_repetition(tmp_path: Path) -> None:
    source = shard(tmp_path, "ab")
    scenes = open_scenes(source)
    sampler = Sampler(num_samples=2, batch_size=2, repeats=2)
    batches = list(SceneLoader(scenes=scenes, transform=RandomView(size=(8, 8)), sampler=sampler).stream_batches(8))
    views = {
        (key, str(image.tolist()))
        for batch in batches
        for key, image in zip(batch.keys, batch.maps["rgb"], strict=True)
    }
    assert all(batch.keys[0] == batch.keys[1] for batch in batches)
    assert len(views) == 16


class Slow:
    """Scenes that take 10 ms each to load."""

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


def test_the_waiting_time_is_measured(tmp_path: Path) -> None:
    slow = Slow(shard(tmp_path))
    sampler = Sampler(num_samples=len(slow), batch_size=5)
    stream = SceneLoader(scenes=slow, transform=RandomView(size=(8, 8)), sampler=sampler).stream_batches(1)
    start_time = time.perf_counter()
    list(stream)
    assert 0.1 <= stream.wait_seconds <= time.perf_counter() - start_time


# Broken samples


@pytest.mark.parametrize("workers", [0, 2])
def test_a_broken_sample_is_replaced_logged_once_and_counted(
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
    assert text.startswith(f"{source}: c.jpg: cannot be decoded")
    assert [record.message for record in caplog.records] == [f"skipped: {text}"]


def test_replacements_do_not_depend_on_workers(tmp_path: Path) -> None:
    source = shard(tmp_path, broken="cdj")
    streams = [loader(source, workers=workers, max_broken=0.5).stream_batches(2) for workers in (0, 3)]
    first, second = (content(list(stream)) for stream in streams)
    assert first == second
    assert streams[0].skip_reasons == streams[1].skip_reasons


@pytest.mark.parametrize("workers", [0, 2])
def test_more_broken_samples_than_allowed_end_the_run(tmp_path: Path, workers: int) -> None:
    stream = loader(shard(tmp_path, broken="bc"), workers=workers, max_broken=0.1).stream_batches(9)
    message = (
        r"^2 of 10 samples are broken, more than the allowed 10\.00% \(max_broken\)\. The last one: \S+: \w\.jpg: .*\n"
        r"List them all with `c2fmae data check`$"
    )
    with pytest.raises(UserError, match=message):
        list(stream)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_broken_sample_ends_the_run_with_on_broken_error(tmp_path: Path, workers: int) -> None:
    source = shard(tmp_path, broken="c")
    stream = loader(source, workers=workers, on_broken="error").stream_batches(1)
    with pytest.raises(UserError, match=rf"^{source}: c\.jpg: cannot be decoded \([^\n]*$"):
        list(stream)


def test_a_source_with_only_broken_samples_does_not_hang(tmp_path: Path) -> None:
    keys = "abcdefghijklmnopqrst"
    stream = loader(shard(tmp_path, keys, broken=keys), max_broken=1.0).stream_batches(1)
    with pytest.raises(
        UserError, match=r"^16 consecutive samples are broken\. The last one: \S+: \w\.jpg: cannot be decoded"
    ):
        next(stream)


def test_maps_that_only_some_samples_have_are_refused(tmp_path: Path) -> None:
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
        "b: semantic has shape None, but (8, 8) in a. Crop both alike",
    )


# Processes


PROGRAM = """
import signal, sys
from c2fmae.data.loader import SceneLoader
from c2fmae.data.sampler import Sampler
from c2fmae.data.sources import open_scenes
from c2fmae.data.transforms import RandomView

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # background jobs of a shell start without
    discarded = []  # Python discards an interrupt that is raised in a finalizer, such as those of shared tensors
    sys.unraisablehook = lambda unraisable: discarded.append(unraisable.exc_type)
    scenes = open_scenes(sys.argv[1])
    sampler = Sampler(num_samples=len(scenes), batch_size=2)
    loader = SceneLoader(scenes=scenes, transform=RandomView(size=(8, 8)), sampler=sampler, workers=3)
    stream = loader.stream_batches(10**9)
    for number, _ in enumerate(stream):
        if number == 5:
            print("running", flush=True)
        if KeyboardInterrupt in discarded:
            raise KeyboardInterrupt
"""


@pytest.mark.unchecked
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
    assert errors.count("Traceback") == 1, errors  # of the main process only
    assert "KeyboardInterrupt" in errors
    deadline = time.monotonic() + 60
    while any(Path(f"/proc/{child}").exists() for child in children):
        assert time.monotonic() < deadline
        time.sleep(0.1)


class PrivateMemory:
    """A transform that returns how much private memory of the process grows while it reads keys."""

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


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_workers_share_the_keys(tmp_path: Path, method: str) -> None:
    from c2fmae.data.key_list import KeyList

    scenes = Slow(shard(tmp_path))
    scenes.keys = KeyList.from_names(f"{number:064d}" for number in range(200_000))  # 13 MB
    sampler = Sampler(num_samples=10, batch_size=2)
    loader = SceneLoader(scenes=scenes, transform=PrivateMemory(scenes), sampler=sampler, workers=2)
    with default_start_method(method):
        grown = [int(batch.maps["rgb"][:, 0, 0, 0].max()) for batch in loader.stream_batches(1)]
    assert max(grown) < 2_000_000
