"""Bytes of a pack: id maps as PNG, images as JPEG, samples as members of a tar in WebDataset layout.

The same scene gives the same bytes: no time, user or host name is written.
"""

import io
import re
import struct
import tarfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath

import numpy as np
from jaxtyping import Integer, UInt8
from PIL import Image
from torch import Tensor

from c2fmae.core.errors import UserError
from c2fmae.core.granularity import GRANULARITIES, IGNORE
from c2fmae.core.objects import Objects
from c2fmae.data.arrays import is_npy, is_tiff
from c2fmae.data.instance_ids import swap_ignore_ids
from c2fmae.data.object_json import OBJECTS_SUFFIX, encode_objects

TAR_END = bytes(2 * tarfile.BLOCKSIZE)

_MAX_UINT16 = 65535
_MAX_PLAIN_KEY_BYTES = 60  # a key that fits a header's 100 bytes with any suffix
_PLAIN_KEY = re.compile(r"[\w-]+(?:/[\w-]+)*", re.ASCII)
_JPEG, _PNG = b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n"


def encode_ids(ids: Integer[np.ndarray, "height width"], *, level: int = 9) -> bytes:
    """Encode ids as a grey PNG of 8 bits, or of 16 if one of them is above 255.

    `level` is that of zlib, from fastest (1) to smallest (9). At 16 bits "not labelled" is 65535, so 255 and 65535 are
    swapped. Every line has filter 0, which is the fastest to decode; other filters are made for gradients and do not
    compress ids better.
    """
    low, high = int(ids.min()), int(ids.max())
    if low < 0 or high > _MAX_UINT16:
        raise UserError(
            f"id {low if low < 0 else high} does not fit into the 16 bits of a PNG. Number the objects of a map from 1"
        )
    stored = ids.astype(np.uint8) if high <= IGNORE else swap_ignore_ids(ids).astype(">u2")
    height, width = stored.shape
    lines = np.zeros((height, 1 + width * stored.itemsize), np.uint8)
    lines[:, 1:] = np.ascontiguousarray(stored).view(np.uint8)
    header = struct.pack(">IIBBBBB", width, height, 8 * stored.itemsize, 0, 0, 0, 0)
    chunks = {b"IHDR": header, b"IDAT": zlib.compress(lines.tobytes(), level), b"IEND": b""}
    return _PNG + b"".join(_png_chunk(kind, data) for kind, data in chunks.items())


def encode_image(image: UInt8[Tensor, "channels height width"]) -> bytes:
    """Encode an image of 1 or 3 channels as JPEG of quality 90 with 4:2:0 chroma subsampling.

    Quality 95 at full colour resolution is 3 dB closer to the image, but takes two thirds longer to decode.
    """
    if len(image) not in (1, 3):
        raise UserError(f"an image of {len(image)} channels cannot be stored as JPEG. Leave short_side unset")
    pixels, stream = image.permute(1, 2, 0).numpy(), io.BytesIO()
    pil_image = Image.fromarray(pixels if len(image) == 3 else pixels[..., 0])
    pil_image.save(stream, "JPEG", quality=90, subsampling="4:2:0")
    return stream.getvalue()


def image_suffix(image_bytes: bytes) -> str | None:
    """Return the suffix of an encoded image that can be packed unchanged; None if it cannot.

    >>> image_suffix(_PNG), image_suffix(b"GIF89a")
    ('png', None)
    """
    if is_npy(image_bytes):
        return "npy"
    if is_tiff(image_bytes):
        return "tif"
    return "png" if image_bytes.startswith(_PNG) else "jpg" if image_bytes.startswith(_JPEG) else None


def encode_sample(
    key: str,
    image_bytes: bytes,
    maps: Mapping[str, Integer[np.ndarray, "_ _"]],
    label: int | None,
    objects: Objects | None = None,
) -> Iterator[tuple[str, bytes]]:
    """Yield name and bytes of each member of a sample: the image, the maps in the order given, objects, the label."""
    yield image_member(key, image_bytes)
    yield from encode_annotations(key, maps, label, objects)


def image_member(key: str, image_bytes: bytes) -> tuple[str, bytes]:
    """Return name and bytes of the member with the image of a sample."""
    return f"{key}.{image_suffix(image_bytes) or 'jpg'}", image_bytes


def encode_annotations(
    key: str, maps: Mapping[str, Integer[np.ndarray, "_ _"]], label: int | None, objects: Objects | None = None
) -> Iterator[tuple[str, bytes]]:
    """Yield name and bytes of each member of a sample but the image."""
    for name, ids in maps.items():
        yield f"{key}.{GRANULARITIES.get(name).suffix}", encode_ids(ids)
    if objects is not None:
        yield f"{key}.{OBJECTS_SUFFIX}", encode_objects(objects)
    if label is not None:
        yield f"{key}.cls", str(label).encode()


def encode_tar_member(name: str, data: bytes) -> bytes:
    """Return one member of a tar: header, data, and zeros up to the next block."""
    member = tarfile.TarInfo(name)  # with time, user and group 0, and mode 0644
    member.size = len(data)
    try:
        header = member.tobuf(tarfile.USTAR_FORMAT, "utf-8", "strict")
    except ValueError as error:  # also a name that is not text: file systems allow any bytes
        raise UserError(f"sample {name!r}: a tar cannot hold this name ({error}). Rename it") from error
    return header + data + bytes(-len(data) % tarfile.BLOCKSIZE)


def keys_to_member_keys(keys: Sequence[str]) -> list[str]:
    """Return the keys under which samples are packed: `.` becomes `_`, since a suffix starts at the first dot.

    >>> keys_to_member_keys(["cats/img.001", "v1.0/b"])
    ['cats/img_001', 'v1.0/b']
    """
    key_by_member: dict[str, str] = {}
    for key in keys:
        member = key_to_member_key(key)
        if member in key_by_member:
            raise UserError(
                f"samples {key_by_member[member]!r} and {key!r} would both be packed as {member!r}. Rename one"
            )
        key_by_member[member] = key
    return list(key_by_member)


def key_to_member_key(key: str) -> str:
    """Return the key under which a sample is packed."""
    if len(key) <= _MAX_PLAIN_KEY_BYTES and _PLAIN_KEY.fullmatch(key):
        return key  # without a copy: there may be millions
    path = PurePosixPath(key)
    if not path.name or path.is_absolute() or ".." in path.parts:
        raise UserError(f"sample {key!r}: its key points outside the shard. Rename it")
    member = str(path.with_name(path.name.replace(".", "_")))
    if len(member.encode(errors="replace")) > _MAX_PLAIN_KEY_BYTES or not member.isprintable():
        encode_tar_member(f"{member}.instance.png", b"")  # raises errors now instead of after hours of packing
    return member


def _png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def make_output_dir(out: Path) -> None:
    """Create a directory to write to, unless it exists."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:
        raise UserError(f"{out}: is a file, not a directory. Choose a new or empty directory") from error
    except OSError as error:
        raise UserError(f"{out}: cannot be created: {error.strerror}. Choose another directory") from error
