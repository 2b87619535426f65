"""Images of any number of channels and any number type."""

import io
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from c2fmae.core.errors import UserError
from c2fmae.data import open_scenes
from c2fmae.data.decode import MAX_PIXELS, decode_image
from tests.data.dataset_files import assert_user_error, encode_image, encode_npy, encode_png, encode_tiff

RNG = np.random.default_rng(0)
MEASURE = "Set channels and value_range in dataset.json, or let `c2fmae data measure FOLDER` write them"


@pytest.mark.parametrize("channels", [1, 2, 5, 12])
def test_arrays_have_their_channels_first_or_last(channels: int) -> None:
    image = RNG.integers(256, size=(channels, 20, 30), dtype=np.uint8)
    for array in (image, image.transpose(1, 2, 0), np.asfortranarray(image)):
        assert torch.equal(decode_image(encode_npy(array), "a.npy", channels), torch.from_numpy(image))
    if channels == 1:
        assert torch.equal(decode_image(encode_npy(image[0]), "a.npy", 1), torch.from_numpy(image))


@pytest.mark.parametrize("layout", ["contig", "separate", "pages"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int16, np.float32])
def test_tiffs_of_many_bands_are_read(layout: str, dtype: type) -> None:
    image: np.ndarray = RNG.integers(100, size=(5, 20, 30)).astype(dtype)
    if layout == "pages":
        data = encode_tiff(image)
    else:
        data = encode_tiff(image.transpose(1, 2, 0) if layout == "contig" else image, planarconfig=layout)
    decoded = decode_image(data, "a.tif", 5, [(0, 255)])
    assert torch.equal(decoded, torch.from_numpy(image.astype(np.uint8)))


def test_a_value_range_maps_its_ends_to_0_and_255_and_clips_others() -> None:
    values = np.array([[-2000, -1000, 0, 1000, 3000]], np.int16)
    assert decode_image(encode_npy(values), "a", 1, [(-1000, 1000)]).flatten().tolist() == [0, 0, 128, 255, 255]
    infrared = np.array([[0, 800, 801, 1055, 4095]], np.uint16)  # 12 bits, of which 8 bits would leave 16 values
    for data in (encode_png(infrared), encode_npy(infrared), encode_image(Image.fromarray(infrared), "TIFF")):
        assert decode_image(data, "a", 1, [(800, 1055)]).flatten().tolist() == [0, 0, 1, 255, 255]
        assert decode_image(data, "a", 1).flatten().tolist() == [0, 3, 3, 4, 15]
    broken = np.array([[np.nan, -np.inf, np.inf, 0.5]], np.float32)
    assert decode_image(encode_npy(broken), "a", 1, [(0, 1)]).flatten().tolist() == [0, 0, 255, 128]


def test_each_channel_may_have_its_own_range() -> None:
    values = np.array([[[10.0, 10.0]]], np.float64)
    assert decode_image(encode_npy(values), "a", 2, [(0, 10), (10, 20)]).flatten().tolist() == [255, 0]


def test_a_grey_array_has_three_equal_channels_if_three_are_expected() -> None:
    grey = RNG.integers(256, size=(20, 30), dtype=np.uint8)
    expected = torch.from_numpy(grey).expand(3, -1, -1)
    assert torch.equal(decode_image(encode_npy(grey), "a.npy"), expected)
    assert torch.equal(decode_image(encode_image(Image.fromarray(grey), "TIFF"), "a.tif"), expected)


def test_a_tiff_of_other_colours_is_converted_like_other_images() -> None:
    image = Image.new("RGBA", (24, 16), (90, 90, 90, 255))
    assert decode_image(encode_image(image, "TIFF"), "a.tif").unique().tolist() == [90]


