import io
import struct
import tarfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image
from torchvision.io import ImageReadMode, decode_png

from c2fmae.core.errors import UserError
from c2fmae.data.decode import decode_ids
from c2fmae.data.encode import (
    TAR_END,
    atomic_writer,
    encode_ids,
    encode_image,
    encode_sample,
    encode_tar_member,
    is_packable_image,
    keys_to_member_keys,
)
from c2fmae.data.stored import normalise_ignore_id

SHAPES = st.tuples(st.integers(1, 9), st.integers(1, 9))
BYTES = arrays(np.uint8, SHAPES)
WIDE = arrays(np.int32, SHAPES, elements=st.integers(0, 65535) | st.sampled_from([0, 254, 255, 256, 65534, 65535]))


def chunks(png: bytes) -> list[tuple[bytes, bytes]]:
    found, at = [], 8
    while at < len(png):
        (size,) = struct.unpack(">I", png[at : at + 4])
        kind, data = png[at + 4 : at + 8], png[at + 8 : at + 8 + size]
        assert struct.unpack(">I", png[at + 8 + size : at + 12 + size]) == (zlib.crc32(kind + data),)
        found.append((kind, data))
        at += 12 + size
    return found


@given(BYTES | WIDE)
def test_ids_come_back_from_a_png_as_they_were_in_memory(ids: np.ndarray) -> None:
    np.testing.assert_array_equal(normalise_ignore_id(decode_ids(encode_ids(ids), "map")), ids)


@pytest.mark.filterwarnings("ignore:The image decoding:DeprecationWarning")
@given(BYTES | WIDE)
def test_other_readers_see_the_same_ids_with_65535_for_not_labelled_at_16_bits(ids: np.ndarray) -> None:
    png = encode_ids(ids)
    is_wide = bool(ids.max() > 255)
    stored = ids.astype(np.int64)
    if is_wide:
        stored[ids == 255], stored[ids == 65535] = 65535, 255
    with Image.open(io.BytesIO(png)) as image:
        assert image.mode == ("I;16" if is_wide else "L")
        np.testing.assert_array_equal(np.array(image), stored)
    tensor = decode_png(torch.frombuffer(bytearray(png), dtype=torch.uint8), ImageReadMode.UNCHANGED)
    assert tensor.dtype == (torch.uint16 if is_wide else torch.uint8)
    np.testing.assert_array_equal(tensor[0].numpy(), stored)


@given(BYTES | WIDE)
def test_a_map_is_three_chunks_and_none_of_its_lines_is_filtered(ids: np.ndarray) -> None:
    (first, header), (second, data), last = chunks(encode_ids(ids))
    assert (first, second, last) == (b"IHDR", b"IDAT", (b"IEND", b""))
    line = 1 + ids.shape[1] * header[8] // 8
    lines = zlib.decompress(data)
    assert len(lines) == line * ids.shape[0]
    assert not any(lines[::line])


@pytest.mark.parametrize("odd", [65536, 2**31 - 1, -1])
def test_an_id_that_16_bits_cannot_hold_is_refused(odd: int) -> None:
    message = f"^id {odd} does not fit into the 16 bits of a PNG. Number the objects of a map from 1$"
    with pytest.raises(UserError, match=message):
        encode_ids(np.array([[0, odd]], np.int32))


@pytest.mark.parametrize("channels", [1, 3])
def test_a_photo_is_a_jpeg_that_is_hard_to_tell_from_it(channels: int) -> None:
    y, x = np.mgrid[:40, :60]
    pixels = np.stack([127 + 100 * np.sin(x / (8 + c)) * np.cos(y / (6 + c)) for c in range(channels)])
    photo = torch.from_numpy(pixels.astype(np.uint8))
    data = encode_image(photo)
    assert is_packable_image(data)
    assert data == encode_image(photo)
    with Image.open(io.BytesIO(data)) as image:
        assert image.size == (60, 40)
        assert len(image.getbands()) == channels
        error = np.array(image).reshape(40, 60, channels) - photo.permute(1, 2, 0).numpy().astype(float)
        assert 10 * np.log10(255**2 / np.square(error).mean()) > 36


