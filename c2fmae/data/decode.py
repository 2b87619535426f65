"""Decoding of images and id maps by the fastest exact decoder. Errors name the file that is broken.

JPEGs are decoded by libjpeg-turbo in strict mode: damaged data, of which other readers return half an image in grey, is
an error (except in CMYK). All other formats (CMYK, 16 bits, PNG images, …) are decoded by Pillow, or as `arrays`.
"""

import io
import struct
import warnings
import zlib
from collections.abc import Callable
from contextlib import nullcontext
from typing import TypeVar

import numpy as np
import simplejpeg
import torch
from jaxtyping import Integer, Num, UInt8
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from c2fmae.core.errors import UserError
from c2fmae.data.arrays import (
    ValueRanges,
    is_npy,
    is_tiff,
    move_channels_last,
    read_npy,
    read_tiff,
    silenced,
    values_to_bytes,
)

T = TypeVar("T")

MAX_PIXELS = 2**27
"""Maximum size of an image: a larger one takes gigabytes to decode, and may be a decompression bomb."""

_FORMATS = ("JPEG", "PNG", "BMP", "GIF", "TIFF", "WEBP")  # without those whose readers start other programs
Image.init()  # registers all formats; by default some are registered only with the first unusual file
_EXIF_ORIENTATION_TAG = 0x0112
# Rows and columns of an upright image, by the EXIF orientation of the stored one.
_EXIF_TRANSFORMS: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    2: lambda pixels: pixels[:, ::-1],
    3: lambda pixels: pixels[::-1, ::-1],
    4: lambda pixels: pixels[::-1],
    5: lambda pixels: pixels.swapaxes(0, 1),
    6: lambda pixels: pixels[::-1].swapaxes(0, 1),
    7: lambda pixels: pixels[::-1, ::-1].swapaxes(0, 1),
    8: lambda pixels: pixels[:, ::-1].swapaxes(0, 1),
}
_EXIF_TURNS = (5, 6, 7, 8)  # those that exchange height and width
_JPEG, _PNG = b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n"
_PILLOW_MODES = {1: "L", 3: "RGB", 4: "RGBA"}
_GREY, _PALETTE = 0, 3
_COLOUR_TYPES = (2, 6)
_TIFF_LOGGER = "PIL.TiffImagePlugin"
_PLAIN_MODES = {"L", "RGB", "RGBA", "I", "I;16", "I;16B", "F"}
_DEEP_COLOUR = {(16, 2), (16, 4), (16, 6)}  # bits and colour type of PNGs that Pillow reads at 8 bits
# Bits and colour type of maps that Pillow returns as stored; it would scale fewer bits of grey to 8.
_ID_LAYOUTS = {(8, _GREY), (16, _GREY), (1, _PALETTE), (2, _PALETTE), (4, _PALETTE), (8, _PALETTE)}


def decode_image(
    data: bytes, location: str, channels: int = 3, value_range: ValueRanges | None = None
) -> UInt8[Tensor, "channels height width"]:
    """Decode an image and rotate it by its EXIF orientation; `location` names the file in messages.

    `value_range` is the pair of stored values that become 0 and 255, or one for each channel.
    """
    if value_range is not None or is_npy(data) or (is_tiff(data) and not _is_plain_tiff(data, channels)):
        array = move_channels_last(read_stored_image(data, location), channels, location)
        return torch.from_numpy(values_to_bytes(array, value_range, location).transpose(2, 0, 1).copy())
    if channels not in _PILLOW_MODES:
        raise UserError(f"{location}: expected 1, 3 or 4 channels, got {channels}. Correct `channels` in dataset.json")
    if data.startswith(_JPEG) and channels != 4:
        pixels = _decode_or_raise(location, lambda: _decode_jpeg(data, channels))
    else:
        pixels = _decode_or_raise(location, lambda: _decode_with_pillow(data, channels))
    return torch.from_numpy(pixels).permute(2, 0, 1)


