"""Scenes from a map-style `torch.utils.data.Dataset`."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from c2fmae.core.errors import UserError
from c2fmae.core.granularity import GRANULARITIES, IGNORE
from c2fmae.core.labels import LabelInfo
from c2fmae.core.scene import Scene
from c2fmae.data.info import DatasetInfo
from c2fmae.data.scenes import check_index
from c2fmae.data.stored import sort_coarse_to_fine

_ID_DTYPES = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


@runtime_checkable
class MapStyleDataset(Protocol):
    """A data set with items by index and a length, such as those of torchvision."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...


class DatasetScenes:
    """The items of a data set as scenes, for pre-training, evaluations and all other functions of this package.

    An item is an image, a pair (image, label), or a mapping with the image as `rgb` or `image`, maps by granularity
    (`semantic`, `instance`, `depth`) and perhaps a `label`. Images are uint8 tensors [channels, height, width], uint8
    arrays [height, width, channels] or Pillow images, and id maps are integer tensors or arrays [height, width].

    Items must be the same at each access: crops and flips are drawn later, from the run's seed, so that a resumed run
    sees the same samples. An error of an item is that of a broken sample, which a run may skip.
    """

    def __init__(
        self, dataset: MapStyleDataset, *, info: DatasetInfo | None = None, keys: Sequence[str] | None = None
    ) -> None:
        """Adapt a data set.

        Args:
            dataset: the data set; worker processes get a copy of it.
            info: classes of semantic maps, names of labels, mean and std of images. Channels and granularities are
                those of the first item; labels are by default the data set's `classes`, as torchvision has them.
            keys: unique names of the items, by default their indices.
        """
        for attribute in ("__len__", "__getitem__"):
            if not hasattr(dataset, attribute):
                raise UserError(
                    f"{type(dataset).__name__}: expected a map-style data set, got one without {attribute}. Implement"
                    " __len__ and __getitem__"
                )
        if not len(dataset):
            raise UserError(f"{type(dataset).__name__}: has no items. Check its arguments")
        self._dataset = dataset
        self.keys: Sequence[str] = [f"{index:08d}" for index in range(len(dataset))] if keys is None else list(keys)
        if len(self.keys) != len(dataset) or len(set(self.keys)) != len(self.keys):
            raise UserError(f"keys: expected {len(dataset)} unique names, one for each item, got {len(set(self.keys))}")
        self.info = _complete_info(info or DatasetInfo(), self._read(0), getattr(dataset, "classes", None))

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, index: int) -> Scene:
        check_index(index, len(self))
        scene = self._read(index)
        if scene.maps.keys() != set(self.info.granularities):
            expected = ", ".join(self.info.granularities)
            raise UserError(
                f"sample {scene.key!r}: expected {expected}, as the first item has, got {', '.join(scene.maps)}"
            )
        if "semantic" in scene.maps and (problem := _find_outside_id(scene.maps["semantic"], len(self.info.classes))):
            raise UserError(f"sample {scene.key!r}: semantic: {problem}")
        if "rgb" in scene.maps and len(scene.maps["rgb"]) != self.info.channels:
            raise UserError(
                f"sample {scene.key!r}: expected {self.info.channels} channels, got {len(scene.maps['rgb'])}. Convert"
                " all images to the same channels"
            )
        return scene

    def read_image_bytes(self, index: int) -> None:
        """Return None: the images are not stored encoded."""
        check_index(index, len(self))

    def _read(self, index: int) -> Scene:
        key = self.keys[index]
        try:
            item = self._dataset[index]
        except Exception as error:  # whatever the user's code raises
            raise UserError(
                f"sample {key!r}: the data set raised {type(error).__name__}: {error}. Fix this item, or leave it out"
            ) from error
        maps, label = _split_item(key, item)
        return Scene(key, _convert_maps(key, maps), label)


def _find_outside_id(ids: Tensor, num_classes: int) -> str | None:
    """Describe the first id outside the label space, if there is one; without classes, any byte is inside."""
    is_outside = (ids >= (num_classes or IGNORE)) & (ids != IGNORE)
    if not is_outside.any():
        return None
    row, column = is_outside.nonzero()[0].tolist()
    return (
        f"id {int(ids[row, column])} at row {row}, column {column} is outside the {num_classes or IGNORE} classes."
        f" Use ids from 0, and {IGNORE} for unlabelled pixels"
    )


