"""Weight files: what is read, and what is rejected before any of it runs."""

import argparse
import json
import os
import pickle
import struct
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save, save_file
from torch import Tensor

from c2fmae.core.errors import UserError
from c2fmae.core.weight_file import read_weight_file

FIX = "Download it again, or use another file"
WEIGHTS = {"a.weight": torch.arange(6.0).view(2, 3), "a.bias": torch.tensor([1.0, -2.0])}


def equal(actual: Mapping[str, Tensor], expected: Mapping[str, Tensor] = WEIGHTS) -> bool:
    return actual.keys() == expected.keys() and all(torch.equal(actual[name], expected[name]) for name in expected)


def refused(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        read_weight_file(path)
    message = str(caught.value)
    assert "\n" not in message
    return message.replace(str(path), "FILE").replace(str(path.parent), "FOLDER")


def as_safetensors(content: Any, path: Path) -> None:
    save_file(content, path)


def as_zip(content: Any, path: Path) -> None:
    torch.save(content, path)


def as_legacy(content: Any, path: Path) -> None:
    torch.save(content, path, _use_new_zipfile_serialization=False)


KINDS = [as_safetensors, as_zip, as_legacy]
Write = Callable[[Any, Path], None]


@pytest.mark.parametrize("write", KINDS)
def test_formats_are_recognised_whatever_the_file_name(write: Write, tmp_path: Path) -> None:
    for name in ("weights.bin", "weights.pth", "weights"):
        write(WEIGHTS, tmp_path / name)
        assert equal(read_weight_file(tmp_path / name).tensors)
        assert equal(read_weight_file(str(tmp_path / name)).tensors)


@pytest.mark.parametrize("write", KINDS[1:])
def test_a_pickle_named_safetensors_is_rejected(write: Write, tmp_path: Path) -> None:
    write(WEIGHTS, tmp_path / "f.safetensors")
    assert refused(tmp_path / "f.safetensors") == (
        "FILE: is a file of torch.save with the wrong suffix. Rename it to .pth"
    )


@pytest.mark.parametrize("write", KINDS[1:])
def test_a_training_checkpoint_gives_its_weights_and_options(write: Write, tmp_path: Path) -> None:
    optimiser = {"state": {0: {"exp_avg": torch.ones(3)}}, "param_groups": [{"lr": 1e-3, "params": [0]}]}
    args = argparse.Namespace(norm_pix_loss=True, mask_ratio=0.75, output_dir="/somewhere")
    write({"model": WEIGHTS, "optimizer": optimiser, "epoch": 7, "scaler": {}, "args": args}, tmp_path / "f.pth")
    found = read_weight_file(tmp_path / "f.pth")
    assert equal(found.tensors)
    assert found.args == {"norm_pix_loss": True, "mask_ratio": 0.75, "output_dir": "/somewhere"}
    assert found.notes == ("loaded from its 'model'; it also contains args, epoch, optimizer, scaler",)


def test_plain_weights_are_preferred_to_averaged_ones(tmp_path: Path) -> None:
    averaged = {name: each + 1 for name, each in WEIGHTS.items()}
    torch.save({"model_ema": averaged, "model": WEIGHTS}, tmp_path / "both.pth")
    found = read_weight_file(tmp_path / "both.pth")
    assert equal(found.tensors)
    assert found.notes == ("loaded from its 'model'; it also contains model_ema",)
    torch.save({"model_ema": averaged, "epoch": 1}, tmp_path / "averaged.pth")
    assert equal(read_weight_file(tmp_path / "averaged.pth").tensors, averaged)


@given(
    prefixes=st.lists(st.sampled_from(["_orig_mod.", "module.", "model."]), max_size=4),
    containers=st.lists(st.sampled_from(["model", "state_dict", "module", "model_state_dict"]), max_size=3),
)
def test_nested_containers_and_prefixes_are_removed(
    prefixes: list[str], containers: list[str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    content: Any = {"".join(prefixes) + name: each for name, each in WEIGHTS.items()}
    for container in containers:
        content = {container: content}
    path = tmp_path_factory.mktemp("nested") / "file.pth"
    torch.save(content, path)
    assert equal(read_weight_file(path).tensors)


def test_a_prefix_of_only_some_names_stays(tmp_path: Path) -> None:
    weights = {"module.a": torch.ones(1), "b": torch.ones(1)}
    save_file(weights, tmp_path / "f.safetensors")
    assert read_weight_file(tmp_path / "f.safetensors").tensors.keys() == weights.keys()


def test_values_that_are_not_tensors_are_ignored(tmp_path: Path) -> None:
    torch.save({**WEIGHTS, "epoch": 3, "name": "vit"}, tmp_path / "f.pth")
    assert equal(read_weight_file(tmp_path / "f.pth").tensors)


class Bomb:
    def __init__(self, place: Path) -> None:
        self.place = place

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.place),)


@pytest.mark.parametrize("write", KINDS[1:])
def test_a_pickle_with_code_is_rejected_without_running_it(write: Write, tmp_path: Path) -> None:
    trace = tmp_path / "it ran"
    write({"model": WEIGHTS, "args": Bomb(trace)}, tmp_path / "bomb.pth")
    message = refused(tmp_path / "bomb.pth")
    assert message == (
        "FILE: would run code when it is read (posix.mkdir), so it is not read. If you trust it, load it yourself and "
        "save its tensors with safetensors.torch.save_file"
    )
    assert not trace.exists()
    with (tmp_path / "plain.pkl").open("wb") as file:
        pickle.dump(Bomb(trace), file)
    refused(tmp_path / "plain.pkl")
    assert not trace.exists()


def repacked(path: Path, **changes: Any) -> Path:
    """Write a file of torch.save with some entries of its archive changed."""
    torch.save({"model": {"a": torch.zeros(1 << 16)}}, path.with_suffix(".whole"))
    with (
        zipfile.ZipFile(path.with_suffix(".whole")) as old,
        zipfile.ZipFile(path, "w", changes.get("compression", zipfile.ZIP_STORED)) as new,
    ):
        for entry in old.infolist():
            if entry.filename.endswith(changes.get("without", "?")):
                continue
            new.writestr(entry.filename, changes.get("change", lambda _, data: data)(entry.filename, old.read(entry)))
        for name, data in changes.get("extra", {}).items():
            new.writestr(name, data)
    return path


def test_a_zip_bomb_is_rejected_before_it_is_unpacked(tmp_path: Path) -> None:
    assert equal(read_weight_file(repacked(tmp_path / "same.pth")).tensors, {"a": torch.zeros(1 << 16)})
    bomb = repacked(tmp_path / "bomb.pth", compression=zipfile.ZIP_DEFLATED)
    assert bomb.stat().st_size < 1 << 14
    assert refused(bomb) == f"FILE: is compressed, unlike files of torch.save, and could fill the memory. {FIX}"


def test_an_archive_with_overlapping_entries_is_rejected(tmp_path: Path) -> None:
    path = repacked(tmp_path / "f.pth", extra={"again": b"x"})
    data = bytearray(path.read_bytes())
    place = data.rindex(b"PK\x01\x02")  # the last entry of the list: of the part called again
    data[place + 20 : place + 28] = struct.pack("<II", 1 << 20, 1 << 20)
    path.write_bytes(data)
    assert refused(path) == f"FILE: is damaged: its entries have more bytes than the file. {FIX}"


def test_a_tensor_larger_than_its_storage_is_rejected(tmp_path: Path) -> None:
    def larger(name: str, data: bytes) -> bytes:
        return data.replace(struct.pack("<i", 1 << 16), struct.pack("<i", 1 << 28)) if name.endswith(".pkl") else data

    assert refused(repacked(tmp_path / "f.pth", change=larger)).startswith(
        "FILE: is not a file of weights, or is damaged: "
    )
    torch.save({"a": torch.zeros(1).expand(1 << 40)}, tmp_path / "repeated.pth")
    assert refused(tmp_path / "repeated.pth") == (
        f"FILE: a is not a plain CPU tensor with all its elements in the file. {FIX}"
    )


def test_other_kinds_of_archives_are_reported(tmp_path: Path) -> None:
    message = "FILE: is a TorchScript program, not weights. If you trust it, save its state_dict()"
    assert refused(repacked(tmp_path / "script.pt", extra={"x/constants.pkl": b""})) == message
    assert refused(repacked(tmp_path / "other.zip", without="data.pkl")) == (
        f"FILE: is a zip archive, but not of torch.save. {FIX}"
    )


def header(path: Path, entries: Mapping[str, Any] | str, data: bytes = bytes(8)) -> Path:
    text = entries if isinstance(entries, str) else json.dumps(entries)
    path.write_bytes(struct.pack("<Q", len(text)) + text.encode() + data)
    return path


def entry(begin: int, end: int, shape: list[int], dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


LIES: dict[str, dict[str, Any]] = {
    "overlap": {"a": entry(0, 8, [2]), "b": entry(4, 8, [1])},
    "hole": {"a": entry(4, 8, [1])},
    "beyond": {"a": entry(0, 16, [4])},
    "rest": {"a": entry(0, 4, [1])},
    "shape": {"a": entry(0, 8, [3])},
    "negative": {"a": entry(0, 8, [-2])},
    "backwards": {"a": entry(8, 0, [2])},
    "huge": {"a": entry(0, 8, [1 << 62, 1 << 62])},
    "kind": {"a": entry(0, 8, [2], "F33")},
    "entry": {"a": 5},
}


@pytest.mark.parametrize("lie", LIES)
def test_a_wrong_header_is_rejected(lie: str, tmp_path: Path) -> None:
    message = refused(header(tmp_path / "f.safetensors", LIES[lie]))
    assert message.startswith("FILE: its header does not match its content: ")


def test_an_invalid_header_is_rejected(tmp_path: Path) -> None:
    path = tmp_path / "f.safetensors"
    one = json.dumps(entry(0, 8, [2]))
    assert refused(header(path, f'{{"a":{one},"a":{one}}}')) == (f"FILE: its header contains a twice. {FIX}")
    assert refused(header(path, '{"a": ')).startswith("FILE: its header is not JSON: ")
    assert refused(header(path, '{"a":' * 100_000)).startswith("FILE: its header is not JSON: ")
    path.write_bytes(struct.pack("<Q", 1 << 60) + b"{}")
    assert refused(path) == (f"FILE: is damaged or truncated: its header has 1152921504606846976 bytes. {FIX}")


@pytest.mark.parametrize("write", KINDS)
def test_a_truncated_file_is_rejected(write: Write, tmp_path: Path) -> None:
    write(WEIGHTS, tmp_path / "whole")
    data = (tmp_path / "whole").read_bytes()
    for length in (0, 1, 7, 9, len(data) // 3, len(data) // 2, len(data) - 1):
        (tmp_path / "cut").write_bytes(data[:length])
        assert refused(tmp_path / "cut").startswith("FILE: ")


OTHERS = {
    b"": "is empty. Use a file of weights",
    b"\x00\x01\x02junk": "is neither safetensors nor a file of torch.save. Use a file of weights",
    b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12\n": (
        "is a Git LFS pointer, not the file itself. Fetch it with `git lfs pull`"
    ),
    b"\n <!DOCTYPE html><html>": "is HTML or XML, not weights: a download failed. Download it again",
    b'{"model_type": "vit"}': "is JSON, not weights. Use its directory, or the file of weights",
}


@pytest.mark.parametrize("content", OTHERS)
def test_other_files_are_reported_by_their_kind(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "f.pth").write_bytes(content)
    assert refused(tmp_path / "f.pth") == f"FILE: {OTHERS[content]}"


def test_missing_and_empty_files_are_reported(tmp_path: Path) -> None:
    assert refused(tmp_path / "none.pth") == "FILE: cannot be read: No such file or directory. Check the path"
    (tmp_path / "folder").mkdir()
    assert refused(tmp_path / "folder") == (
        "FILE: has no weights (expected one of model.safetensors, pytorch_model.bin, "
        "model.safetensors.index.json, pytorch_model.bin.index.json). Use another directory"
    )
    torch.save([torch.ones(1)], tmp_path / "list.pth")
    assert refused(tmp_path / "list.pth") == "FILE: expected a state dict, got a list. Use a file of weights"
    torch.save({"epoch": 3}, tmp_path / "bare.pth")
    assert refused(tmp_path / "bare.pth") == "FILE: contains no tensors (found epoch). Use a file of weights"


def sharded(folder: Path, places: Mapping[str, str]) -> Path:
    folder.mkdir()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    for part in {Path(place).name for place in places.values()}:
        save_file({name: WEIGHTS[name] for name, place in places.items() if Path(place).name == part}, folder / part)
    return folder


def test_the_files_of_a_directory_are_merged(tmp_path: Path) -> None:
    folder = sharded(tmp_path / "f", {"a.weight": "1.safetensors", "a.bias": "2.safetensors"})
    assert equal(read_weight_file(folder).tensors)
    save_file(WEIGHTS, tmp_path / "model.safetensors")
    assert equal(read_weight_file(tmp_path).tensors)


@pytest.mark.parametrize("place", ["../secret.safetensors", "{}/secret.safetensors", "f/../../secret.safetensors"])
def test_a_file_outside_the_directory_is_rejected(place: str, tmp_path: Path) -> None:
    save_file(WEIGHTS, tmp_path / "secret.safetensors")
    place = place.format(tmp_path)
    folder = sharded(tmp_path / "f", dict.fromkeys(WEIGHTS, place))
    index = folder / "model.safetensors.index.json"
    with pytest.raises(UserError) as caught:
        read_weight_file(folder)
    assert str(caught.value) == f"{index}: {place!r} is outside the directory. Put all files into one directory"


def test_links_out_of_the_directory_are_rejected_except_in_the_hub_cache(tmp_path: Path) -> None:
    for name in ("plain/f", "models--a--b/snapshots/f"):
        folder = tmp_path / name
        folder.parent.mkdir(parents=True)
        sharded(folder, dict.fromkeys(WEIGHTS, "1.safetensors"))
        blob = folder.parent.parent / "blobs" / "0123"
        blob.parent.mkdir()
        (folder / "1.safetensors").rename(blob)
        (folder / "1.safetensors").symlink_to(blob)
    assert "is outside the directory" in refused(tmp_path / "plain/f")
    assert equal(read_weight_file(tmp_path / "models--a--b/snapshots/f").tensors)


def test_an_invalid_index_is_rejected(tmp_path: Path) -> None:
    folder = sharded(tmp_path / "f", dict.fromkeys(WEIGHTS, "1.safetensors"))
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"c": "1.safetensors"}}))
    assert refused(folder) == f"FILE/1.safetensors: has no tensor c, but model.safetensors.index.json lists it. {FIX}"
    for content in ("{}", '{"weight_map": [1]}', '{"weight_map": {"a": 5}}'):
        index.write_text(content)
        problem = "expected a weight_map from names to files"
        assert refused(folder) == f"FILE/model.safetensors.index.json: {problem}. {FIX}"
    for content, problem in (("[]", "expected a JSON object"), ("{", "is not JSON"), ('{"a":' * 1000, "is nested")):
        index.write_text(content)
        assert refused(folder).startswith(f"FILE/model.safetensors.index.json: {problem}")
    index.write_text(json.dumps({"weight_map": {"a": "a\0b"}}))
    assert "is outside the directory" in refused(folder)


