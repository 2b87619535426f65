"""A check of a whole data set in one pass: all its problems, and counts of classes, objects and labels.

>>> from c2fmae.data.generated import GeneratedScenes
>>> report = check_dataset(GeneratedScenes(size=32, length=3))
>>> report.num_scenes, report.problems, report.valid_keys
(3, (), ('00000000', '00000001', '00000002'))
"""

import hashlib
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from c2fmae.core.crop_box import CropBox
from c2fmae.core.errors import UserError
from c2fmae.core.granularity import IGNORE
from c2fmae.core.objects import Objects, crop_objects
from c2fmae.core.scene import Scene
from c2fmae.core.text import escape_lines, format_count
from c2fmae.data.decode import loses_bits
from c2fmae.data.geometry import scene_size
from c2fmae.data.info import DatasetInfo
from c2fmae.data.problems import Problem
from c2fmae.data.process_pool import run_in_processes
from c2fmae.data.scenes import Scenes

AREA_FRACTION_EDGES = (0.0, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
"""Bin edges of object areas, as fractions of the image; a bin includes its lower edge."""

COCO_SIZE_EDGES = (0, 32**2, 96**2, np.inf)
"""Bin edges of areas in pixels: small, medium and large objects."""

_MAX_NAMED_CLASSES = 8  # in a message
_CHUNK_SIZE = 64  # scenes per task of a process


@dataclass(frozen=True)
class ObjectCounts:
    """Counts of annotated objects by label."""

    objects: Int[np.ndarray, " classes"]
    images: Int[np.ndarray, " classes"]
    crowds: Int[np.ndarray, " classes"]
    sizes: Int[np.ndarray, "3"]
    """Number of objects that COCO calls small (below 32² pixels), medium (below 96²) and large."""
    invisible: int = 0
    """Number of objects without area, without pixels, or outside of the image; crowds included."""
    images_without: int = 0
    """Number of images without an object, or with crowds only."""

    @classmethod
    def count(cls, objects: Objects, size: tuple[int, int], num_classes: int) -> "ObjectCounts":
        """Count the objects of an image with a height and a width."""
        single = np.bincount(objects.labels[~objects.is_crowd].numpy(), minlength=num_classes)
        crowds = np.bincount(objects.labels[objects.is_crowd].numpy(), minlength=num_classes)
        shown = crop_objects(objects, size, CropBox(0, 0, *size), size).rows
        sizes = np.histogram(objects.areas[~objects.is_crowd].numpy(), COCO_SIZE_EDGES)[0]
        invisible = len(objects) - len(shown)
        return cls(single, (single > 0).astype(np.int64), crowds, sizes, invisible, int(not single.any()))

    def __add__(self, other: "ObjectCounts") -> "ObjectCounts":
        return ObjectCounts(
            self.objects + other.objects,
            self.images + other.images,
            self.crowds + other.crowds,
            self.sizes + other.sizes,
            self.invisible + other.invisible,
            self.images_without + other.images_without,
        )


@dataclass(frozen=True)
class CheckReport:
    """Problems of a data set, and counts over its readable scenes."""

    info: DatasetInfo
    problems: tuple[Problem, ...]
    valid_keys: tuple[str, ...]
    """Sorted keys of the scenes without problems; of several with the same image, the first."""
    num_scenes: int
    """Number of readable scenes."""
    class_pixels: Int[np.ndarray, " ids"]
    """Number of pixels by semantic id, where 255 is unlabelled; of cells if maps are stored at a stride."""
    class_images: Int[np.ndarray, " ids"]
    """Number of images that contain each semantic id."""
    object_counts: Mapping[int, int]
    """Number of images by their number of objects; crowds are not counted."""
    object_area_counts: Int[np.ndarray, " bins"]
    """Number of objects by the fraction of the image that they cover, in bins of AREA_FRACTION_EDGES."""
    label_counts: Mapping[int, int]
    """Number of images by label."""
    image_size_counts: Mapping[tuple[int, int], int]
    """Number of images by (width, height)."""
    annotated: ObjectCounts | None = None
    """Counts of annotated objects; None if objects are those of instance maps, or there are none."""
    num_unlabelled: int = 0
    """Number of images with a semantic map in which no pixel is labelled."""
    num_losing_bits: int = 0
    """Number of images of 16 bits of which only the upper eight are read, since the data has no range of values."""

    @property
    def absent_classes(self) -> tuple[str, ...]:
        """Names of classes that are in no map."""
        return tuple(name for name, count in zip(self.info.class_names, self.class_images, strict=False) if not count)

    @property
    def absent_object_classes(self) -> tuple[str, ...]:
        """Names of classes of annotated objects that no object has."""
        if self.annotated is None:
            return ()
        counts = self.annotated.objects.tolist()
        return tuple(entry.name for entry, count in zip(self.info.object_classes, counts, strict=True) if not count)

    @property
    def num_objects(self) -> int:
        """Number of objects in all images."""
        return sum(count * images for count, images in self.object_counts.items())


def check_dataset(
    scenes: Scenes | None,
    problems: Sequence[Problem] = (),
    *,
    workers: int = 1,
    progress: Callable[[int], None] = lambda _: None,
) -> CheckReport:
    """Decode every scene and report all problems, after those in `problems`, which were found on opening."""
    keys = scenes.keys if scenes is not None else ()
    broken, digests = dict[int, str](), dict[int, bytes | None]()
    class_pixels, class_images, object_area_counts = (
        np.zeros(n, np.int64) for n in (256, 256, len(AREA_FRACTION_EDGES) - 1)
    )
    object_counts, labels, sizes = Counter[int](), Counter[int](), Counter[tuple[int, int]]()
    num_losing_bits = num_unlabelled = 0
    annotated: ObjectCounts | None = None
    with closing(_check_all_scenes(scenes, workers)) as results:
        for index, outcome in results:
            progress(1)
            if isinstance(outcome, str):
                broken[index] = outcome
                continue
            digests[index] = outcome.digest
            class_pixels += outcome.class_pixels
            class_images += outcome.class_pixels > 0
            num_unlabelled += bool(outcome.class_pixels[IGNORE]) and not outcome.class_pixels[:IGNORE].any()
            if outcome.object_area_fractions is not None:
                object_counts[len(outcome.object_area_fractions)] += 1
                object_area_counts += np.histogram(outcome.object_area_fractions, AREA_FRACTION_EDGES)[0]
            if outcome.annotated is not None:
                annotated = outcome.annotated if annotated is None else annotated + outcome.annotated
            if outcome.label is not None:
                labels[outcome.label] += 1
            sizes[outcome.size] += 1
            num_losing_bits += outcome.loses_bits
    # Results arrive in any order; the report does not depend on it.
    all_problems = (
        *problems,
        *(Problem(keys[i], broken[i]) for i in sorted(broken)),
        *_duplicate_problems(keys, digests),
    )
    problem_keys = {problem.key for problem in all_problems}
    return CheckReport(
        info=scenes.info if scenes is not None else DatasetInfo(),
        problems=all_problems,
        valid_keys=tuple(sorted({keys[i] for i in digests} - problem_keys)),
        num_scenes=len(digests),
        class_pixels=class_pixels,
        class_images=class_images,
        object_counts=dict(sorted(object_counts.items())),
        object_area_counts=object_area_counts,
        label_counts=dict(sorted(labels.items())),
        image_size_counts=dict(sorted(sizes.items())),
        annotated=annotated,
        num_unlabelled=num_unlabelled,
        num_losing_bits=num_losing_bits,
    )


def format_class_table(report: CheckReport) -> str:
    """Return a line for each class: id, name, fraction of the pixels, images; the last is for unlabelled pixels."""
    total = max(int(report.class_pixels.sum()), 1)
    ids = [*range(len(report.info.classes) or int(np.flatnonzero(report.class_pixels[:IGNORE]).max(initial=-1)) + 1)]
    names = {IGNORE: "(not labelled)"} | dict(enumerate(map(escape_lines, report.info.class_names)))
    width = max(len(name) for name in names.values())
    lines = [f"{'id':>3s}  {'class':{width}s}  {'pixels':>7s}  {'images':>7s}"]
    for i in [*ids, IGNORE]:
        fraction = report.class_pixels[i] / total
        lines.append(f"{i:3d}  {names.get(i, ''):{width}s}  {fraction:7.2%}  {report.class_images[i]:7d}")
    return "\n".join(lines)


def format_object_table(report: CheckReport) -> str:
    """Return a line for each class of annotated objects: label, name, objects, images, crowds."""
    counts = report.annotated
    if counts is None:
        return ""
    names = [escape_lines(entry.name) for entry in report.info.object_classes]
    width = max(map(len, [*names, "class"]))
    lines = [f"{'label':>5s}  {'class':{width}s}  {'objects':>8s}  {'images':>7s}  {'crowds':>7s}"]
    columns = zip(names, counts.objects.tolist(), counts.images.tolist(), counts.crowds.tolist(), strict=True)
    for label, (name, objects, images, crowds) in enumerate(columns):
        lines.append(f"{label:5d}  {name:{width}s}  {objects:8d}  {images:7d}  {crowds:7d}")
    return "\n".join(lines)


def describe_object_notes(report: CheckReport) -> list[str]:
    """Return what a user should know about annotated objects."""
    counts, notes = report.annotated, list[str]()
    if counts is None:
        return notes
    if absent := report.absent_object_classes:
        names = ", ".join(map(escape_lines, absent))
        notes.append(f"{format_count(len(absent), 'class has', 'classes have')} no object: {names}")
    if counts.images_without:
        notes.append(f"{format_count(counts.images_without, 'image has', 'images have')} no object that is no crowd")
    if counts.invisible:
        objects = format_count(counts.invisible, "object has", "objects have")
        notes.append(
            f"{objects} no area or no pixel in the image: a training leaves them out, an evaluation counts them"
        )
    return notes


def describe_missing_classes(report: CheckReport) -> str | None:
    """Return what to write into `dataset.json` if it names no classes, although there are semantic maps."""
    ids = np.flatnonzero(report.class_pixels[:IGNORE]).tolist()
    if report.info.classes or not report.class_pixels.any():
        return None
    if ids in ([], [0]) and report.class_pixels[IGNORE]:  # 255 often is the object of masks that are black and white
        found = "the maps hold 0 and 255 alone" if ids else "the maps hold 255 alone"
        example = '{"classes": [{"name": "background"}, {"name": "object"}], "colours": [0, 255]}'
        return f'{found}, which is "not labelled". If 255 is a class, write dataset.json: {example}'
    names = ", ".join(f'{{"name": "class {i}"}}' for i in range(min(max(ids) + 1, _MAX_NAMED_CLASSES)))
    more = ", …" if max(ids) >= _MAX_NAMED_CLASSES else ""
    return (
        f"dataset.json names no classes, which a segmenter needs; the maps hold ids up to {max(ids)}. Write it with"
        f' their names: {{"classes": [{names}{more}]}}'
    )


@dataclass(frozen=True)
class _SceneStats:
    """Counts of one scene."""

    digest: bytes | None
    """Digest of the stored image, or of its pixels if it is not stored; None without rgb."""
    size: tuple[int, int]
    label: int | None
    class_pixels: Int[np.ndarray, " ids"]
    object_area_fractions: Float[np.ndarray, " objects"] | None
    """None without objects and without an instance map."""
    annotated: ObjectCounts | None
    loses_bits: bool


@dataclass(frozen=True)
class _SceneChecker:
    """The work of one process: yield the counts or the error of each scene of a chunk."""

    scenes: Scenes

    def __call__(self, chunk: range) -> Iterator[tuple[int, _SceneStats | str]]:
        for index in chunk:
            try:
                scene = self.scenes[index]
                image_bytes = self._read_image_bytes(index, scene)
                is_deep = self.scenes.info.value_range is None and image_bytes is not None and loses_bits(image_bytes)
                yield index, _scene_stats(scene, image_bytes, self.scenes.info, loses_bits=is_deep)
            except UserError as error:
                yield index, str(error)

    def _read_image_bytes(self, index: int, scene: Scene) -> bytes | None:
        if "rgb" not in scene.maps:
            return None
        return self.scenes.read_image_bytes(index) or scene.maps["rgb"].numpy().tobytes()


def _check_all_scenes(scenes: Scenes | None, workers: int) -> Generator[tuple[int, _SceneStats | str], None, None]:
    if scenes is not None:
        chunks = [range(start, min(start + _CHUNK_SIZE, len(scenes))) for start in range(0, len(scenes), _CHUNK_SIZE)]
        with closing(run_in_processes(_SceneChecker(scenes), chunks, workers)) as results:
            yield from results


def _scene_stats(scene: Scene, image_bytes: bytes | None, info: DatasetInfo, *, loses_bits: bool) -> _SceneStats:
    height, width = scene_size(scene)
    area_fractions = annotated = None
    if scene.objects is not None:
        annotated = ObjectCounts.count(scene.objects, (height, width), len(info.object_classes))
        areas = scene.objects.areas[~scene.objects.is_crowd].numpy()
        area_fractions = (areas / (height * width)).clip(0, 1)
    elif "instance" in scene.maps:
        instance = scene.maps["instance"].numpy()
        ids, areas = np.unique(instance, return_counts=True)
        area_fractions = areas[(ids != 0) & (ids != IGNORE)] / instance.size
    semantic = scene.maps["semantic"].numpy().ravel() if "semantic" in scene.maps else np.zeros(0, np.uint8)
    digest = hashlib.blake2b(image_bytes, digest_size=16).digest() if image_bytes is not None else None
    class_pixels = np.bincount(semantic, minlength=256)
    return _SceneStats(digest, (width, height), scene.label, class_pixels, area_fractions, annotated, loses_bits)


def _duplicate_problems(keys: Sequence[str], digests: Mapping[int, bytes | None]) -> Iterator[Problem]:
    """Yield a problem for every scene with the same image as an earlier one by key."""
    first: dict[bytes, str] = {}
    for key, digest in sorted((keys[i], digest) for i, digest in digests.items() if digest is not None):
        earlier = first.setdefault(digest, key)
        if earlier != key:
            yield Problem(key, f"sample {key!r} has the same image as {earlier!r}. Remove one of them")