def read_image_size(data: bytes) -> tuple[int, int] | None:
    """Return the height and width of an upright image by its header; None if they are not known without decoding."""
    if is_npy(data) or is_tiff(data):
        return None
    try:
        with _open_image(data) as image:
            is_turned = image.getexif().get(_EXIF_ORIENTATION_TAG, 1) in _EXIF_TURNS
            return image.size if is_turned else (image.height, image.width)
    except Exception:  # reported when it is decoded
        return None


def read_stored_image(data: bytes, location: str) -> Num[np.ndarray, "*shape"]:
    """Return the values of an image in the number type of the file: [height, width], with channels first or last."""
    if is_npy(data):
        return _decode_or_raise(location, lambda: read_npy(data, MAX_PIXELS))
    return _decode_or_raise(location, lambda: _read_stored_with_pillow(data))


def loses_bits(data: bytes) -> bool:
    """Return whether an image has 16 bits, of which only the upper eight are read if there is no range of values."""
    if data.startswith(_PNG):
        return data[24:25] == b"\x10"
    try:
        return (is_npy(data) or is_tiff(data)) and read_stored_image(data, "").dtype == np.uint16
    except UserError:  # reported when it is decoded
        return False


def decode_ids(data: bytes, location: str) -> Integer[np.ndarray, "height width"]:
    """Decode a PNG of one channel or of palette indices to its stored values, of 8 or 16 bits."""
    if not data.startswith(_PNG) or len(data) < 29 or tuple(data[24:26]) not in _ID_LAYOUTS:
        raise UserError(f"{location}: is not an id map. Store it as a PNG of one channel with 8 or 16 bits")
    ids = _decode_or_raise(location, lambda: _decode_unfiltered_png(data))
    return _decode_or_raise(location, lambda: _decode_ids_with_pillow(data)) if ids is None else ids


def is_colour_png(data: bytes) -> bool:
    """Return whether a file is a PNG with red, green and blue, rather than grey or a palette."""
    return data.startswith(_PNG) and len(data) >= 29 and data[25] in _COLOUR_TYPES


def is_one_bit_png(data: bytes) -> bool:
    """Return whether data are a black and white PNG."""
    return data.startswith(_PNG) and data[24:26] == b"\x01\x00"


def decode_map_colours(data: bytes, location: str) -> UInt8[np.ndarray, "3 height width"]:
    """Decode a map whose classes are colours, or indices of a palette of these colours."""
    if not data.startswith(_PNG):
        raise UserError(f"{location}: is not a PNG. Store maps as PNG: JPEG changes the colours of their pixels")
    if data[24:26] == b"\x10\x00":
        raise UserError(
            f"{location}: has 16 bits, but `colours` are bytes. Store it as a PNG of 8 bits, or remove `colours` from"
            " dataset.json if its values are ids"
        )
    return decode_image(data, location).numpy()


def _decode_or_raise(location: str, decode: Callable[[], T]) -> T:
    try:
        return decode()
    except Exception as error:  # decoders raise half a dozen types for broken files
        raise UserError(f"{location}: cannot be decoded ({error}). Replace it, or remove the sample") from error


