import json
import os
import pickle
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from math import prod
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor

from c2fmae.core import checkpoint as module
from c2fmae.core.checkpoint import (
    Checkpoint,
    CheckpointWriter,
    list_checkpoints,
    load_checkpoint,
    load_newest_checkpoint,
    prune_checkpoints,
    read_metadata,
    save_checkpoint,
)
from c2fmae.core.errors import UserError
from c2fmae.core.tensor_file import write_tensors
from tests.core.disks import mounted_disk

DTYPES = [
    torch.float64,
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.float8_e4m3fn,
    torch.float8_e5m2,
    torch.int64,
    torch.int32,
    torch.int16,
    torch.int8,
    torch.uint64,
    torch.uint32,
    torch.uint16,
    torch.uint8,
    torch.bool,
]
TENSORS = {"model/weight": torch.arange(6.0).view(2, 3), "ema/flag": torch.tensor(True)}
FIX = " Restore it, or use another checkpoint"


@st.composite
def tensors(draw: st.DrawFn) -> Tensor:
    dtype, shape = draw(st.sampled_from(DTYPES)), draw(st.lists(st.integers(0, 4), max_size=3))
    size = prod(shape) * dtype.itemsize
    data = torch.tensor([*draw(st.binary(min_size=size, max_size=size))], dtype=torch.uint8)
    tensor = (data % 2 if dtype == torch.bool else data).view(dtype).view(shape)
    is_transposed: bool = draw(st.booleans())
    return tensor.transpose(0, -1) if shape and is_transposed else tensor