@pytest.mark.parametrize(
    ("array", "channels", "message"),
    [
        (np.zeros((20, 30, 4), np.uint8), 5, f"expected 5 channels, got an image of shape (20, 30, 4). {MEASURE}"),
        (np.zeros((20, 30), np.float32), 1, f"its values of type float32 need a range. {MEASURE}"),
        (
            np.zeros((2, 3, 4, 5), np.uint8),
            3,
            "cannot be decoded (expected an image [height, width] with channels first or last, got shape (2, 3, 4, 5))."
            " Replace it, or remove the sample",
        ),
        (
            np.zeros((20, 30), bool),
            1,
            "cannot be decoded (expected integers or floats, got bool). Replace it, or remove the sample",
        ),
    ],
)
def test_other_arrays_are_refused(array: np.ndarray, channels: int, message: str) -> None:
    assert_user_error(lambda: decode_image(encode_npy(array), "a.npy", channels), f"a.npy: {message}")


def test_objects_are_never_unpickled() -> None:
    with pytest.raises(UserError, match=r"^a\.npy: cannot be decoded \(expected integers or floats, got object\)"):
        decode_image(encode_npy(np.array([[{}]], object)), "a.npy", 1)


def test_a_png_of_16_bits_and_three_channels_has_no_value_range() -> None:
    """Pillow would read it with 8 bits, so that a range of 16 bits would map it to black."""
    import struct
    import zlib

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    lines = zlib.compress((b"\0" + bytes(4 * 6)) * 2)
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 4, 2, 16, 2, 0, 0, 0))
    png = b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", lines) + chunk(b"IEND", b"")
    assert decode_image(png, "a.png").shape == (3, 2, 4)
    with pytest.raises(UserError, match=r"^a\.png: cannot be decoded \(PNGs of 16 bits and several channels"):
        decode_image(png, "a.png", 3, [(0, 4095)])


def test_an_array_that_claims_to_be_huge_is_refused_before_it_is_read() -> None:
    small = encode_npy(np.zeros((16, 16), np.uint8))
    huge = small.replace(b"(16, 16)", b"(99999, 99999)"[:8].ljust(8))
    for data in (small[:-1], huge, small.replace(b"(16, 16)", b"(-6, 16)"), small.replace(b"|u1", b"<f8")):
        with pytest.raises(UserError, match=r"^a\.npy: cannot be decoded"):
            decode_image(data, "a.npy", 1)
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"shape": (2**20, 2**20), "fortran_order": False, "descr": "|u1"})
    with pytest.raises(UserError, match=rf"has more than {MAX_PIXELS} values"):
        decode_image(stream.getvalue(), "a.npy", 1)


@given(data=st.data())
def test_damaged_arrays_are_errors_that_name_the_file(data: st.DataObject) -> None:
    image = np.arange(60, dtype=np.uint16).reshape(5, 12)
    damaged = bytearray(data.draw(st.sampled_from([encode_npy(image), encode_tiff(np.stack([image] * 5))])))
    for place, byte in data.draw(st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), min_size=1, max_size=8)):
        damaged[int(place * (len(damaged) - 1))] = byte
    cut = damaged[: data.draw(st.integers(8, len(damaged)))]
    for variant in (damaged, cut):
        message = "a.npy: "
        try:
            decode_image(bytes(variant), "a.npy", 5, [(0, 60)])
        except UserError as error:
            message = str(error)
        assert message.startswith("a.npy: ")


def test_arrays_are_found_in_folders(tmp_path: Path) -> None:
    (tmp_path / "dataset.json").write_text('{"channels": 4, "value_range": [0, 1000]}')
    np.save(tmp_path / "b.npy", np.full((4, 6, 8), 500, np.int16))
    tifffile.imwrite(tmp_path / "a.tif", np.full((6, 8, 4), 1000, np.int16), photometric="minisblack")
    scenes = open_scenes(tmp_path)
    assert list(scenes.keys) == ["a", "b"]
    assert [scenes[index].maps["rgb"].unique().tolist() for index in range(2)] == [[255], [128]]