def _check_num_pixels(width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise ValueError(f"{width}×{height} pixels, expected at most {MAX_PIXELS}")


def _decode_jpeg(data: bytes, channels: int) -> UInt8[np.ndarray, "height width channels"]:
    height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
    _check_num_pixels(width, height)
    if colours in ("CMYK", "YCCK"):
        return _decode_with_pillow(data, channels)
    pixels: np.ndarray = simplejpeg.decode_jpeg(data, "RGB" if channels == 3 else "GRAY")
    turn = _EXIF_TRANSFORMS.get(_exif_orientation(data)) if b"Exif\0\0" in data[:65536] else None
    return pixels if turn is None else np.ascontiguousarray(turn(pixels))


def _exif_orientation(data: bytes) -> int:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return int(Image.open(io.BytesIO(data)).getexif().get(_EXIF_ORIENTATION_TAG, 1))
        except Exception:  # broken EXIF data does not make an image unusable
            return 1


def _open_image(data: bytes) -> Image.Image:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # MAX_PIXELS is checked instead
        try:
            image = Image.open(io.BytesIO(data), formats=_FORMATS)
        except UnidentifiedImageError as error:
            raise ValueError("its format is unsupported") from error
    _check_num_pixels(*image.size)
    return image


def _decode_with_pillow(data: bytes, channels: int) -> UInt8[np.ndarray, "height width channels"]:
    with silenced(_TIFF_LOGGER) if is_tiff(data) else nullcontext(), _open_image(data) as stored:
        image = ImageOps.exif_transpose(stored)
        if image.mode.startswith("I"):  # 16 bits of grey, which convert() would clip at 255
            image = Image.fromarray((np.asarray(image).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8))
        pixels = np.array(image.convert(_PILLOW_MODES[channels]))
    return pixels.reshape(*pixels.shape[:2], channels)


def _read_stored_with_pillow(data: bytes) -> Num[np.ndarray, "*shape"]:
    """Return the values of a file that Pillow reads without loss, and of any other TIFF."""
    if data.startswith(_PNG) and tuple(data[24:26]) in _DEEP_COLOUR:
        raise ValueError("PNGs of 16 bits and several channels would lose eight bits; save it as .npy or TIFF")
    try:
        with silenced(_TIFF_LOGGER), _open_image(data) as stored:
            if getattr(stored, "n_frames", 1) == 1 or not is_tiff(data):
                image = ImageOps.exif_transpose(stored)
                return np.array(image if image.mode in _PLAIN_MODES else image.convert("RGB"))
    except ValueError:  # Pillow has no mode for many TIFFs
        if not is_tiff(data):
            raise
    return read_tiff(data, MAX_PIXELS)


def _is_plain_tiff(data: bytes, channels: int) -> bool:
    """Return whether Pillow converts a TIFF like other images: one page of colours or 16 bits of grey."""
    try:
        with silenced(_TIFF_LOGGER), _open_image(data) as image:
            return channels in _PILLOW_MODES and image.mode != "F" and getattr(image, "n_frames", 1) == 1
    except Exception:  # reported when it is read
        return False


def _decode_ids_with_pillow(data: bytes) -> Integer[np.ndarray, "height width"]:
    with _open_image(data) as image:
        ids = np.array(image)
    return ids.astype(np.uint16 if data[24] == 16 else np.uint8, copy=False)


def _decode_unfiltered_png(data: bytes) -> Integer[np.ndarray, "height width"] | None:
    """Decode a PNG with unfiltered lines, as `pack` writes them, in two thirds of Pillow's time.

    Return None for any other, in most cases after the first lines.
    """
    width, height, bits, _, _, _, is_interlaced = struct.unpack(">IIBBBBB", data[16:29])
    _check_num_pixels(width, height)
    if is_interlaced or bits not in (8, 16):
        return None
    pieces, offset = [], 33
    while (kind := data[offset + 4 : offset + 8]) != b"IEND":
        (size,) = struct.unpack(">I", data[offset : offset + 4])
        if kind == b"IDAT":
            pieces.append(data[offset + 8 : offset + 8 + size])
        offset += 12 + size
    line = 1 + width * bits // 8
    inflate = zlib.decompressobj()
    first = inflate.decompress(b"".join(pieces), 8 * line)
    if first[::line].strip(b"\0"):  # each line starts with the number of its filter
        return None
    max_length = max(height - 8, 0) * line + 1  # one byte too many detects a bomb
    lines = first + inflate.decompress(inflate.unconsumed_tail, max_length)
    if len(lines) != height * line or not inflate.eof:
        raise ValueError("its size differs from that in its header")
    if lines[::line].strip(b"\0"):
        return None
    values = np.frombuffer(lines, np.uint8).reshape(height, line)[:, 1:].copy()
    return values if bits == 8 else values.view(">u2").astype(np.uint16)
