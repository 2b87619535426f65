"""Scenes from disk: a folder tree, or tar shards in WebDataset layout.

    ROOT/{rgb,semantic,instance}/[class/]key.{jpg,jpeg,png}
    SHARD.tar: key.jpg, key.semantic.png, key.instance.png and, where there are labels, key.cls

`dataset.json`, in the root or beside the shard, names the classes. Maps are PNGs of one channel whose values are
ids; what nobody labelled is 255 in them, 65535 at 16 bits, or the `ignore` of `dataset.json`.
"""

import io
import json
import tarfile
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path, PurePosixPath
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image, ImageOps
from torch import Tensor

from c2fmae.core.errors import UserError
from c2fmae.core.scene import COARSE_TO_FINE, GRANULARITIES, IGNORE, Scene
from c2fmae.data.generated import GeneratedScenes

_PICTURES = (".jpg", ".jpeg", ".png")
_PARTS = {GRANULARITIES.get(name).suffix: name for name in COARSE_TO_FINE} | {"cls": "cls"}
_BLOCK = 512  # bytes: a tar is made of blocks, and ends with one of zeros
_PNG = b"\x89PNG\r\n\x1a\n"
# Bits and colour type (0 grey, 3 palette) of maps that Pillow hands over as stored: fewer bits of grey it stretches.
_ID_LAYOUTS = {(8, 0), (16, 0), (1, 3), (2, 3), (4, 3), (8, 3)}


@runtime_checkable
class Scenes(Protocol):
    """Scenes by index, and what their ids mean."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Names by semantic id; empty where the data does not tell."""

    @property
    def labels(self) -> tuple[str, ...]:
        """Names by `Scene.label`; empty where the data does not tell."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Scene: ...


def open_scenes(source: str | Path, *, size: int, seed: int = 0) -> Scenes:
    """Open "generated" scenes, a folder tree, a shard, or a folder of shards, one after the other by name.

    `size` and `seed` are for generated scenes alone: stored ones come in the size that they have.
    """
    path = Path(source)
    if source == "generated":
        return GeneratedScenes(size=size, seed=seed)
    if path.is_dir():
        shards = sorted(path.glob("*.tar"))
        return ChainedScenes([ShardScenes(shard) for shard in shards]) if shards else FolderScenes(path)
    if path.suffix == ".tar":
        return ShardScenes(path)
    problem = "is not a tar shard" if path.exists() else "does not exist"
    raise UserError(f"{source}: {problem}. Give a folder, a .tar shard or the word 'generated'")


@dataclass(frozen=True)
class _File:
    """A file, or a stretch of a shard."""

    name: str
    """As it is called in messages."""
    path: Path
    offset: int = 0
    size: int = -1
    """Bytes; -1 is up to the end."""

    def read(self) -> bytes:
        """Return its bytes; it is opened each time, so that worker processes share no position."""
        try:
            with self.path.open("rb") as stream:
                stream.seek(self.offset)
                return stream.read(self.size)
        except OSError as error:
            raise UserError(
                f"{self.name}: cannot be read: {error.strerror}. Restore it, or remove the sample"
            ) from error


@dataclass(frozen=True)
class _Info:
    """What `dataset.json` tells."""

    classes: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    ignore: int | None = None
    """The semantic id of what nobody labelled, where it is not the highest of its bits."""

    @staticmethod
    def of(folder: Path) -> "_Info":
        path = folder / "dataset.json"
        if not path.exists():
            return _Info()
        try:
            told: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            # A label that the data leaves out is null.
            names = [tuple(e["name"] if e else "" for e in told.get(key, ())) for key in ("classes", "labels")]
            ignore = int(told["ignore"]) if "ignore" in told else None
            stride = int(told.get("label_stride", 1))
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(
                f"{path}: cannot be understood. Expected an object whose `classes` is a list of"
                ' {"name": …} and whose `ignore` is an id'
            ) from error
        if stride != 1:
            raise UserError(f"{path}: maps at label_stride {stride} cannot be read yet. Store them at full size")
        return _Info(names[0], names[1], ignore)


@dataclass(frozen=True)
class _Sample:
    key: str
    files: Mapping[str, _File]
    """By granularity."""
    label: int | None


class _StoredScenes:
    """Scenes on disk, decoded when they are asked for."""

    def __init__(self, samples: Sequence[_Sample], info: _Info, labels: tuple[str, ...]) -> None:
        self.classes, self.labels = info.classes, labels
        self._samples, self._info = samples, info

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, index: int) -> Scene:
        if index not in range(len(self)):
            raise IndexError(f"scene {index} of {len(self)}")
        sample = self._samples[index]
        maps = {
            "semantic": _ids(sample.files["semantic"], self._info.ignore, len(self.classes)),
            "instance": _ids(sample.files["instance"]),
            "rgb": _photo(sample.files["rgb"]),
        }
        for name, ids in maps.items():
            (height, width), (rows, columns) = maps["rgb"].shape[-2:], ids.shape[-2:]
            if (rows, columns) != (height, width):
                sizes = f"{columns}×{rows} pixels, but the photo has {width}×{height}"
                raise UserError(f"{sample.files[name].name}: {sizes}. Store both in one size")
        return Scene(sample.key, maps, sample.label)


class FolderScenes(_StoredScenes):
    """A folder tree; the label of a photo in a class folder is that folder's place among them, by name."""

    def __init__(self, root: str | Path) -> None:
        root = Path(root)
        if not root.is_dir():
            raise UserError(f"{root}: this folder does not exist. Check the path")
        files: dict[str, dict[str, _File]] = {}
        for name in COARSE_TO_FINE:
            for key, path in _pictures(root / name):
                if name in files.setdefault(key, {}):
                    raise UserError(f"{path}: sample {key!r} has another picture, {files[key][name].name}. Remove one")
                files[key][name] = _File(str(path), path)
        if not files:
            raise UserError(f"{root}: no scenes. Expected shards (*.tar), or pictures in rgb, semantic and instance")
        _check_parts(root, files, "{name}/{key}.{extension}")
        folders = {key: str(PurePosixPath(key).parent) for key in files}
        labels = tuple(sorted(set(folders.values()) - {"."}))
        label_of = {folder: label for label, folder in enumerate(labels)}
        samples = [_Sample(key, files[key], label_of.get(folders[key])) for key in sorted(files)]
        super().__init__(samples, _Info.of(root), labels)


