import re
import struct
import warnings
import zlib
from collections.abc import Callable
from contextlib import suppress

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from c2fmae.core.errors import UserError
from c2fmae.data.decode import MAX_PIXELS, decode_ids, decode_image
from tests.data.dataset_files import encode_image, encode_png

pytestmark = pytest.mark.numeric

byte_changes = st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), min_size=1, max_size=8)
shapes = st.tuples(st.integers(1, 12), st.integers(1, 12))


def smooth(height: int = 40, width: int = 60, channels: int = 3) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    waves = [np.sin(x / (7 + c)) * np.cos(y / (5 + c)) for c in range(channels)]
    return (127 + 120 * np.stack(waves, axis=2)).astype(np.uint8)


def as_pillow(data: bytes) -> np.ndarray:
    import io

    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image.convert("RGB"))


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png_of(width: int, height: int, bits: int, colours: int, lines: bytes, *, pieces: int = 1) -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colours, 0, 0, 0))
    packed = zlib.compress(lines)
    step = -(-len(packed) // pieces)
    data = b"".join(chunk(b"IDAT", packed[i : i + step]) for i in range(0, len(packed), step))
    return b"\x89PNG\r\n\x1a\n" + header + data + chunk(b"IEND", b"")


FILES = {
    "jpeg": encode_image(Image.fromarray(smooth()), "JPEG"),
    "png image": encode_image(Image.fromarray(smooth())),
    "map": encode_png(smooth(channels=1)[..., 0] // 16),
    "plain map": png_of(60, 40, 8, 0, (b"\0" + bytes(range(60))) * 40, pieces=2),
    "wide map": encode_png((smooth(channels=1)[..., 0]).astype(np.uint16) * 250),
}


# Images


@pytest.mark.parametrize("options", [{"quality": 90}, {"quality": 60, "subsampling": 0}, {"progressive": True}])
def test_a_jpeg_is_decoded_like_pillow(options: dict[str, object]) -> None:
    data = encode_image(Image.fromarray(smooth()), "JPEG", **options)
    image = decode_image(data, "a.jpg")
    assert image.dtype == torch.uint8
    assert np.array_equal(image.permute(1, 2, 0).numpy(), as_pillow(data))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("form", ["JPEG", "PNG"])
def test_an_image_is_rotated_by_its_exif_orientation(form: str, orientation: int) -> None:
    upright = np.zeros((16, 24, 3), np.uint8)
    upright[:8, :16] = 200
    turns: list[Callable[[np.ndarray], np.ndarray]] = [
        lambda a: a,
        lambda a: a[:, ::-1],
        lambda a: a[::-1, ::-1],
        lambda a: a[::-1],
        lambda a: a.transpose(1, 0, 2),
        lambda a: np.rot90(a),
        lambda a: a[::-1, ::-1].transpose(1, 0, 2),
        lambda a: np.rot90(a, -1),
    ]
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = Image.fromarray(np.ascontiguousarray(turns[orientation - 1](upright)))
    image = decode_image(encode_image(stored, form, exif=exif), "a.jpg").permute(1, 2, 0).numpy()
    assert image.shape == upright.shape
    assert abs(image.astype(int) - upright).max() <= 8


@pytest.mark.parametrize(
    ("mode", "form"),
    [("L", "JPEG"), ("CMYK", "JPEG"), ("L", "PNG"), ("RGBA", "PNG"), ("P", "PNG"), ("LA", "PNG"), ("CMYK", "TIFF")],
)
def test_images_of_other_colour_modes_are_converted_to_rgb(mode: str, form: str) -> None:
    grey = Image.new("RGB", (24, 16), (90, 90, 90)).convert(mode, palette=Image.Palette.ADAPTIVE)
    image = decode_image(encode_image(grey, form), "a.jpg")
    assert image.shape == (3, 16, 24)
    assert (image.int() - 90).abs().max() <= 2


def test_16_bit_grey_is_scaled_and_not_clipped() -> None:
    levels = np.array([[0, 255, 256, 32768, 65535]], np.uint16)
    assert decode_image(encode_png(levels), "a.png")[0].tolist() == [[0, 0, 1, 128, 255]]


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_an_image_has_the_channels_of_the_data_set(channels: int) -> None:
    for data in (FILES["jpeg"], FILES["png image"]):
        assert decode_image(data, "a", channels).shape == (channels, 40, 60)
    with pytest.raises(
        UserError, match=r"^a: expected 1, 3 or 4 channels, got 2\. Correct `channels` in dataset\.json$"
    ):
        decode_image(FILES["jpeg"], "a", 2)


def test_a_jpeg_with_damaged_data_is_refused() -> None:
    data = bytearray(
        encode_image(Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)), "JPEG")
    )
    data[len(data) // 2 : len(data) // 2 + 2] = b"\xa5\x5a"
    as_pillow(bytes(data))
    exif = b"\xff\xe1\x00\x22Exif\0\0MM\0\x2a\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"
    for damaged in (bytes(data), bytes(data[:2] + exif + data[2:])):
        with pytest.raises(UserError, match=r"^a\.jpg: cannot be decoded \(Corrupt JPEG data"):
            decode_image(damaged, "a.jpg")


def test_an_image_with_broken_exif_data_is_decoded() -> None:
    data = FILES["jpeg"]
    image = decode_image(data[:2] + b"\xff\xe1\x00\x10Exif\0\0junkjunk" + data[2:], "a.jpg")
    assert np.array_equal(image.permute(1, 2, 0).numpy(), as_pillow(data))


def test_formats_that_need_another_program_are_refused() -> None:
    with pytest.raises(UserError, match=r"its format is unsupported"):
        decode_image(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n", "a.jpg")


def test_a_decompression_bomb_is_refused_before_it_is_decoded() -> None:
    side = 2**15
    bombs = [
        png_of(side, side, 8, 0, bytes(1000)),
        png_of(side, side, 8, 2, bytes(1000)),
        FILES["jpeg"].replace(b"\x00\x28\x00\x3c", struct.pack(">HH", side, side)),
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for bomb in bombs:
            with pytest.raises(UserError, match=rf"32768×32768 pixels, expected at most {MAX_PIXELS}|exceeds limit of"):
                decode_image(bomb, "bomb")
        with pytest.raises(UserError, match=r"^bomb: .*32768×32768 pixels"):
            decode_ids(bombs[0], "bomb")
        for large in (png_of(2**14, 2**13 + 1, 8, 0, b""), png_of(2**14, 2**13 + 1, 8, 2, b"")):
            with pytest.raises(UserError, match=rf"16384×8193 pixels, expected at most {MAX_PIXELS}"):
                decode_image(large, "bomb")
        with pytest.raises(UserError, match=rf"16384×8193 pixels, expected at most {MAX_PIXELS}"):
            decode_ids(png_of(2**14, 2**13 + 1, 8, 0, b""), "bomb")
    small = png_of(4, 4, 8, 0, bytes(100_000_000))  # with a wrong size in its header
    with pytest.raises(UserError, match=r"its size differs from that in its header"):
        decode_ids(small, "bomb")


# Maps


@given(arrays(np.uint8, shapes))
def test_8_bit_maps_decode_to_the_stored_ids(ids: np.ndarray) -> None:
    assert np.array_equal(decode_ids(encode_png(ids), "a"), ids)
    lines = b"".join(b"\0" + row.tobytes() for row in ids)
    decoded = decode_ids(png_of(ids.shape[1], ids.shape[0], 8, 0, lines, pieces=3), "a")
    assert np.array_equal(decoded, ids)
    assert decoded.flags.writeable


@given(arrays(np.uint16, shapes))
def test_16_bit_maps_decode_to_the_stored_ids(ids: np.ndarray) -> None:
    assert np.array_equal(decode_ids(encode_png(ids), "a"), ids)
    lines = b"".join(b"\0" + row.astype(">u2").tobytes() for row in ids)
    decoded = decode_ids(png_of(ids.shape[1], ids.shape[0], 16, 0, lines), "a")
    assert decoded.dtype == np.uint16
    assert np.array_equal(decoded, ids)


def test_a_map_without_its_checksum_is_refused() -> None:
    lines = (b"\0" + bytes(range(60))) * 40
    data = png_of(60, 40, 8, 0, lines)
    packed = zlib.compress(lines)
    cut = data.replace(chunk(b"IDAT", packed), chunk(b"IDAT", packed[:-4]))
    assert len(cut) == len(data) - 4
    with pytest.raises(UserError, match="its size differs from that in its header"):
        decode_ids(cut, "a")


def test_an_interlaced_map_decodes_to_the_stored_ids() -> None:
    passes = zlib.compress(bytes([0, 11]) + bytes([0, 12]) + bytes([0, 21, 22]))  # the 1st, 6th and 7th of Adam7
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 2, 2, 8, 0, 0, 0, 1))
    data = b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", passes) + chunk(b"IEND", b"")
    assert decode_ids(data, "a").tolist() == [[11, 12], [21, 22]]


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_palette_maps_decode_to_indices(bits: int) -> None:
    indexed = Image.frombytes("P", (7, 5), bytes([0, 1, 0, 0, 1, 1, 0]) * 5)
    indexed.putpalette([200, 10, 10, 3, 120, 9])
    assert decode_ids(encode_image(indexed, bits=bits), "a")[2].tolist() == [0, 1, 0, 0, 1, 1, 0]


@pytest.mark.parametrize(
    "data",
    [
        encode_image(Image.new("L", (7, 5)), "JPEG"),
        encode_image(Image.new("RGB", (7, 5))),
        encode_image(Image.new("LA", (7, 5))),
        encode_image(Image.new("1", (7, 5))),
        png_of(7, 5, 4, 0, (b"\0" + b"\x12" * 4) * 5),
        b"",
    ],
    ids=["jpeg", "colour", "transparency", "1 bit", "4 bits", "nothing"],
)
def test_files_that_are_not_id_maps_are_refused(data: bytes) -> None:
    message = "a.png: is not an id map. Store it as a PNG of one channel with 8 or 16 bits"
    with pytest.raises(UserError, match=f"^{re.escape(message)}$"):
        decode_ids(data, "a.png")


# Fuzz


def check_survives(data: bytes) -> None:
    """Decode or raise a `UserError`, and nothing else."""
    for decode in (decode_image, decode_ids):
        with suppress(UserError):
            decode(data, "file")


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("tenth", range(10))
def test_a_truncated_file_is_refused(name: str, tenth: int) -> None:
    data = FILES[name][: len(FILES[name]) * tenth // 10]
    decode = decode_image if name in ("jpeg", "png image") else decode_ids
    with pytest.raises(UserError, match="^file: "):
        decode(data, "file")


@given(st.binary(max_size=200))
def test_random_bytes_are_refused_without_a_crash(data: bytes) -> None:
    check_survives(data)
    for start in (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", FILES["jpeg"][:300], FILES["map"][:41]):
        check_survives(start + data)


@given(st.sampled_from(sorted(FILES)), byte_changes)
def test_a_file_with_changed_bytes_never_crashes(name: str, changes: list[tuple[float, int]]) -> None:
    data = bytearray(FILES[name])
    for position, value in changes:
        data[int(position * (len(data) - 1))] = value
    check_survives(bytes(data))
