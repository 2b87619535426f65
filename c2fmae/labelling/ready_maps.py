"""The labellers `maps` and `truth`: maps that exist already, for images of the same keys."""

from collections.abc import Hashable, Mapping, Sequence
from functools import cached_property
from typing import Any, ClassVar

from jaxtyping import Integer
from torch import Tensor

from c2fmae.config.data import DataSourceOption, source_name
from c2fmae.core.config import Config
from c2fmae.core.errors import UserError
from c2fmae.core.labels import ClassInfo
from c2fmae.data.combine import select_granularities
from c2fmae.data.digest import compute_scenes_digest
from c2fmae.data.encode import keys_to_member_keys
from c2fmae.data.geometry import subsample_ids
from c2fmae.data.painting import number_instances
from c2fmae.data.scenes import WrappedScenes
from c2fmae.data.sources import open_scenes
from c2fmae.labelling.context import LabellerContext
from c2fmae.labelling.objects import make_objects
from c2fmae.labelling.protocol import LabelInput, LabelledObject, LabelResult
from c2fmae.labelling.registry import LABELLERS


class MapConfig(Config):
    """Settings of `maps` and `truth`."""

    path_options: ClassVar[tuple[str, ...]] = ("source",)

    source: DataSourceOption
    """A folder, shards or any other data with semantic maps, instance maps or both; images are not needed."""


@LABELLERS.register("maps", "Ready-made maps of a folder or shards with the same keys.", options=MapConfig)
@LABELLERS.register(
    "truth", "The true maps of scenes with the same keys, for tests and comparisons.", options=MapConfig
)
class MapLabeller:
    """Maps of another data set, by key. Whether they depend on labels is what their `dataset.json` states."""

    def __init__(self, config: MapConfig, context: LabellerContext) -> None:
        scenes, self._source = open_scenes(config.source), source_name(config.source)
        present = [name for name in ("semantic", "instance") if name in scenes.info.granularities]
        wanted = tuple(name for name in present if name in context.granularities)
        if not wanted:
            raise UserError(
                f"{self._source}: has no {' or '.join(sorted(context.granularities))} maps (got"
                f" {', '.join(scenes.info.granularities)}). Choose data with such maps"
            )
        self.scenes = _MapsAlone(select_granularities(scenes, wanted))
        self.granularities = frozenset(wanted)
        self.classes: tuple[ClassInfo, ...] = scenes.info.classes if "semantic" in wanted else ()
        self.maps_know_labels = scenes.info.maps_know_labels

    def batch_key(self, height: int, width: int) -> Hashable:
        """Return one value: maps are read one by one."""
        return None

    def label(self, inputs: Sequence[LabelInput], stride: int) -> list[LabelResult]:
        """Return the stored maps, subsampled to the stride, with their objects numbered by area."""
        return [self._read_maps(each, stride) for each in inputs]

    def describe(self) -> Mapping[str, Any]:
        """Return a digest of the maps, for which 64 of them are read."""
        return {"labeller": "maps", "maps": compute_scenes_digest(self.scenes, source="")}

    @cached_property
    def _row_by_key(self) -> dict[str, int]:
        return {key: row for row, key in enumerate(self.scenes.keys)}

    def _read_maps(self, label_input: LabelInput, stride: int) -> LabelResult:
        scene, (_, height, width) = self.scenes[self._find_row(label_input.key)], label_input.image.shape
        maps = {}
        for name, ids in scene.maps.items():
            origin = f"{self._source}: the {name} map of {label_input.key!r}"
            maps[name] = _convert_stride(ids, scene.label_stride, stride, (height, width), origin)
        objects: tuple[LabelledObject, ...] = ()
        if "instance" in maps:
            maps["instance"], instances = number_instances(maps["instance"])
            objects = make_objects(instances, stride=stride, image_size=(height, width))
        return LabelResult(maps, objects)

    def _find_row(self, key: str) -> int:
        if key in self._row_by_key:
            return self._row_by_key[key]
        (packed,) = keys_to_member_keys([key])  # the maps may have been packed
        if packed in self._row_by_key:
            return self._row_by_key[packed]
        raise UserError(
            f"{self._source}: has no maps of the image {key!r}. Add them, or list the images that have maps with --keys"
        )


class _MapsAlone(WrappedScenes):
    """Scenes whose images, if there are any, do not matter for what identifies them."""

    def read_image_bytes(self, index: int) -> None:
        """Return None."""


def _convert_stride(
    ids: Integer[Tensor, "_height _width"], stored: int, stride: int, image_size: tuple[int, int], origin: str
) -> Integer[Tensor, "rows columns"]:
    """Return a map of an image at a stride. It must be stored at this stride, or at full size."""
    height, width = image_size
    rows, columns = -(-height // stored), -(-width // stored)
    if tuple(ids.shape) != (rows, columns):
        raise UserError(
            f"{origin} has {ids.shape[1]}×{ids.shape[0]} cells (expected {columns}×{rows} at label_stride {stored} for"
            f" an image of {width}×{height} pixels). Use maps of the same images"
        )
    if stored == stride:
        return ids
    if stored != 1:
        raise UserError(
            f"{origin} is stored at label_stride {stored}, which cannot be converted to {stride} exactly. Use"
            f" --label-stride {stored}, or maps at full size"
        )
    return subsample_ids(ids, stride)
