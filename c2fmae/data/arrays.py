"""Images of any number of channels and any number type: `.npy` files and TIFFs. Nothing is unpickled.

Pixels are bytes in memory. A *value range* (low, high) defines them: low becomes 0, high 255, values between them are
rounded, others clipped. Without one, bytes are as stored, and 16-bit values lose their lower eight bits.
"""

import io
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
from jaxtyping import Num, UInt8

from c2fmae.core.errors import UserError

ARRAY_SUFFIXES = ("npy", "tif", "tiff")
"""Suffixes of images that may have any number of channels."""

ValueRanges = Sequence[tuple[float, float]]
"""The lowest and the highest value: one pair, or one for each channel."""

_NPY = b"\x93NUMPY"
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_MAX_HEADER_BYTES = 10_000
_FIX = "Set channels and value_range in dataset.json, or let `c2fmae data measure FOLDER` write them"


def is_npy(data: bytes) -> bool:
    """Return whether data is a `.npy` file."""
    return data.startswith(_NPY)


def is_tiff(data: bytes) -> bool:
    """Return whether data is a TIFF."""
    return data.startswith(_TIFF)


def read_npy(data: bytes, max_values: int) -> Num[np.ndarray, "*shape"]:
    """Return the array of a `.npy` file. Raise a `ValueError` for one that is no image of numbers."""
    stream = io.BytesIO(data)
    version = np.lib.format.read_magic(stream)
    read_header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    if version not in read_header:
        raise ValueError(f"its .npy version {version} is unsupported")
    shape, is_column_major, dtype = read_header[version](stream, max_header_size=_MAX_HEADER_BYTES)
    _check_shape(shape, dtype, max_values)
    values = np.frombuffer(data, dtype, offset=stream.tell())
    if values.size != np.prod(shape, dtype=object):
        raise ValueError(f"it has {values.size} values, but its header has shape {shape}")
    return values.reshape(shape, order="F" if is_column_major else "C")


def read_tiff(data: bytes, max_values: int) -> Num[np.ndarray, "*shape"]:
    """Return the first series of a TIFF: one image of any channels, or pages of one size as channels."""
    try:
        import tifffile
    except ImportError as error:
        raise ValueError("a TIFF of this kind needs tifffile: pip install 'c2fmae[tiff]'") from error
    with silenced("tifffile"), tifffile.TiffFile(io.BytesIO(data)) as file:
        series = file.series[0]
        _check_shape(series.shape, series.dtype, max_values)
        array: np.ndarray = series.asarray()
    _check_shape(array.shape, array.dtype, max_values)  # in a damaged file it may differ from that of the series
    return array


@contextmanager
def silenced(logger: str) -> Iterator[None]:
    """Suppress the messages of another library's logger: what matters is raised too."""
    log = logging.getLogger(logger)
    level = log.level
    log.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        log.setLevel(level)


def _check_shape(shape: tuple[int, ...], dtype: np.dtype | None, max_values: int) -> None:
    if dtype is None or dtype.kind not in "uif":
        raise ValueError(f"expected integers or floats, got {dtype}")
    if len(shape) not in (2, 3) or min(shape) < 1:
        raise ValueError(f"expected an image [height, width] with channels first or last, got shape {shape}")
    if np.prod(shape, dtype=object) > max_values:
        raise ValueError(f"shape {shape} has more than {max_values} values")


def count_channels(shape: Sequence[int]) -> int:
    """Return the probable number of channels of an image: the shorter of the first and the last axis.

    >>> count_channels((480, 640)), count_channels((12, 480, 640)), count_channels((480, 640, 4))
    (1, 12, 4)
    """
    return 1 if len(shape) == 2 else min(shape[0], shape[2])


def move_channels_last(
    array: Num[np.ndarray, "*shape"], channels: int, location: str
) -> Num[np.ndarray, "height width channels"]:
    """Return an image with its channels last; one of a single channel is repeated if 3 are expected, as grey files are.

    Raise a `UserError` if neither the first nor the last axis has `channels` entries.
    """
    if array.ndim == 2:
        array = array[:, :, None]
    if array.shape[2] == channels:
        return array
    if array.shape[0] == channels:
        return array.transpose(1, 2, 0)
    if channels == 3 and 1 in (array.shape[0], array.shape[2]):
        return move_channels_last(array, 1, location).repeat(3, axis=2)
    raise UserError(f"{location}: expected {channels} channels, got an image of shape {array.shape}. {_FIX}")


def values_to_bytes(
    values: Num[np.ndarray, "height width channels"], value_range: ValueRanges | None, location: str
) -> UInt8[np.ndarray, "height width channels"]:
    """Return values as bytes, by their range; values that are not numbers are the lowest."""
    if value_range is None:
        if values.dtype == np.uint8:
            return values
        if values.dtype.kind == "u" and values.itemsize == 2:
            return (values >> 8).astype(np.uint8)
        raise UserError(f"{location}: its values of type {values.dtype} need a range. {_FIX}")
    low, high = np.array(value_range).T  # in double precision: a range may be narrow and far from 0
    scaled: np.ndarray = (values - low) * (255 / (high - low))
    if values.dtype.kind == "f":
        np.nan_to_num(scaled, copy=False, nan=0, posinf=255, neginf=0)
    np.rint(scaled, out=scaled)
    return scaled.clip(0, 255, out=scaled).astype(np.uint8)