def same(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(
        one[name].dtype == other[name].dtype
        and one[name].shape == other[name].shape
        and one[name].flatten().view(torch.uint8).tolist() == other[name].flatten().view(torch.uint8).tolist()
        for name in one
    )


def saved(folder: Path, step: int = 50) -> Path:
    return save_checkpoint(folder, Checkpoint(step, TENSORS, {"seed": 1, "keys": ["a", "ä"]}))


def steps_in(folder: Path) -> list[int]:
    return [int(path.name[-8:]) for path in list_checkpoints(folder)]


def refusal(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        load_checkpoint(path)
    return str(caught.value)


def flip(path: Path, place: int, bit: int = 0) -> None:
    with path.open("r+b") as file:
        file.seek(place)
        (byte,) = file.read(1)
        file.seek(place)
        file.write(bytes([byte ^ 1 << bit]))


@given(
    st.dictionaries(st.text(st.characters(exclude_categories=["Cs"]), max_size=9).map("m/{}".format), tensors()),
    st.integers(0, 10**9),
    st.dictionaries(st.text(), st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()),
)
def test_a_saved_checkpoint_is_read_back_here_and_by_safetensors(
    tmp_path_factory: pytest.TempPathFactory, stored: dict[str, Tensor], step: int, metadata: dict[str, Any]
) -> None:
    path = save_checkpoint(tmp_path_factory.mktemp("checkpoints"), Checkpoint(step, stored, metadata))
    loaded = load_checkpoint(path)
    assert (loaded.step, loaded.metadata, list(loaded.tensors)) == (step, metadata, list(stored))
    assert same(loaded.tensors, stored)
    assert same(load_file(path / "tensors.safetensors"), stored)
    shutil.rmtree(path.parent)


def test_parameters_and_slices_are_saved_by_value(tmp_path: Path) -> None:
    weight = torch.nn.Parameter(torch.ones(2, 2))
    path = save_checkpoint(tmp_path, Checkpoint(1, {"whole": weight, "row": weight[1]}, {}))
    assert same(load_checkpoint(path).tensors, {"whole": torch.ones(2, 2), "row": torch.ones(2)})


def test_a_checkpoint_is_a_directory_named_by_its_step_with_two_files(tmp_path: Path) -> None:
    path = saved(tmp_path / "run" / "checkpoints")
    assert path == tmp_path / "run" / "checkpoints" / "step-00000050"
    assert sorted(file.name for file in path.iterdir()) == ["checkpoint.json", "tensors.safetensors"]
    assert list(path.parent.iterdir()) == [path]
    assert (load_checkpoint(path.rename(tmp_path / "best")).step, steps_in(path.parent)) == (50, [])


def test_the_same_checkpoint_gives_the_same_bytes(tmp_path: Path) -> None:
    one, other = saved(tmp_path / "a"), saved(tmp_path / "b")
    for name in ("checkpoint.json", "tensors.safetensors"):
        assert (one / name).read_bytes() == (other / name).read_bytes()


def test_a_checkpoint_of_the_first_format_stays_readable(tmp_path: Path) -> None:
    path = tmp_path / "step-00000007"
    path.mkdir()
    (path / "checkpoint.json").write_text(
        """{
  "format": 1,
  "step": 7,
  "facts": {
    "seed": 3
  },
  "tensors": {
    "bytes": 112,
    "sha256": "4c49d1d617669856d7e4fea0d263a6df51c0926579101b0d27ff98b0a1d6e7bb"
  },
  "sha256": "415fcbd50dbaf3f700d687f8299d4e0285a225a5d5ca7ade8c447029cca7fe94"
}
"""
    )
    header = b'{"__metadata__":{"format":"pt"},"model/weight":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}'
    data = b"\x00\x00\x80\x3f\x00\x00\x00\xc0"
    (path / "tensors.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + data)
    old = load_checkpoint(path)
    assert (old.step, old.metadata) == (7, {"seed": 3})
    assert same(old.tensors, {"model/weight": torch.tensor([1.0, -2.0])})


def test_an_older_format_is_migrated_version_by_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def to_third(metadata: dict[str, Any], tensors: dict[str, Tensor]) -> tuple[dict[str, Any], dict[str, Tensor]]:
        return {**metadata, "epoch": 0.5}, {name.replace("model/", "net/"): each for name, each in tensors.items()}

    def to_fourth(metadata: dict[str, Any], tensors: dict[str, Tensor]) -> tuple[dict[str, Any], dict[str, Tensor]]:
        return {**metadata, "epoch": metadata["epoch"] * 2}, tensors

    path = saved(tmp_path)
    monkeypatch.setattr(module, "FORMAT_VERSION", 4)
    monkeypatch.setattr(module, "MIGRATIONS", {2: to_third, 3: to_fourth})
    old = load_checkpoint(path)
    assert old.metadata == read_metadata(path) == {"seed": 1, "keys": ["a", "ä"], "epoch": 1.0}
    assert same(old.tensors, {"net/weight": TENSORS["model/weight"], "ema/flag": TENSORS["ema/flag"]})
    assert load_checkpoint(saved(tmp_path, 60)).metadata == {"seed": 1, "keys": ["a", "ä"]}
    monkeypatch.setattr(module, "MIGRATIONS", {3: to_fourth})
    assert refusal(path) == f"{path}/checkpoint.json: has format 2, which this version does not support.{FIX}"


def test_a_newer_format_is_rejected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FORMAT_VERSION", 3)
    path = saved(tmp_path)
    monkeypatch.undo()
    assert refusal(path) == (
        f"{path}: was written by a newer c2fmae (format 3, this version reads up to 2). Upgrade c2fmae"
    )


def test_metadata_is_read_without_tensors(tmp_path: Path) -> None:
    path = saved(tmp_path)
    (path / "tensors.safetensors").unlink()
    checkpoint = load_checkpoint(path, with_tensors=False)
    assert (checkpoint.step, checkpoint.tensors, checkpoint.metadata["seed"]) == (50, {}, 1)
    (path / "checkpoint.json").write_text("{}")
    with pytest.raises(UserError, match="has no format version"):
        read_metadata(path)


def test_a_flip_of_any_bit_is_rejected(tmp_path: Path) -> None:
    path = saved(tmp_path)
    load_checkpoint(path)
    for file in path.iterdir():
        for place in range(file.stat().st_size):
            flip(file, place, bit=place % 8)
            assert refusal(path).startswith(str(path)), (file, place)
            flip(file, place, bit=place % 8)
    load_checkpoint(path)


def test_a_truncated_file_is_rejected(tmp_path: Path) -> None:
    path = saved(tmp_path)
    for file in path.iterdir():
        data = file.read_bytes()
        for length in reversed(range(len(data))):
            os.truncate(file, length)
            assert refusal(path).startswith(str(file)), (file, length)
        file.write_bytes(data)
    load_checkpoint(path)


@pytest.mark.parametrize("name", ["checkpoint.json", "tensors.safetensors"])
def test_a_missing_file_is_reported(name: str, tmp_path: Path) -> None:
    path = saved(tmp_path)
    (path / name).unlink()
    assert refusal(path) == f"{path}/{name}: is missing.{FIX}"
    assert refusal(tmp_path / "none") == f"{tmp_path}/none: is missing.{FIX}"


def test_a_damaged_file_is_reported(tmp_path: Path) -> None:
    path = saved(tmp_path)
    tensors, document = path / "tensors.safetensors", path / "checkpoint.json"
    data, text = tensors.read_bytes(), document.read_text()
    tensors.write_bytes(data[:-1])
    size = len(data)
    assert refusal(path) == f"{tensors}: is damaged: it has {size - 1} bytes, expected {size}.{FIX}"
    tensors.write_bytes(data)
    flip(tensors, size - 1)
    wrong = "is damaged: its checksum is not the one stored when it was written"
    assert refusal(path) == f"{tensors}: {wrong}.{FIX}"
    tensors.write_bytes(data)
    document.write_text(text.replace('"seed": 1', '"seed": 2'))
    assert refusal(path) == f"{document}: {wrong}.{FIX}"
    document.write_text(text[:1])
    why = "Expecting property name enclosed in double quotes: line 1 column 2 (char 1)"
    assert refusal(path) == f"{document}: is not JSON ({why}).{FIX}"
    document.write_text("[" * 100_000)
    assert refusal(path) == f"{document}: is nested more than 64 levels deep.{FIX}"
    document.write_text('{"format": "pt"}')
    assert refusal(path) == f"{document}: is not a checkpoint of c2fmae: it has no format version.{FIX}"
    document.unlink()
    document.mkdir()
    assert refusal(path) == f"{document}: cannot be read: Is a directory.{FIX}"
    assert refusal(tensors) == (
        f"{tensors}: is not a checkpoint, which is a directory with checkpoint.json and tensors.safetensors.{FIX}"
    )


def test_a_directory_with_the_name_of_another_step_is_rejected(tmp_path: Path) -> None:
    path = saved(tmp_path, 40).rename(tmp_path / "step-00000050")
    assert refusal(path) == f"{path}/checkpoint.json: is of step 40, but its directory is step-00000050.{FIX}"


ENTRY = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


@pytest.mark.parametrize(
    ("entries", "why"),
    [
        ({"a": {**ENTRY, "shape": [3]}}, "a of shape [3] cannot be at bytes 0 to 8 of 8"),
        ({"a": {**ENTRY, "data_offsets": [0, 16], "shape": [4]}}, "a of shape [4] cannot be at bytes 0 to 16 of 8"),
        ({"a": {**ENTRY, "data_offsets": [4, 8], "shape": [1]}}, "a of shape [1] cannot be at bytes 4 to 8 of 8"),
        ({"a": ENTRY, "b": ENTRY}, "b of shape [2] cannot be at bytes 0 to 8 of 8"),
        ({"a": {**ENTRY, "shape": [-1, -2]}}, "a of shape [-1, -2] cannot be at bytes 0 to 8 of 8"),
        ({"a": {**ENTRY, "dtype": "F7"}}, "a has an unsupported dtype, F7"),
        ({"a": {**ENTRY, "data_offsets": [0, 4], "shape": [1]}}, "the last 4 bytes belong to no tensor"),
        ({}, "the last 8 bytes belong to no tensor"),
        ({"a": {}}, "'data_offsets'"),
    ],
)
def test_a_wrong_header_is_rejected_even_with_a_valid_checksum(
    entries: dict[str, Any], why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lie(path: Path, tensors: Mapping[str, Tensor]) -> str:
        import hashlib

        header = json.dumps(entries).encode()
        path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(8))
        return hashlib.sha256(path.read_bytes()).hexdigest()

    monkeypatch.setattr(module, "write_tensors", lie)
    path = saved(tmp_path)
    problem = "its header does not match its content"
    assert refusal(path) == f"{path}/tensors.safetensors: {problem}: {why}.{FIX}"


@pytest.mark.parametrize("content", [b"", b"\xff" * 8, b"\xff" * 7 + b"\x7f{}", b"[" * 4096, bytes(8), b"a" * 4096])
def test_arbitrary_content_is_rejected_even_with_a_valid_checksum(
    content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import hashlib

    def anything(path: Path, tensors: Mapping[str, Tensor]) -> str:
        path.write_bytes(content)
        return hashlib.sha256(content).hexdigest()

    monkeypatch.setattr(module, "write_tensors", anything)
    path = saved(tmp_path)
    problem = "its header does not match its content"
    assert refusal(path).startswith(f"{path}/tensors.safetensors: {problem}: ")


class Bomb:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.marker,))


def test_a_pickle_is_rejected_and_never_loaded(tmp_path: Path) -> None:
    marker, path = tmp_path / "marker", saved(tmp_path)
    ways: list[Callable[[Path], object]] = [
        lambda file: torch.save(Bomb(marker), file),
        lambda file: torch.save(Bomb(marker), file, _use_new_zipfile_serialization=False),
        *(lambda file, p=p: file.write_bytes(pickle.dumps(Bomb(marker), protocol=p)) for p in range(2, 6)),
    ]
    for place in (path / "tensors.safetensors", path / "checkpoint.json", path):
        for way in ways:
            if place.is_dir():
                shutil.rmtree(place)
            way(place)
            problem = "is a pickle, which could run code, so it is not read. Use another checkpoint"
            assert refusal(path) == f"{place}: {problem}"
            assert not load_newest_checkpoint(tmp_path)[0]
        if place.name == "tensors.safetensors":
            write_tensors(place, TENSORS)
    path.write_bytes(pickle.dumps(Bomb(marker), protocol=0))
    assert "is not a checkpoint" in refusal(path)
    assert not marker.exists()
    pickle.loads(pickle.dumps(Bomb(marker)))  # loading runs the code
    assert marker.exists()


def test_the_newest_intact_checkpoint_is_loaded_and_damaged_ones_are_reported(tmp_path: Path) -> None:
    assert load_newest_checkpoint(tmp_path / "none") == (None, [])
    paths = [saved(tmp_path, step) for step in (30, 9, 200_000_000, 40)]
    assert list_checkpoints(tmp_path) == [paths[1], paths[0], paths[3], paths[2]]
    flip(paths[2] / "tensors.safetensors", 100)
    (paths[3] / "tensors.safetensors").unlink()
    expected = [refusal(paths[2]), refusal(paths[3])]
    newest, refused = load_newest_checkpoint(tmp_path)
    assert newest
    assert (newest.step, refused) == (30, expected)


def test_leftovers_of_killed_saves_are_not_checkpoints_and_are_removed(tmp_path: Path) -> None:
    path = saved(tmp_path)
    for leftover in (".step-00000060.tmp", ".step-00000050.replaced", ".step-00000030.removed", ".step-00000050.tmp"):
        shutil.copytree(path, tmp_path / leftover)
    assert list_checkpoints(tmp_path) == [path]
    saved(tmp_path)
    saved(tmp_path, 60)
    assert steps_in(tmp_path) == [50, 60]
    prune_checkpoints(tmp_path, keep_last=2, keep_every=None)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000050", "step-00000060"]


def test_a_replaced_checkpoint_is_used_until_its_replacement_exists(tmp_path: Path) -> None:
    aside = saved(tmp_path).rename(tmp_path / ".step-00000050.replaced")
    shutil.copytree(aside, tmp_path / ".step-00000050.tmp")
    assert list_checkpoints(tmp_path) == [aside]
    prune_checkpoints(tmp_path, keep_last=1, keep_every=None)
    newest, refused = load_newest_checkpoint(tmp_path)
    assert newest
    assert (newest.step, refused, list(tmp_path.iterdir())) == (50, [], [aside])
    assert load_checkpoint(tmp_path / "step-00000050").step == 50
    replacement = saved(tmp_path)
    assert list(tmp_path.iterdir()) == [replacement]


def test_a_checkpoint_is_replaced_only_by_a_complete_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved(tmp_path)
    with pytest.raises(TypeError, match="not JSON serializable"):
        save_checkpoint(tmp_path, Checkpoint(50, {}, {"path": tmp_path}))
    assert list(tmp_path.iterdir()) == [path]
    assert load_checkpoint(path).metadata["seed"] == 1
    save_checkpoint(tmp_path, Checkpoint(50, {}, {"seed": 2}))
    assert list(tmp_path.iterdir()) == [path]
    assert load_checkpoint(path).metadata["seed"] == 2


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shelf")
    for step in range(12):
        saved(folder, step)
    return folder


@given(st.sets(st.integers(0, 11)), st.sets(st.integers(0, 11)), st.integers(0, 4), st.none() | st.integers(1, 5))
def test_pruning_keeps_the_last_ones_multiples_and_the_newest_intact_one(
    shelf: Path, steps: set[int], damaged: set[int], keep_last: int, keep_every: int | None
) -> None:
    folder = shelf.with_name("pruned")
    folder.mkdir()
    try:
        for step in steps:
            path = shutil.copytree(shelf / f"step-{step:08d}", folder / f"step-{step:08d}")
            if step in damaged:
                flip(path / "tensors.safetensors", 130)
        shutil.copytree(shelf / "step-00000003", folder / ".step-00000003.tmp")
        prune_checkpoints(folder, keep_last=keep_last, keep_every=keep_every)
        expected = set(sorted(steps)[::-1][:keep_last]) | set(sorted(steps - damaged)[-1:])
        expected |= {step for step in steps if keep_every and step % keep_every == 0}
        assert sorted(path.name for path in folder.iterdir()) == [f"step-{step:08d}" for step in sorted(expected)]
        before = sorted(folder.iterdir())
        prune_checkpoints(folder, keep_last=keep_last, keep_every=keep_every)
        assert sorted(folder.iterdir()) == before
    finally:
        shutil.rmtree(folder)


def test_a_checkpoint_that_cannot_be_removed_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: Path, target: Path) -> None:
        raise PermissionError(13, "Permission denied", str(self))

    paths = [saved(tmp_path, step) for step in (1, 2)]
    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(UserError) as caught:
        prune_checkpoints(tmp_path, keep_last=1, keep_every=None)
    assert str(caught.value) == f"{paths[0]}: cannot be removed: Permission denied. Fix its permissions"


def test_a_full_disk_leaves_the_last_checkpoint_and_frees_the_partial_one(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    big = Checkpoint(50, {"model/weight": torch.zeros(1 << 20)}, {})

    def failure() -> str:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, hard))
        try:
            with pytest.raises(UserError) as caught:
                save_checkpoint(tmp_path, big)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        return str(caught.value)

    start = f"{tmp_path}: the checkpoint of step 50 could not be written: File too large."
    assert failure() == f"{start} No earlier one is intact. Free disk space and run again"
    assert list(tmp_path.iterdir()) == []
    path = saved(tmp_path, 40)
    problem = "The last one, of step 40, is intact. Free disk space and run again with --resume"
    assert failure() == f"{start} {problem}"
    assert list(tmp_path.iterdir()) == [path]
    load_checkpoint(path)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    with mounted_disk(tmp_path, "size=2m"):
        yield tmp_path


