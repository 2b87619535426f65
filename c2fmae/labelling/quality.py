"""The page on the maps of a labelling: counts and contact sheets.

Counts of all images are those of the manifest. What needs maps is counted in a sample, so that at most 48 shards of a
set of any size are read. The page depends on the manifest and the shards only: equal directories have equal ones.
"""

import json
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float64, Int64, UInt8
from PIL import Image

from c2fmae.core.files import write_atomic
from c2fmae.core.granularity import IGNORE
from c2fmae.core.scene import Scene
from c2fmae.core.text import format_count
from c2fmae.data.check import AREA_FRACTION_EDGES, check_dataset, format_class_table
from c2fmae.data.combine import SubsetScenes
from c2fmae.data.info import DatasetInfo
from c2fmae.data.preview import draw_scenes
from c2fmae.data.scenes import Scenes
from c2fmae.data.shard_writing import ShardSet
from c2fmae.data.shards import ShardScenes
from c2fmae.data.spacing import evenly_spaced_indices
from c2fmae.data.tar_index import load_or_build_index, scan_shard
from c2fmae.labelling.manifest import FAILED_FILE, MANIFEST_FILE
from c2fmae.report import BarChart, Details, Figure, KeyValues, Page, Section, Table, render_page

QUALITY_PAGE = "quality.html"
"""The page in the output directory."""

_NUM_EVEN, _NUM_CHOSEN = 24, 8  # images in contact sheets
_NUM_COUNTED = 480  # images whose maps are counted, all in the shards of the evenly spaced ones
_NUM_FAILURES = 20
_MAX_THRESHOLDS = 12
_TILE_SIDE = 192

_STATUS = ("done", "empty", "failed")
_DONE, _EMPTY, _FAILED = range(3)
_COLUMNS = {
    "instances": "objects",
    "covered": "covered by objects, %",
    "classes": "classes",
    "ignored": "without a class, %",
    "confidence": "confidence, %",
    "threshold": "threshold, %",
}
_OBJECT_EDGES = (0, 1, 2, 3, 6, 11, 21, np.inf)
"""Edges of the bars of the number of objects."""

_Numbers = Float64[np.ndarray, " image"]


@dataclass(frozen=True)
class ManifestColumns:
    """The rows of a manifest as one array for each key; numbers that do not apply are NaN."""

    status: UInt8[np.ndarray, " image"]
    numbers: Mapping[str, _Numbers]
    failures: Sequence[str]
    """The reasons of the first failures."""

    def select(self, rows: Int64[np.ndarray, " rows"]) -> Mapping[str, _Numbers]:
        """Return the numbers of some rows, without columns in which none applies."""
        selected = {name: values[rows] for name, values in self.numbers.items()}
        return {name: values for name, values in selected.items() if not np.isnan(values).all()}


def write_quality_page(shards: ShardSet, info: DatasetInfo) -> Path:
    """Write the page of a directory whose shards and manifest are complete."""
    columns = read_manifest(shards.out / MANIFEST_FILE)
    labelled = np.flatnonzero(columns.status != _FAILED)
    page = Page(
        "Quality of the maps",
        f"Counts and examples of the maps of {format_count(len(labelled), 'image')}. No true maps are needed for them.",
        make_quality_sections(columns, labelled, shards, info),
    )
    path = shards.out / QUALITY_PAGE
    write_atomic(path, render_page(page).encode())
    return path


def read_manifest(path: Path) -> ManifestColumns:
    """Read the rows one by one: there may be millions."""
    status, failures = bytearray(), list[str]()
    numbers = {name: array("d") for name in _COLUMNS}
    with path.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            row = json.loads(line)
            status.append(_STATUS.index(row["status"]))
            if status[-1] == _FAILED and len(failures) < _NUM_FAILURES:
                failures.append(row["why"])
            for name, values in numbers.items():
                value = row[name]
                values.append(np.nan if value is None else value)
    arrays = {name: np.array(values, np.float64) for name, values in numbers.items()}
    return ManifestColumns(np.array(status, np.uint8), arrays, failures)