class ShardScenes(_StoredScenes):
    """One tar shard, in its own order; samples are read where they lie, so any of them is one read away."""

    def __init__(self, path: str | Path) -> None:
        path = Path(path)
        files: dict[str, dict[str, _File]] = {}
        for name, file in _members(path).items():
            stem, _, suffix = name.name.partition(".")
            if stem and suffix in _PARTS:
                files.setdefault(str(name.with_name(stem)), {})[_PARTS[suffix]] = file
        if not files:
            raise UserError(f"{path}: no scenes. Expected KEY.jpg, KEY.semantic.png and KEY.instance.png")
        _check_parts(path, files, "{key}.{suffix}")
        info = _Info.of(path.parent)
        samples = [_Sample(key, parts, _label(parts.get("cls"))) for key, parts in files.items()]
        super().__init__(samples, info, info.labels)


class ChainedScenes:
    """Scenes of one data set stored in several places, one after the other."""

    def __init__(self, parts: Sequence[Scenes]) -> None:
        self.classes, self.labels = parts[0].classes, parts[0].labels
        self._parts, self._ends = parts, list(accumulate(len(part) for part in parts))

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: int) -> Scene:
        if index not in range(len(self)):
            raise IndexError(f"scene {index} of {len(self)}")
        part = bisect_right(self._ends, index)
        return self._parts[part][index - self._ends[part] + len(self._parts[part])]


def _pictures(folder: Path) -> Iterator[tuple[str, Path]]:
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in _PICTURES and not path.name.startswith("."):
            yield path.relative_to(folder).with_suffix("").as_posix(), path