@pytest.mark.unchecked
def test_full_and_read_only_disks_are_reported(small_disk: Path) -> None:
    folder = small_disk / "checkpoints"
    writer = CheckpointWriter(folder, keep_last=3, keep_every=None)
    writer.save(40, {"model/weight": torch.ones(1 << 17)}.items(), {})
    writer.wait()
    writer.save(50, {"model/weight": torch.ones(1 << 19)}.items(), {})
    with pytest.raises(UserError) as caught:
        writer.wait()
    assert str(caught.value) == (
        f"{folder}: the checkpoint of step 50 could not be written: No space left on device. The last one, of step 40,"
        " is intact. Free disk space and run again with --resume"
    )
    assert [path.name for path in folder.iterdir()] == ["step-00000040"]
    writer.save(50, {"model/weight": torch.ones(1 << 17)}.items(), {})
    writer.wait()
    assert steps_in(folder) == [40, 50]
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    writer.save(60, TENSORS.items(), {})
    with pytest.raises(UserError) as caught:
        writer.wait()
    assert str(caught.value) == (
        f"{folder}: the checkpoint of step 60 could not be written: Read-only file system. The last one, of step 50,"
        " is intact. Fix the cause and run again with --resume"
    )


class Gate:
    """Blocks saves until it is opened."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.opened, self.running, self.most = threading.Event(), 0, 0
        save = module.save_checkpoint

        def held(folder: Path, checkpoint: Checkpoint) -> Path:
            self.running += 1
            self.most = max(self.most, self.running)
            assert self.opened.wait(60)
            path = save(folder, checkpoint)
            self.running -= 1
            return path

        monkeypatch.setattr(module, "save_checkpoint", held)


def test_the_writer_returns_before_the_file_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gate, writer = Gate(monkeypatch), CheckpointWriter(tmp_path, keep_last=3, keep_every=None)
    weight, metadata = torch.ones(3), {"epoch": [1]}
    writer.save(1, {"weight": weight}.items(), metadata)
    assert list(tmp_path.iterdir()) == []
    weight += 1
    metadata["epoch"].append(2)
    gate.opened.set()
    writer.wait()
    assert same(load_checkpoint(tmp_path / "step-00000001").tensors, {"weight": torch.ones(3)})
    assert load_checkpoint(tmp_path / "step-00000001").metadata == {"epoch": [1]}
    writer.wait()


def test_saves_wait_for_each_other_and_share_buffers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gate, writer = Gate(monkeypatch), CheckpointWriter(tmp_path, keep_last=9, keep_every=None)
    gate.opened.set()
    states = [
        {"a": torch.tensor(1.0), "b": torch.ones(2, 3)},
        {"b": torch.full((2, 3), 2.0).T.contiguous().T, "a": torch.tensor(2.0)},
        {"b": torch.full((2, 3), 3.0, dtype=torch.bfloat16)},
        {"a": torch.full((4,), 4.0), "b": torch.nn.Parameter(torch.full((3, 2), 4.0))},
    ]
    for step, state in enumerate(states):
        writer.save(step, state.items(), {})
    writer.wait()
    for step, state in enumerate(states):
        assert same(load_checkpoint(tmp_path / f"step-{step:08d}").tensors, state)
    assert gate.most == 1


def test_later_saves_allocate_no_memory(tmp_path: Path) -> None:
    writer = CheckpointWriter(tmp_path, keep_last=3, keep_every=None)
    writer.save(1, TENSORS.items(), {})
    first = dict(writer._buffers)
    writer.save(2, TENSORS.items(), {})
    writer.wait()
    assert first.keys() == TENSORS.keys()
    assert all(writer._buffers[name] is buffer for name, buffer in first.items())


def test_an_interrupted_wait_does_not_disturb_the_save(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gate, writer = Gate(monkeypatch), CheckpointWriter(tmp_path, keep_last=3, keep_every=None)
    writer.save(1, {"weight": torch.ones(3)}.items(), {})
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    timer = threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT))

    def wait() -> None:
        timer.start()
        writer.wait()

    try:
        with pytest.raises(KeyboardInterrupt):
            wait()
    finally:
        timer.join()
        signal.signal(signal.SIGINT, before)
    threading.Timer(0.1, gate.opened.set).start()
    writer.save(2, {"weight": torch.zeros(3)}.items(), {})
    writer.wait()
    assert [load_checkpoint(path).tensors["weight"].sum().item() for path in list_checkpoints(tmp_path)] == [3, 0]


def test_the_thread_ends_with_its_save(tmp_path: Path) -> None:
    threads, writer = threading.active_count(), CheckpointWriter(tmp_path, keep_last=3, keep_every=None)
    writer.save(1, TENSORS.items(), {})
    writer.wait()
    end = time.monotonic() + 60
    while threading.active_count() > threads:
        assert time.monotonic() < end
        time.sleep(0.001)


@pytest.mark.unchecked
def test_a_program_that_exits_finishes_its_last_save(tmp_path: Path) -> None:
    code = (
        "import sys, torch; from pathlib import Path; from c2fmae.core.checkpoint import CheckpointWriter\n"
        "writer = CheckpointWriter(Path(sys.argv[1]), keep_last=1, keep_every=None)\n"
        "writer.save(1, {'weight': torch.ones(1 << 20)}.items(), {})\n"
        "raise SystemExit(3)"
    )
    process = subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False, timeout=60)
    assert (process.returncode, steps_in(tmp_path)) == (3, [1])


def test_the_writer_prunes(tmp_path: Path) -> None:
    writer = CheckpointWriter(tmp_path, keep_last=2, keep_every=4)
    for step in range(1, 10):
        writer.save(step, TENSORS.items(), {})
    writer.wait()
    assert steps_in(tmp_path) == [4, 8, 9]


def test_an_error_of_the_writer_is_raised_once_and_it_can_be_used_again(tmp_path: Path) -> None:
    folder = tmp_path / "file"
    folder.touch()
    writer = CheckpointWriter(folder, keep_last=2, keep_every=None)
    for complain in (writer.wait, lambda: writer.save(2, TENSORS.items(), {})):
        writer.save(1, TENSORS.items(), {})
        with pytest.raises(UserError) as caught:
            complain()
        problem = "the checkpoint of step 1 could not be written: File exists. No earlier one is intact."
        assert str(caught.value) == f"{folder}: {problem} Fix the cause and run again"
    folder.unlink()
    writer.save(3, TENSORS.items(), {})
    writer.wait()
    assert steps_in(folder) == [3]


# A child saves in an endless loop; its parent kills it at random moments and checks the checkpoints.
KILLS = """
import os, random, signal, sys, time
from pathlib import Path
import torch
from c2fmae.core.checkpoint import Checkpoint, load_newest_checkpoint, prune_checkpoints, save_checkpoint