def make_quality_sections(
    columns: ManifestColumns, labelled: Int64[np.ndarray, " labelled"], shards: ShardSet, info: DatasetInfo
) -> list[Section]:
    """Return the sections of the page; `labelled` are the rows of the images that did not fail, which are in shards."""
    numbers, status = columns.select(labelled), columns.status[labelled]
    shard_numbers = labelled // shards.shard_size
    even = np.array(evenly_spaced_indices(len(labelled), _NUM_EVEN, centred=True), np.int64)
    sheets = {"Images, evenly spaced": even}
    if len(labelled) > len(even):
        sheets |= _choose_images(numbers, status)
    opened = _OpenedShards(shards, shard_numbers, np.unique(shard_numbers[np.concatenate([*sheets.values()])]), info)
    sample = _choose_sample(shard_numbers, even)
    return [
        KeyValues(
            {
                "images": f"{len(labelled):,}",
                "without objects" if "instances" in numbers else "without classes": f"{(status == _EMPTY).sum():,}",
                "failed": f"{(columns.status == _FAILED).sum():,}",
            }
        ),
        _make_quantile_table(numbers),
        *_make_threshold_table(numbers),
        *_make_object_chart(numbers),
        *_make_sample_sections(opened.select(sample, with_images=False)),
        *[
            Figure(_draw_sheet(opened.select(chosen), chosen, numbers), caption)
            for caption, chosen in sheets.items()
            if len(chosen)
        ],
        *_make_failures(columns),
    ]


class _OpenedShards:
    """Some shards of an unfinished directory; images are numbered over all shards, without those that failed."""

    def __init__(
        self,
        shards: ShardSet,
        shard_numbers: Int64[np.ndarray, " image"],
        chosen: Int64[np.ndarray, " shard"],
        info: DatasetInfo,
    ) -> None:
        self.paths = [shards.path(number) for number in chosen.tolist()]
        self.indices = [load_or_build_index(path, scan_shard) for path in self.paths]
        self.info = info
        in_chosen = np.isin(shard_numbers, chosen)
        self.row_of_image = np.where(in_chosen, np.cumsum(in_chosen) - 1, -1)

    def select(self, images: Int64[np.ndarray, " images"], *, with_images: bool = True) -> Scenes:
        """Return the scenes of some images, or only their maps."""
        names = tuple(name for name in self.info.granularities if with_images or name != "rgb")
        info = self.info.model_copy(update={"granularities": names})
        return SubsetScenes(ShardScenes(self.paths, self.indices, info), self.row_of_image[images])


def _choose_images(
    numbers: Mapping[str, _Numbers], status: UInt8[np.ndarray, " image"]
) -> dict[str, Int64[np.ndarray, " images"]]:
    """Return the images for a closer look, by caption."""
    chosen = {}
    if "confidence" in numbers:
        chosen["Images with the lowest confidence"] = np.argsort(numbers["confidence"], kind="stable")
    if "instances" in numbers:
        chosen["Images with the most objects"] = np.argsort(-numbers["instances"], kind="stable")
    missing = "objects" if "instances" in numbers else "classes"
    empty = np.flatnonzero(status == _EMPTY)
    chosen[f"Images without {missing}"] = empty[evenly_spaced_indices(len(empty), _NUM_CHOSEN)]
    return {caption: images[:_NUM_CHOSEN] for caption, images in chosen.items()}


def _choose_sample(
    shard_numbers: Int64[np.ndarray, " image"], even: Int64[np.ndarray, " even"]
) -> Int64[np.ndarray, " sample"]:
    """Return evenly spaced images of the shards of some images."""
    images = np.flatnonzero(np.isin(shard_numbers, shard_numbers[even]))
    sample: Int64[np.ndarray, " sample"] = images[evenly_spaced_indices(len(images), _NUM_COUNTED)]
    return sample


def _make_quantile_table(numbers: Mapping[str, _Numbers]) -> Table:
    rows = []
    for name, values in numbers.items():
        known = values[~np.isnan(values)] * (100 if _COLUMNS[name].endswith("%") else 1)
        quantiles = np.quantile(known, [0, 0.05, 0.5, 0.95, 1], method="nearest").tolist()
        rows.append((_COLUMNS[name], *(f"{value:.4g}" for value in [*quantiles, float(known.mean())])))
    return Table("Images", ("by image", "lowest", "5 %", "median", "95 %", "highest", "mean"), rows)


