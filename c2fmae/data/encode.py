"""The bytes of a pack: id maps as PNG, photos as JPEG, samples as members of a tar in WebDataset layout.

The same scene gives the same bytes: no time, no user, no name of a machine gets in.
"""

import io
import os
import struct
import tarfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import BinaryIO

import numpy as np
from jaxtyping import Integer, UInt8
from PIL import Image
from torch import Tensor

from c2fmae.core.errors import UserError
from c2fmae.core.granularity import GRANULARITIES, IGNORE

PARTIAL_SUFFIX = ".part"
"""How names of files end that are being written."""

TAR_END = bytes(2 * tarfile.BLOCKSIZE)

_MAX_UINT16 = 65535  # of 16 bits
_MAX_PLAIN_KEY_BYTES = 60  # bytes of a key that fit a header's 100 with any suffix behind them
_JPEG, _PNG = b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n"


def encode_ids(ids: Integer[np.ndarray, "height width"]) -> bytes:
    """Encode ids as they are in memory as a grey PNG of 8 bits, or of 16 where one of them is above 255.

    At 16 bits "not labelled" is 65535, so 255 and 65535 change places. Every line has filter 0: such a map is read
    without undoing filters, and ids, which are no gradients, compress no better with one.
    """
    low, high = int(ids.min()), int(ids.max())
    if low < 0 or high > _MAX_UINT16:
        raise UserError(
            f"id {low if low < 0 else high} does not fit into the 16 bits of a PNG. Number the objects of a map from 1"
        )
    if high <= IGNORE:
        stored = ids.astype(np.uint8)
    else:
        stored = np.where(ids == IGNORE, _MAX_UINT16, np.where(ids == _MAX_UINT16, IGNORE, ids)).astype(">u2")
    height, width = stored.shape
    lines = np.zeros((height, 1 + width * stored.itemsize), np.uint8)
    lines[:, 1:] = np.ascontiguousarray(stored).view(np.uint8)
    header = struct.pack(">IIBBBBB", width, height, 8 * stored.itemsize, 0, 0, 0, 0)
    chunks = {b"IHDR": header, b"IDAT": zlib.compress(lines.tobytes(), 9), b"IEND": b""}
    return _PNG + b"".join(_png_chunk(kind, data) for kind, data in chunks.items())


def encode_image(image: UInt8[Tensor, "channels height width"]) -> bytes:
    """Encode a photo of 1 or 3 channels as JPEG of quality 90, its colours at half the resolution as in most photos.

    Quality 95 at full colour resolution is 3 dB closer and takes two thirds longer to decode, in every epoch.
    """
    if len(image) not in (1, 3):
        raise UserError(f"a photo of {len(image)} channels cannot be stored as JPEG. Leave its size as it is")
    pixels, stream = image.permute(1, 2, 0).numpy(), io.BytesIO()
    pil_image = Image.fromarray(pixels if len(image) == 3 else pixels[..., 0])
    pil_image.save(stream, "JPEG", quality=90, subsampling="4:2:0")
    return stream.getvalue()


def is_packable_image(image_bytes: bytes) -> bool:
    """Whether an encoded photo can go into a pack as it is: it is JPEG or PNG."""
    return image_bytes.startswith((_JPEG, _PNG))


def encode_sample(
    key: str, image_bytes: bytes, maps: Mapping[str, Integer[np.ndarray, "_ _"]], label: int | None
) -> Iterator[tuple[str, bytes]]:
    """Name and encode the members of a sample: the photo, the maps in the order given, the label."""
    yield f"{key}.{'png' if image_bytes.startswith(_PNG) else 'jpg'}", image_bytes
    for name, ids in maps.items():
        yield f"{key}.{GRANULARITIES.get(name).suffix}", encode_ids(ids)
    if label is not None:
        yield f"{key}.cls", str(label).encode()


def encode_tar_member(name: str, data: bytes) -> bytes:
    """Return one member of a tar: header, data, and zeros up to the next block."""
    member = tarfile.TarInfo(name)  # time, user and group are 0 in it, the mode is 0644
    member.size = len(data)
    try:
        header = member.tobuf(tarfile.USTAR_FORMAT, "utf-8", "strict")
    except ValueError as error:  # also what is no text at all, which a file system may well hold
        raise UserError(f"sample {name!r}: a tar cannot hold this name ({error}). Rename it") from error
    return header + data + bytes(-len(data) % tarfile.BLOCKSIZE)


def keys_to_member_keys(keys: Sequence[str]) -> list[str]:
    """Return the keys under which samples are packed: what follows a dot would be taken for a suffix, so `.` is `_`.

    >>> keys_to_member_keys(["cats/img.001", "v1.0/b"])
    ['cats/img_001', 'v1.0/b']
    """
    found: dict[str, str] = {}
    for key in keys:
        new = _key_to_member_key(key)
        if new in found:
            raise UserError(f"samples {found[new]!r} and {key!r} would both be packed as {new!r}. Rename one")
        found[new] = key
    return list(found)


def _key_to_member_key(key: str) -> str:
    path = PurePosixPath(key)
    if not path.name or path.is_absolute() or ".." in path.parts:
        raise UserError(f"sample {key!r}: points out of a shard. Rename it")
    new = str(path.with_name(path.name.replace(".", "_")))
    if len(new.encode(errors="replace")) > _MAX_PLAIN_KEY_BYTES or not new.isprintable():
        encode_tar_member(f"{new}.instance.png", b"")  # said before hours of work, not after
    return new


@contextmanager
def atomic_writer(path: Path) -> Iterator[BinaryIO]:
    """Write a file that is there whole or not at all, even after a power cut; it is named only once it is on the disk.

    The process is part of the temporary name: a straggler of a killed run then cannot rename what is half written.
    """
    unfinished = path.with_name(f".{path.name}.{os.getpid()}{PARTIAL_SUFFIX}")
    try:
        with unfinished.open("wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        unfinished.replace(path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        raise UserError(
            f"{path}: cannot be written: {error.strerror or error}. Mend that and run this again; what is finished"
            " stays"
        ) from error
    finally:
        with suppress(OSError):
            unfinished.unlink()


def _png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def make_output_dir(out: Path) -> None:
    """Make a folder to write to, unless it is there."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:
        raise UserError(f"{out}: a file, not a folder. Give a folder that is new or empty") from error
    except OSError as error:
        raise UserError(f"{out}: cannot be used: {error.strerror}. Give another folder") from error
