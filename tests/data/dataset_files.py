"""Data sets for tests: samples as files, in a tar or in a directory tree."""

import io
import re
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image

from c2fmae.core.errors import UserError

Files = dict[str, bytes]

DATASET = {
    "format": 1,
    "classes": [{"name": "sky", "is_thing": False}, {"name": "cat"}],
    "labels": [{"name": "a"}, None],
}


def encode_image(image: Image.Image, form: str = "PNG", **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, form, **options)
    return stream.getvalue()


def encode_png(pixels: np.ndarray) -> bytes:
    return encode_image(Image.fromarray(pixels))


def encode_npy(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def encode_tiff(array: np.ndarray, **options: Any) -> bytes:
    stream = io.BytesIO()
    tifffile.imwrite(stream, array, photometric="minisblack", **options)
    return stream.getvalue()


def make_id_map(*rows: list[int], dtype: type = np.uint8) -> np.ndarray:
    return np.array(rows, dtype)


def make_sample(key: str, seed: int = 0, shape: tuple[int, int] = (5, 7)) -> tuple[Files, dict[str, np.ndarray]]:
    """Return the members of a sample, and its arrays; the image is PNG data, since images are read by content."""
    rng = np.random.default_rng(seed)
    maps = {
        "rgb": rng.integers(256, size=(*shape, 3), dtype=np.uint8),
        "semantic": rng.choice(np.array([0, 1, 255], np.uint8), size=shape),
        "instance": rng.choice(np.array([0, 1, 2, 254, 255], np.uint8), size=shape),
    }
    suffixes = {"rgb": "jpg", "semantic": "semantic.png", "instance": "instance.png"}
    return {f"{key}.{suffixes[name]}": encode_png(array) for name, array in maps.items()}, maps


def make_samples(keys: str) -> Files:
    """Return different samples whose keys are the given letters."""
    files: Files = {}
    for seed, key in enumerate(keys):
        files |= make_sample(key, seed)[0]
    return files


def write_tar(path: Path, files: Mapping[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path


def write_tree(root: Path, files: Mapping[str, bytes]) -> Path:
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return root


def to_tree_files(files: Files) -> Files:
    """Return the same sample as files of a directory tree."""
    tree_files: Files = {}
    for member, data in files.items():
        key, _, suffix = member.partition(".")
        folder = "rgb" if suffix == "jpg" else suffix.partition(".")[0]
        tree_files[f"{folder}/{key}.png"] = data
    return tree_files


def write_png(path: Path, pixels: np.ndarray) -> None:
    """Write PNG data under any name: images are read by content, and PNG is lossless."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, "PNG")


def assert_user_error(action: Callable[[], object], message: str) -> None:
    with pytest.raises(UserError, match=f"^{re.escape(message)}$"):
        action()