@given(data=st.binary(max_size=200))
def test_arbitrary_bytes_give_a_user_error(data: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    whole = save(WEIGHTS)
    path = tmp_path_factory.mktemp("bytes") / "f"
    for content in (data, whole[:8] + data + whole[8 + len(data) :], b"PK\x03\x04" + data, b"\x80\x02" + data):
        path.write_bytes(content)
        try:
            read_weight_file(path)
        except UserError as error:
            assert "\n" not in str(error)  # noqa: PT017 - most, but not all, are refused


@pytest.mark.parametrize("name", [1, None, (1, 2), b"a"])
def test_names_that_are_no_text_are_refused(name: object, tmp_path: Path) -> None:
    path = tmp_path / "a.pth"
    torch.save({"b": torch.ones(2), name: torch.ones(2)}, path)
    assert refused(path) == f"FILE: names a tensor {name!r} (expected text). Use a state dict"


def test_an_index_that_lists_a_link_to_itself_is_refused(tmp_path: Path) -> None:
    (tmp_path / "loop.safetensors").symlink_to("loop.safetensors")
    (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": {"a": "loop.safetensors"}}')
    with pytest.raises(UserError, match="loop.safetensors: cannot be read: Too many levels of symbolic links"):
        read_weight_file(tmp_path)
