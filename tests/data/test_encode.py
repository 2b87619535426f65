import io
import struct
import tarfile
import zlib

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
    encode_ids,
    encode_image,
    encode_sample,
    encode_tar_member,
    image_suffix,
    keys_to_member_keys,
)
from c2fmae.data.instance_ids import normalise_ignore_id

SHAPES = st.tuples(st.integers(1, 9), st.integers(1, 9))
BYTES = arrays(np.uint8, SHAPES)
WIDE = arrays(np.int32, SHAPES, elements=st.integers(0, 65535) | st.sampled_from([0, 254, 255, 256, 65534, 65535]))


def chunks(png: bytes) -> list[tuple[bytes, bytes]]:
    chunk_list, at = [], 8
    while at < len(png):
        (size,) = struct.unpack(">I", png[at : at + 4])
        kind, data = png[at + 4 : at + 8], png[at + 8 : at + 8 + size]
        assert struct.unpack(">I", png[at + 8 + size : at + 12 + size]) == (zlib.crc32(kind + data),)
        chunk_list.append((kind, data))
        at += 12 + size
    return chunk_list


@given(BYTES | WIDE)
def test_encoded_ids_decode_to_the_same_ids(ids: np.ndarray) -> None:
    np.testing.assert_array_equal(normalise_ignore_id(decode_ids(encode_ids(ids), "map")), ids)


@pytest.mark.filterwarnings("ignore:The image decoding:DeprecationWarning")
@given(BYTES | WIDE)
def test_other_readers_decode_the_same_ids_with_65535_for_unlabelled_at_16_bits(ids: np.ndarray) -> None:
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
def test_a_map_has_three_chunks_and_no_filtered_line(ids: np.ndarray) -> None:
    (first, header), (second, data), last = chunks(encode_ids(ids))
    assert (first, second, last) == (b"IHDR", b"IDAT", (b"IEND", b""))
    line = 1 + ids.shape[1] * header[8] // 8
    lines = zlib.decompress(data)
    assert len(lines) == line * ids.shape[0]
    assert not any(lines[::line])


@pytest.mark.parametrize("id_", [65536, 2**31 - 1, -1])
def test_an_id_that_16_bits_cannot_hold_is_refused(id_: int) -> None:
    message = f"^id {id_} does not fit into the 16 bits of a PNG. Number the objects of a map from 1$"
    with pytest.raises(UserError, match=message):
        encode_ids(np.array([[0, id_]], np.int32))


@pytest.mark.parametrize("channels", [1, 3])
def test_an_encoded_image_is_a_jpeg_close_to_it(channels: int) -> None:
    y, x = np.mgrid[:40, :60]
    pixels = np.stack([127 + 100 * np.sin(x / (8 + c)) * np.cos(y / (6 + c)) for c in range(channels)])
    image_tensor = torch.from_numpy(pixels.astype(np.uint8))
    data = encode_image(image_tensor)
    assert image_suffix(data) == "jpg"
    assert data == encode_image(image_tensor)
    with Image.open(io.BytesIO(data)) as image:
        assert image.size == (60, 40)
        assert len(image.getbands()) == channels
        error = np.array(image).reshape(40, 60, channels) - image_tensor.permute(1, 2, 0).numpy().astype(float)
        assert 10 * np.log10(255**2 / np.square(error).mean()) > 36


def test_an_image_of_four_channels_is_refused() -> None:
    with pytest.raises(UserError, match="^an image of 4 channels cannot be stored as JPEG. Leave short_side unset$"):
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
def test_a_tar_member_reads_back_without_time_or_owner(name: str, size: int) -> None:
    data = bytes(range(256)) * 3
    archive = encode_tar_member(name, data[:size]) + encode_tar_member("b", b"x") + TAR_END
    assert len(archive) % 512 == 0
    with tarfile.open(fileobj=io.BytesIO(archive), mode="r:") as tar:
        member = tar.getmembers()[0]
        header = (member.name, member.mode, member.uid, member.gid, member.uname, member.gname, member.mtime)
        assert header == (name, 0o644, 0, 0, "", "", 0)
        assert member.pax_headers == {}
        file = tar.extractfile(member)
        assert file is not None
        assert file.read() == data[:size]
        assert tar.getnames()[1:] == ["b"]


def test_a_name_that_a_tar_cannot_hold_is_refused_before_anything_is_packed() -> None:
    name = "x" * 101
    with pytest.raises(UserError, match=f"^sample '{name}': a tar cannot hold this name .name is too long.. Rename it"):
        encode_tar_member(name, b"")
    with pytest.raises(UserError, match=f"^sample '{name}.instance.png': a tar cannot hold this name"):
        keys_to_member_keys(["short", name])
    with pytest.raises(UserError, match=r"^sample '\\udcff.instance.png': a tar cannot hold this name"):
        keys_to_member_keys(["\udcff"])


def test_dots_after_the_last_slash_are_replaced() -> None:
    keys = ["plain", "v1.0/cat", "v1.0/cat.left.001", ".hidden", "ä ö"]
    assert keys_to_member_keys(keys) == ["plain", "v1.0/cat", "v1.0/cat_left_001", "_hidden", "ä ö"]


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (["a.b", "a_b"], "samples 'a.b' and 'a_b' would both be packed as 'a_b'. Rename one"),
        (["a//b", "a/b"], "samples 'a//b' and 'a/b' would both be packed as 'a/b'. Rename one"),
        (["../a"], "sample '../a': its key points outside the shard. Rename it"),
        (["a/../../b"], "sample 'a/../../b': its key points outside the shard. Rename it"),
        (["/a"], "sample '/a': its key points outside the shard. Rename it"),
        ([""], "sample '': its key points outside the shard. Rename it"),
    ],
)
def test_duplicate_keys_and_those_that_lead_out_of_a_shard_are_refused(keys: list[str], message: str) -> None:
    with pytest.raises(UserError) as caught:
        keys_to_member_keys(keys)
    assert str(caught.value) == message