def _make_threshold_table(numbers: Mapping[str, _Numbers]) -> list[Section]:
    """Return how many images each threshold was used for, if there are only a few."""
    values, counts = np.unique(numbers.get("threshold", np.zeros(0)), return_counts=True)
    if not 1 < len(values) <= _MAX_THRESHOLDS:
        return []
    names = ["none" if np.isnan(value) else f"{value:g}" for value in values.tolist()]
    fractions = (100 * counts / counts.sum()).tolist()
    groups = [(name, (fraction,)) for name, fraction in zip(names, fractions, strict=True)]
    return [BarChart("Threshold", groups[::-1], ("% of the images",))]


def _make_object_chart(numbers: Mapping[str, _Numbers]) -> list[Section]:
    if "instances" not in numbers:
        return []
    counts = np.histogram(numbers["instances"], _OBJECT_EDGES)[0]
    names = [
        f"{low} or more" if high == np.inf else str(low) if high == low + 1 else f"{low} to {high - 1}"
        for low, high in pairwise(_OBJECT_EDGES)
    ]
    fractions = (100 * counts / counts.sum()).tolist()
    groups = [(name, (fraction,)) for name, fraction in zip(names, fractions, strict=True)]
    return [BarChart("Objects in an image", groups, ("% of the images",))]


def _make_sample_sections(sample: Scenes) -> list[Section]:
    """Return the areas of objects, the classes, and the agreement of both maps."""
    report, sections = check_dataset(sample), list[Section]()
    images = format_count(report.num_scenes, "image")
    if total := int(report.object_area_counts.sum()):
        names = [f"{100 * low:g} to {100 * high:g} %" for low, high in pairwise(AREA_FRACTION_EDGES)]
        values = (100 * report.object_area_counts / total).tolist()
        groups = [(name, (value,)) for name, value in zip(names, values, strict=True)]
        sections.append(
            BarChart(f"Part of the image that an object covers, in {images}", groups, ("% of the objects",))
        )
    sections += _make_agreement(sample)
    if report.class_pixels.any():
        sections.append(Details(f"Classes in {images}", format_class_table(report)))
    return sections


def _make_agreement(sample: Scenes) -> list[Section]:
    """Return how far both maps agree on where things are."""
    is_thing = np.zeros(IGNORE + 1, np.bool_)
    is_thing[: len(sample.info.classes)] = [bool(entry.is_thing) for entry in sample.info.classes]
    if not is_thing.any() or not {"semantic", "instance"} <= {*sample.info.granularities}:
        return []
    both, things, objects = (
        sum(each)
        for each in zip(*(_count_things(sample[index], is_thing) for index in range(len(sample))), strict=True)
    )
    items = {}
    if objects:
        items["objects whose class is a thing"] = f"{both / objects:.1%} of their cells"
    if things:
        items["things inside of objects"] = f"{both / things:.1%} of their cells"
    return [KeyValues(items)] if items else []


def _count_things(scene: Scene, is_thing: Bool[np.ndarray, " ids"]) -> tuple[int, int, int]:
    """Return the cells that belong to things and objects, to things, and to objects, where both are known."""
    semantic, instance = scene.maps["semantic"].numpy(), scene.maps["instance"].numpy()
    is_known = (semantic != IGNORE) & (instance != IGNORE)
    things, objects = is_thing[semantic] & is_known, (instance != 0) & is_known
    return int((things & objects).sum()), int(things.sum()), int(objects.sum())


def _draw_sheet(scenes: Scenes, images: Int64[np.ndarray, " images"], numbers: Mapping[str, _Numbers]) -> Image.Image:
    """Draw images with their maps, a row each, beside their numbers."""
    return draw_scenes(
        (scenes[index] for index in range(len(scenes))),
        scenes.info,
        notes=["\n".join(_describe_image(image, numbers)) for image in images.tolist()],
        tile_side=_TILE_SIDE,
        has_outlines=True,
    )


def _describe_image(image: int, numbers: Mapping[str, _Numbers]) -> list[str]:
    values = {name: values[image] for name, values in numbers.items()}
    lines = [format_count(int(values["instances"]), "object")] if "instances" in values else []
    return lines + [
        f"{name} {100 * values[name]:.1f} %"
        for name in ("confidence", "threshold")
        if name in values and not np.isnan(values[name])
    ]


def _make_failures(columns: ManifestColumns) -> list[Section]:
    if not columns.failures:
        return []
    return [Details("Failed images", "\n".join([*columns.failures, f"All are in {FAILED_FILE}."]))]