def _complete_info(info: DatasetInfo, first: Scene, class_names: object) -> DatasetInfo:
    updates: dict[str, Any] = {"granularities": sort_coarse_to_fine(first.maps), "label_stride": 1}
    if "rgb" in first.maps:
        updates["channels"] = len(first.maps["rgb"])
    is_named = isinstance(class_names, list | tuple) and all(isinstance(name, str) and name for name in class_names)
    if not info.labels and first.label is not None and isinstance(class_names, list | tuple) and is_named:
        updates["labels"] = tuple(LabelInfo(name=name) for name in class_names)
    return DatasetInfo.from_dict({**info.model_dump(exclude_unset=True), **updates}, source="info")


def _split_item(key: str, item: Any) -> tuple[dict[str, Any], int | None]:
    """Return the maps of an item by granularity, and its label."""
    match item:
        case Mapping():
            maps = {"rgb" if name == "image" else name: value for name, value in item.items() if name != "label"}
            label = item.get("label")
        case (image, label):
            maps = {"rgb": image}
        case _:
            maps, label = {"rgb": item}, None
    if unknown := next((name for name in maps if name not in GRANULARITIES), None):
        known = ", ".join(["image", *GRANULARITIES, "label"])
        raise UserError(f"sample {key!r}: {unknown!r} is not a granularity. Use {known}")
    if label is None:
        return maps, None
    try:
        return maps, int(label)
    except (TypeError, ValueError) as error:
        raise UserError(f"sample {key!r}: label: expected an integer, got {label!r}") from error


def _convert_maps(key: str, maps: Mapping[str, Any]) -> dict[str, Tensor]:
    tensors = {}
    for name in sort_coarse_to_fine(maps):
        is_image = GRANULARITIES.get(name).kind == "image"
        tensors[name] = (_to_image if is_image else _to_map)(f"sample {key!r}: {name}", maps[name])
    sizes = {name: tuple(tensor.shape[-2:]) for name, tensor in tensors.items()}
    if len(set(sizes.values())) > 1:
        text = ", ".join(f"{name} {height}×{width}" for name, (height, width) in sizes.items())
        raise UserError(f"sample {key!r}: expected an image and maps of one size, got {text}. Resize maps by nearest")
    return tensors


def _to_image(location: str, value: Any) -> Tensor:
    if isinstance(value, Image.Image):
        value = np.array(value if value.mode in ("L", "RGB", "RGBA") else value.convert("RGB"))
    if isinstance(value, np.ndarray):
        channels_first = value if value.ndim != 3 else np.ascontiguousarray(value.transpose(2, 0, 1))
        tensor: object = torch.from_numpy(channels_first)
    else:
        tensor = value
    if isinstance(tensor, Tensor) and tensor.ndim == 2:
        tensor = tensor.unsqueeze(0)
    if not isinstance(tensor, Tensor) or tensor.dtype != torch.uint8 or tensor.ndim != 3:
        raise UserError(
            f"{location}: expected a uint8 tensor [channels, height, width], got {_describe(value)}. Return images as"
            " bytes, without normalisation: c2fmae standardises them later"
        )
    return tensor.contiguous()


def _to_map(location: str, value: Any) -> Tensor:
    """Return ids as uint8 or int32, like those of stored maps; continuous values are returned unchanged."""
    if isinstance(value, Image.Image):
        value = np.array(value)
    is_array = isinstance(value, np.ndarray)
    tensor: object = torch.from_numpy(np.ascontiguousarray(value)) if is_array else value
    is_ids = GRANULARITIES.get(location.rpartition(" ")[2]).kind == "ids"
    if not isinstance(tensor, Tensor) or tensor.ndim != 2 or (is_ids and tensor.dtype not in _ID_DTYPES):
        kind = "an integer tensor" if is_ids else "a tensor"
        raise UserError(f"{location}: expected {kind} [height, width], got {_describe(value)}")
    if not is_ids or tensor.dtype == torch.uint8:
        return tensor.contiguous()
    if int(tensor.min()) < 0:
        raise UserError(f"{location}: expected ids from 0, and 255 for unlabelled pixels, got {int(tensor.min())}")
    return tensor.to(torch.uint8 if int(tensor.max()) < 256 else torch.int32).contiguous()


def _describe(value: Any) -> str:
    if isinstance(value, Tensor | np.ndarray):
        return f"{str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}"
    return type(value).__name__