torch.set_num_threads(1)
folder, log, kills = Path(sys.argv[1]), Path(sys.argv[1] + ".log"), int(sys.argv[2])

def save_without_end(life: int, step: int) -> None:
    note = os.open(log, os.O_CREAT | os.O_APPEND | os.O_WRONLY)
    while os.getppid() == parent:
        for name, save in enumerate((True, True, False)):  # every step is saved twice: the second takes its place
            if save:
                mark = f"{step} {life} {name}"
                os.write(note, f"begun {mark}\\n".encode())
                tensors = {"weight": torch.full((1 << 18,), float(step)), "mark": torch.tensor(name)}
                save_checkpoint(folder, Checkpoint(step, tensors, {"mark": mark}))
                os.write(note, f"done {mark}\\n".encode())
            else:
                prune_checkpoints(folder, keep_last=2, keep_every=None)
        step += 1

parent, step, inside, last = os.getpid(), 1, 0, None
for life in range(kills):
    child = os.fork()
    if not child:
        save_without_end(life, step)
        os._exit(1)
    chance, start = random.Random(life), time.monotonic()
    events = chance.randint(1, 8)  # minimum number of log lines (begun, done, begun, …) before the kill
    while (log.read_text() if log.exists() else "").count("\\n") < events:
        assert time.monotonic() < start + 60
        time.sleep(0.0005)
    time.sleep(chance.uniform(0, 0.01))
    os.kill(child, signal.SIGKILL)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL
    lines = log.read_text().splitlines()
    log.unlink()
    begun = [line.removeprefix("begun ") for line in lines if line.startswith("begun")]
    done = [line.removeprefix("done ") for line in lines if line.startswith("done")]
    last = (done or [last])[-1]
    newest, refused = load_newest_checkpoint(folder)
    found = newest.metadata["mark"] if newest else None
    assert not refused, refused
    assert found in (last, *begun[-1:]), (found, last, lines[-4:])
    if newest:
        assert newest.tensors["weight"].eq(newest.step).all()
        step = newest.step
    last, inside = found, inside + (begun[-1:] != done[-1:])