def test_a_photo_of_four_channels_is_no_jpeg() -> None:
    with pytest.raises(UserError, match="^a photo of 4 channels cannot be stored as JPEG. Leave its size as it is$"):
        encode_image(torch.zeros(4, 2, 2, dtype=torch.uint8))


def test_members_of_a_sample_are_named_in_a_fixed_order() -> None:
    ids = np.zeros((2, 2), np.uint8)
    jpeg, png = b"\xff\xd8\xff...", encode_ids(ids)
    members = dict(encode_sample("a/b", jpeg, {"semantic": ids, "instance": ids}, 7))
    assert list(members) == ["a/b.jpg", "a/b.semantic.png", "a/b.instance.png", "a/b.cls"]
    assert (members["a/b.jpg"], members["a/b.cls"]) == (jpeg, b"7")
    assert dict(encode_sample("k", png, {}, None)) == {"k.png": png}


@pytest.mark.parametrize("name", ["a.jpg", "ä/β.semantic.png", f"{'folder/' * 20}a.cls", "x" * 100])
@pytest.mark.parametrize("size", [0, 1, 511, 512, 513])
def test_a_member_reads_back_and_tells_nothing_of_who_wrote_it(name: str, size: int) -> None:
    data = bytes(range(256)) * 3
    archive = encode_tar_member(name, data[:size]) + encode_tar_member("b", b"x") + TAR_END
    assert len(archive) % 512 == 0
    with tarfile.open(fileobj=io.BytesIO(archive), mode="r:") as tar:
        member = tar.getmembers()[0]
        told = (member.name, member.mode, member.uid, member.gid, member.uname, member.gname, member.mtime)
        assert told == (name, 0o644, 0, 0, "", "", 0)
        assert member.pax_headers == {}
        stream = tar.extractfile(member)
        assert stream is not None
        assert stream.read() == data[:size]
        assert tar.getnames()[1:] == ["b"]


def test_a_name_that_a_tar_cannot_hold_is_refused_before_anything_is_packed() -> None:
    name = "x" * 101
    with pytest.raises(UserError, match=f"^sample '{name}': a tar cannot hold this name .name is too long.. Rename it"):
        encode_tar_member(name, b"")
    with pytest.raises(UserError, match=f"^sample '{name}.instance.png': a tar cannot hold this name"):
        keys_to_member_keys(["short", name])
    with pytest.raises(UserError, match=r"^sample '\\udcff.instance.png': a tar cannot hold this name"):
        keys_to_member_keys(["\udcff"])


def test_dots_behind_the_last_slash_are_replaced_since_a_suffix_would_begin_there() -> None:
    keys = ["plain", "v1.0/cat", "v1.0/cat.left.001", ".hidden", "ä ö"]
    assert keys_to_member_keys(keys) == ["plain", "v1.0/cat", "v1.0/cat_left_001", "_hidden", "ä ö"]


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (["a.b", "a_b"], "samples 'a.b' and 'a_b' would both be packed as 'a_b'. Rename one"),
        (["a//b", "a/b"], "samples 'a//b' and 'a/b' would both be packed as 'a/b'. Rename one"),
        (["../a"], "sample '../a': points out of a shard. Rename it"),
        (["a/../../b"], "sample 'a/../../b': points out of a shard. Rename it"),
        (["/a"], "sample '/a': points out of a shard. Rename it"),
        ([""], "sample '': points out of a shard. Rename it"),
    ],
)
def test_keys_that_would_be_lost_or_lead_astray_are_refused(keys: list[str], message: str) -> None:
    with pytest.raises(UserError) as caught:
        keys_to_member_keys(keys)
    assert str(caught.value) == message


def test_a_file_that_cannot_be_finished_leaves_the_old_one_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"old")
    with pytest.raises(TypeError), atomic_writer(path) as stream:
        stream.writelines([b"half of the ne", None])  # type: ignore[list-item]
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]
    with atomic_writer(path) as stream:
        stream.write(b"new")
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_is_named_with_the_file(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught, atomic_writer(tmp_path / "a"):
        raise OSError(28, "No space left on device")
    assert str(caught.value) == (
        f"{tmp_path / 'a'}: cannot be written: No space left on device. Mend that and run this again; what is finished"
        " stays"
    )
    assert not list(tmp_path.iterdir())
