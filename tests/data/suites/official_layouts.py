"""Small sets in the official layouts: generated images with the paths of the archives."""

import io
import tarfile
import zlib
from collections.abc import Iterable
from pathlib import Path

from PIL import Image

from tests.data.dataset_files import encode_image, write_tar, write_tree

Files = dict[str, bytes]

ONLY_IN_A, ONLY_IN_R = "n01558993", "n01443537"
"""A class of ImageNet-A but not of -R, and one of -R but not of -A."""
IN_BOTH = ("n01531178", "n01614925")
"""Classes of both, sorted."""


def make_jpeg(name: str, size: tuple[int, int] = (40, 32)) -> bytes:
    """Return a JPEG whose colour is a hash of the name."""
    colour = tuple(zlib.crc32(name.encode()).to_bytes(4)[:3])
    return encode_image(Image.new("RGB", size, colour), "JPEG")


def class_files(top: str, wnids: Iterable[str], per_class: int = 2, name: str = "{i}.JPEG") -> Files:
    """Return images in a directory for each class."""
    paths = [f"{top}{wnid}/{name.format(i=i)}" for wnid in wnids for i in range(per_class)]
    return {path: make_jpeg(path) for path in paths}


def grid_files(
    corruptions: Iterable[str], wnids: Iterable[str], severities: Iterable[int] = range(1, 6), per_class: int = 1
) -> Files:
    """Return images of 224 pixels in the layout of ImageNet-C."""
    wnids, files = tuple(wnids), Files()
    for corruption in corruptions:
        for severity in severities:
            paths = [f"{corruption}/{severity}/{wnid}/{i}.JPEG" for wnid in wnids for i in range(per_class)]
            files |= {path: make_jpeg(path, (224, 224)) for path in paths}
    return files


def write_as_folder(root: Path, files: Files) -> Path:
    return write_tree(root, files)


def write_as_tar(path: Path, files: Files) -> Path:
    """Write a tar as `tar cf` does: directories are members too, and members are not sorted."""
    path.parent.mkdir(parents=True, exist_ok=True)
    names = sorted(files, key=lambda name: zlib.crc32(name.encode()))
    folders = {str(parent) for name in names for parent in Path(name).parents} - {"."}
    with tarfile.open(path, "w") as tar:
        for folder in sorted(folders):
            member = tarfile.TarInfo(folder)
            member.type = tarfile.DIRTYPE
            tar.addfile(member)
        for name in names:
            member = tarfile.TarInfo(f"./{name}")
            member.size = len(files[name])
            tar.addfile(member, io.BytesIO(files[name]))
    return path


def write_as_shard(path: Path, images: Iterable[tuple[str, bytes, int]]) -> Path:
    """Write a shard of samples with key, image and label."""
    members = Files()
    for key, data, label in images:
        members |= {f"{key}.jpg": data, f"{key}.cls": str(label).encode()}
    return write_tar(path, members)