print(step, inside)
"""


@pytest.mark.unchecked
def test_after_a_kill_at_any_moment_the_newest_checkpoint_is_the_last_or_the_current_save(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", KILLS, str(tmp_path / "checkpoints"), "20"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    try:
        output, _ = process.communicate(timeout=120)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 0, output
    step, inside = map(int, output.split())
    assert step > 5, "hardly anything was saved between the kills"
    assert inside >= 5, "hardly any kill came in the middle of a save"


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"step": None}, "step: is required"),
        ({"step": "4"}, "step: input should be a valid integer, got '4'"),
        ({"step": -1}, "step: input should be greater than or equal to 0, got -1"),
        ({"step": 2**63}, f"step: input should be less than {2**63}, got {2**63}"),
        ({"metadata": None}, "metadata: expected a mapping of settings (key: value), got None"),
        ({"metadata": {"config": 3}}, "metadata.config: expected a mapping of settings (key: value), got 3"),
        ({"metadata": {"samples": "many"}}, "metadata.samples: input should be a valid integer, got 'many'"),
        ({"metadata": {"kind": ["a"]}}, "metadata.kind: input should be a valid string, got ['a']"),
        ({"tensors": {"bytes": 3}}, "tensors.sha256: is required"),
        ({"tensors": []}, "tensors: expected a mapping of settings (key: value), got []"),
    ],
)
def test_missing_and_mistyped_values_with_a_valid_checksum_are_reported(
    changes: dict[str, Any], problem: str, tmp_path: Path
) -> None:
    path = save_checkpoint(tmp_path, Checkpoint(4, TENSORS, {})) / "checkpoint.json"
    document = json.loads(path.read_text()) | changes
    document = {key: value for key, value in document.items() if value is not None and key != "sha256"}
    path.write_text(module._to_json({**document, "sha256": module._checksum(document)}))
    for with_tensors in (True, False):
        with pytest.raises(UserError) as caught:
            load_checkpoint(path.parent, with_tensors=with_tensors)
        assert str(caught.value) == f"{path}: {problem}.{FIX}"
