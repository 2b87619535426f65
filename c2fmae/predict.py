"""Predictions of a classifier, a segmenter or a detector for a folder of images.

What is done is known from the output directory alone, so a process that was killed continues where it ended.
`predict.json` holds what predictions depend on; predictions of other weights, settings or images are never mixed.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from torch import Tensor

from c2fmae.core.distributed import World
from c2fmae.core.errors import UserError, unknown_name_error
from c2fmae.core.failures import describe_failure
from c2fmae.core.files import write_atomic
from c2fmae.core.json_file import read_json, write_json
from c2fmae.core.run_info import is_run_or_checkpoint, read_run_info
from c2fmae.core.text import escape_lines
from c2fmae.data import DatasetInfo, Scenes
from c2fmae.data.encode import make_output_dir
from c2fmae.data.folders import FolderScenes
from c2fmae.data.key_list import KeyList
from c2fmae.data.sources import inspect_scenes
from c2fmae.data.stored import DOTTED_IMAGE_SUFFIXES
from c2fmae.eval.detection.object_files import ObjectFiles
from c2fmae.eval.detection.testing_config import DetectionTestingConfig
from c2fmae.eval.engine import BatchingConfig, iterate_batches
from c2fmae.eval.robustness.image_classifier import load_image_classifier
from c2fmae.eval.robustness.prediction_table import PredictionTable
from c2fmae.eval.segmentation.id_maps import IdMapFiles
from c2fmae.eval.segmentation.testing_config import TestingConfig
from c2fmae.models.detectors import load_detector
from c2fmae.models.segmenters import load_segmenter

IDENTITY_FILE, UNREADABLE_FILE = "predict.json", "unreadable.txt"
DEFAULT_TOP_K, DEFAULT_THRESHOLD = 5, 0.5
_FORMAT = 1

ModelKind = Literal["classifier", "segmenter", "detector"]

SAVED_KINDS: Mapping[ModelKind, tuple[str, ...]] = {
    "classifier": (),
    "segmenter": ("maps", "overlay"),
    "detector": ("coco", "yolo", "overlay"),
}
"""What can be written for each kind of model; the first is always written."""


@dataclass(frozen=True, kw_only=True)
class PredictOptions:
    """What is predicted and written. Options of the other kind of model must have their defaults."""

    top_k: int | None = None
    """Number of classes of an image in the table of a classifier; by default 5."""
    save: tuple[str, ...] = ()
    """What is written, of `SAVED_KINDS`."""
    threshold: float | None = None
    """Detections of a detector with lower scores are not written; by default 0.5."""
    as_scenes: bool = False
    """Write id maps and links to the images, so that the output directory is a data set."""
    overrides: tuple[str, ...] = ()
    """Settings of the test of a segmenter or detector that differ from those of its run, as `key=value`."""


@dataclass(frozen=True, kw_only=True)
class PredictResult:
    """The outcome of `predict`."""

    model_kind: ModelKind
    protocol: str
    """How images are predicted, in words."""
    num_images: int
    """The number of images with predictions."""
    num_new: int
    """The number of images among them that were predicted now."""
    unreadable: tuple[str, ...]
    """A message for each image that cannot be read."""


def predict(
    source: str,
    images: str,
    out: Path,
    world: World,
    options: PredictOptions,
    *,
    step: int | None = None,
    use_ema: bool = False,
    batching: BatchingConfig,
) -> PredictResult:
    """Write the predictions of a classifier, segmenter or detector for all images that have none yet.

    `images` is a folder, an image, or any other source of scenes. `batching.batch_size` is the number of images of a
    classifier, or of windows of a segmenter, in a forward pass.
    """
    if world.size > 1:
        raise UserError("predict: runs in one process. Start it without torchrun")
    scenes, problems = _open_images(images, out)
    model_kind = _find_model_kind(source, step)
    _check_options(source, model_kind, options)
    writer: PredictionTable | IdMapFiles | ObjectFiles
    if model_kind == "classifier":
        classifier = load_image_classifier(source, step=step, use_ema=use_ema)
        writer = PredictionTable(classifier, scenes, out, min(options.top_k or DEFAULT_TOP_K, len(classifier.labels)))
    elif model_kind == "segmenter":
        segmenter = load_segmenter(source, step=step, use_ema=use_ema)
        settings = {**_read_testing(source, step), "batch_size": batching.batch_size}
        testing = TestingConfig.from_dict(settings, options.overrides, source="predict")
        writer = IdMapFiles(segmenter, scenes, out, testing, "overlay" in options.save, options.as_scenes)
    else:
        detector = load_detector(source, step=step, use_ema=use_ema)
        threshold = DEFAULT_THRESHOLD if options.threshold is None else options.threshold
        settings = {**_read_testing(source, step), "score_threshold": threshold}
        writer = ObjectFiles(
            detector,
            scenes,
            out,
            DetectionTestingConfig.from_dict(settings, options.overrides, source="predict"),
            has_labels="yolo" in options.save,
            has_overlays="overlay" in options.save,
            has_maps=options.as_scenes,
        )
    batch_size = batching.batch_size if model_kind == "classifier" else 1  # images have different sizes
    _claim_output_dir(out, {"weights": writer.digest, "protocol": writer.protocol, "images": _identify_images(images)})
    writer.prepare()
    writer.module.to(world.device).eval()
    pending = writer.list_pending()
    batches = [pending[first : first + batch_size] for first in range(0, len(pending), batch_size)]
    broken: list[str] = []
    reader, batching = _ImageReader(scenes, writer.view), replace(batching, batch_size=batch_size)
    with writer.open() if isinstance(writer, ObjectFiles) else nullcontext():
        for _, loaded in iterate_batches(reader, batches, world, batching):
            broken += loaded.problems
            if loaded.images:
                writer.write(loaded.rows, loaded.images)
    unreadable = (*problems, *broken)
    _write_unreadable(out / UNREADABLE_FILE, unreadable)
    return PredictResult(
        model_kind=model_kind,
        protocol=writer.protocol,
        num_images=len(scenes) - len(broken),
        num_new=len(pending) - len(broken),
        unreadable=unreadable,
    )


class _LoadedImages(NamedTuple):
    rows: list[int]
    """The rows of the images that were read."""
    images: list[Tensor]
    problems: list[str]
    """A message for each image that was not read."""


@dataclass(frozen=True)
class _ImageReader:
    """Reads images, in worker processes; one that is broken becomes a message."""

    scenes: Scenes
    view: Callable[[Tensor], Tensor] | None
    """A transform of each image."""

    def __call__(self, rows: Sequence[int]) -> _LoadedImages:
        loaded = _LoadedImages([], [], [])
        for row in rows:
            try:
                image = self.scenes[row].maps["rgb"]
            except UserError as error:
                if describe_failure(error):  # such as too many open files: the image itself is not broken
                    raise
                loaded.problems.append(str(error))
                continue
            loaded.rows.append(row)
            loaded.images.append(self.view(image) if self.view else image)
        return loaded


def _find_model_kind(source: str, step: int | None) -> ModelKind:
    """Return the kind of the model of a source."""
    path = Path(source)
    run_kind = read_run_info(path, step).kind if is_run_or_checkpoint(path) else None
    if run_kind == "pretraining":
        raise UserError(
            f"{source}: is a pre-training run, which predicts no classes. Make a classifier of it with `c2fmae eval "
            f"finetune {source} --data D`, a segmenter with `c2fmae eval segment {source} --data D`, or a detector with"
            f" `c2fmae eval detect {source} --data D`"
        )
    kinds: dict[str | None, ModelKind] = {"segmentation": "segmenter", "detection": "detector"}
    return kinds.get(run_kind, "classifier")


def _check_options(source: str, model_kind: ModelKind, options: PredictOptions) -> None:
    """Raise a `UserError` for an option that is for another kind of model."""
    for name in options.save:
        kinds = [kind for kind, names in SAVED_KINDS.items() if name in names]
        if not kinds:
            raise unknown_name_error("output", name, sorted({each for names in SAVED_KINDS.values() for each in names}))
        if model_kind not in kinds:
            raise _wrong_kind_error(f"--save {name}", kinds, source, model_kind)
    maps: list[ModelKind] = ["segmenter", "detector"]
    given: list[tuple[str, bool, list[ModelKind]]] = [
        ("--top-k", options.top_k is not None, ["classifier"]),
        ("--threshold", options.threshold is not None, ["detector"]),
        ("--as-scenes", options.as_scenes, maps),
        ("--set", bool(options.overrides), maps),
    ]
    for name, is_given, kinds in given:
        if is_given and model_kind not in kinds:
            raise _wrong_kind_error(name, kinds, source, model_kind)


def _wrong_kind_error(option: str, kinds: Sequence[str], source: str, model_kind: str) -> UserError:
    users = " and ".join(f"{kind}s" for kind in kinds)
    return UserError(f"{option}: is for {users}, but {source} is a {model_kind}. Leave it out")


def _read_testing(source: str, step: int | None) -> Mapping[str, object]:
    """Return the settings of the test of a run."""
    values: Mapping[str, object] = read_run_info(Path(source), step).config.get("testing", {})
    return values


def _open_images(source: str, out: Path) -> tuple[Scenes, tuple[str, ...]]:
    """Return the images of a source, and messages for those that are no samples, such as two of the same name."""
    path = Path(source)
    if path.is_file() and path.name.lower().endswith(DOTTED_IMAGE_SUFFIXES):
        return _open_image_file(path), ()
    if path.is_file() and path.suffix in (".json", ".yaml", ".yml", ".txt"):
        raise UserError(f"{source}: has annotations, but predict reads images. Give the folder of its images")
    if path.is_dir() and out.resolve().is_relative_to(path.resolve()):
        raise UserError(
            f"{out}: is inside the folder of images, so that predictions would be read as images. Choose a directory "
            "outside"
        )
    scenes, problems = inspect_scenes(source, granularities=("rgb",))
    if scenes is None or not len(scenes):
        raise UserError(problems[0].text if problems else f"{source}: contains no images. Check the path")
    return scenes, tuple(problem.text for problem in problems)


def _open_image_file(path: Path) -> FolderScenes:
    info = (DatasetInfo.read_from_dir(path.parent) or DatasetInfo()).model_copy(update={"granularities": ("rgb",)})
    keys, suffixes = KeyList.from_names([path.stem]), {"rgb": KeyList.from_names([path.suffix])}
    return FolderScenes({"rgb": path.parent}, info, keys, np.array([-1]), suffixes)


def _identify_images(source: str) -> str:
    return str(Path(source).resolve()) if Path(source).exists() else source


def _claim_output_dir(out: Path, identity: dict[str, str]) -> None:
    """Record what predictions depend on; raise if the directory holds predictions that depend on something else."""
    file = out / IDENTITY_FILE
    if file.exists():
        recorded = read_json(file, fix="Choose another --out")
        for name, value in identity.items():
            if (found := recorded.get(name)) != value:
                change = "" if name == "weights" else f" ({found!r}, now {value!r})"
                raise UserError(
                    f"{out}: holds predictions with another value of {name}{change}, and different ones are never "
                    "mixed. Choose another --out, or remove it"
                )
        return
    if out.is_dir() and any(out.iterdir()):
        raise UserError(f"{out}: contains other files. Choose a new or empty directory")
    make_output_dir(out)
    write_json(file, {"format": _FORMAT, **identity})


def _write_unreadable(file: Path, messages: Sequence[str]) -> None:
    """Write a line for each image that cannot be read; without any, remove the list of an earlier run."""
    if messages:
        write_atomic(file, "".join(f"{escape_lines(message)}\n" for message in messages).encode(errors="replace"))
    else:
        file.unlink(missing_ok=True)