def _members(path: Path) -> dict[PurePosixPath, _File]:
    """Return the plain files of a tar, once it is sure that the tar is whole and its names are harmless."""
    try:
        stream = path.open("rb")
    except OSError as error:
        raise UserError(f"{path}: this shard cannot be opened: {error.strerror}. Check the path") from error
    with stream:
        if stream.read(2) == b"\x1f\x8b":
            raise UserError(f"{path}: compressed with gzip, so no sample can be read by itself. Unpack it with gunzip")
        stream.seek(0)
        try:
            with tarfile.open(fileobj=stream, mode="r:") as tar:
                members = tar.getmembers()
        except (tarfile.TarError, OSError, ValueError) as error:
            raise UserError(f"{path}: not a whole tar ({error}). Copy or pack it again") from error
        files: dict[PurePosixPath, _File] = {}
        for member in members:
            _check_member(path, member)
            name = PurePosixPath(member.name)
            if name in files:
                raise UserError(f"{path}: member '{name}' is there twice. Pack every sample once")
            if member.isfile():
                files[name] = _File(f"{path}: {name}", path, member.offset_data, member.size)
        # A cut between two members, or a broken header, looks like the end to tarfile.
        stream.seek(max((member.offset_data + -(-member.size // _BLOCK) * _BLOCK for member in members), default=0))
        if stream.read(_BLOCK) != bytes(_BLOCK):
            raise UserError(f"{path}: not a whole tar (its end mark is missing). Copy or pack it again")
    return files


def _check_member(path: Path, member: tarfile.TarInfo) -> None:
    name = PurePosixPath(member.name)
    if name.is_absolute() or ".." in name.parts:
        raise UserError(f"{path}: member '{name}' points out of the shard. Pack it with relative names")
    if member.type not in (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.DIRTYPE):
        raise UserError(f"{path}: member '{name}' is a link or a special file. Pack plain files")


def _check_parts(where: Path, files: Mapping[str, Mapping[str, _File]], pattern: str) -> None:
    """Refuse a sample without one of its maps; where no sample has it, say that instead of naming the first."""
    for suffix, name in _PARTS.items():
        lacking = [key for key, parts in files.items() if name in COARSE_TO_FINE and name not in parts]
        if lacking and len(lacking) == len(files):
            raise UserError(f"{where}: no sample has a part {name!r}. A scene needs rgb, semantic and instance")
        if lacking:
            missing = pattern.format(name=name, key=lacking[0], suffix=suffix, extension=suffix.rpartition(".")[2])
            raise UserError(f"{where}: sample {lacking[0]!r} lacks {missing}. Add it, or remove the sample")


def _label(file: _File | None) -> int | None:
    if file is None:
        return None
    text = file.read().strip()
    if not text.isdigit():
        raise UserError(f"{file.name}: a label is a whole number from 0 on, got {text[:20]!r}. Write the class's index")
    return int(text)


def _decode(name: str, data: bytes, decode: Callable[[Image.Image], np.ndarray]) -> np.ndarray:
    try:
        with Image.open(io.BytesIO(data)) as image:
            return decode(image)
    except Exception as error:  # Pillow answers broken pictures with errors of half a dozen kinds
        raise UserError(f"{name}: not readable as a picture ({error}). Replace it, or remove the sample") from error


def _photo(file: _File) -> UInt8[Tensor, "3 height width"]:
    pixels = _decode(file.name, file.read(), lambda image: np.array(ImageOps.exif_transpose(image).convert("RGB")))
    return torch.from_numpy(pixels.transpose(2, 0, 1).copy())


def _ids(file: _File, ignore: int | None = None, num_classes: int = 0) -> UInt8[Tensor, "height width"]:
    """Read a map as it is stored, with 255 for what is ignored; `num_classes` of 0 admits every id below that."""
    data = file.read()
    if not data.startswith(_PNG) or tuple(data[24:26]) not in _ID_LAYOUTS:
        raise UserError(f"{file.name}: not a map of ids. Store it as a PNG of one channel at 8 or 16 bits")
    dtype = np.uint16 if data[24] == 16 else np.uint8
    stored = _decode(file.name, data, np.array).astype(dtype)
    is_ignored = stored == np.iinfo(dtype).max
    if ignore is not None:
        is_ignored |= stored == ignore
    highest = int(stored.max(initial=0, where=~is_ignored))
    if highest >= IGNORE:
        raise UserError(f"{file.name}: id {highest}, but ids above {IGNORE - 1} cannot be read yet. Renumber the map")
    if num_classes and highest >= num_classes:
        raise UserError(
            f"{file.name}: id {highest}, but dataset.json names {num_classes} classes. Add the missing names"
        )
    return torch.from_numpy(np.where(is_ignored, IGNORE, stored).astype(np.uint8))
