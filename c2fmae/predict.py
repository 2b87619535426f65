"""Predictions of a classifier or a segmenter for a folder of images.

What is done is known from the output directory alone, so a process that was killed continues where it ended.
`predict.json` holds what predictions depend on; predictions of other weights, settings or images are never mixed.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

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
from c2fmae.eval.engine import BatchingConfig, iterate_batches
from c2fmae.eval.robustness.image_classifier import ImageClassifier, load_image_classifier
from c2fmae.eval.robustness.prediction_table import PredictionTable
from c2fmae.eval.segmentation.id_maps import IdMapFiles
from c2fmae.eval.segmentation.testing_config import TestingConfig
from c2fmae.models.segmenters import Segmenter, load_segmenter

IDENTITY_FILE, UNREADABLE_FILE = "predict.json", "unreadable.txt"
SAVED_KINDS = ("maps", "overlay")
DEFAULT_TOP_K = 5
_FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class PredictOptions:
    """What is predicted and written. Options of the other kind of model must have their defaults."""

    top_k: int | None = None
    """Number of classes of an image in the table of a classifier; by default 5."""
    save: tuple[str, ...] = ("maps",)
    """What is written for a segmenter: `maps`, which always are, and `overlay`."""
    as_scenes: bool = False
    """Add the images to the id maps, so that the output directory is a data set."""
    overrides: tuple[str, ...] = ()
    """Settings of a segmenter's test that differ from those of its run, as `key=value`."""


@dataclass(frozen=True, kw_only=True)
class PredictResult:
    """The outcome of `predict`."""

    is_segmenter: bool
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
    """Write the predictions of a classifier or segmenter for all images that have none yet.

    `images` is a folder, an image, or any other source of scenes. `batching.batch_size` is the number of images of a
    classifier, or of windows of a segmenter, in a forward pass.
    """
    if world.size > 1:
        raise UserError("predict: runs in one process. Start it without torchrun")
    scenes, problems = _open_images(images, out)
    model = _load_model(source, options, step=step, use_ema=use_ema)
    writer: PredictionTable | IdMapFiles
    if isinstance(model, ImageClassifier):
        writer = PredictionTable(model, scenes, out, min(options.top_k or DEFAULT_TOP_K, len(model.labels)))
        batch_size = batching.batch_size
    else:
        testing = _read_testing(source, step, options.overrides).model_copy(update={"batch_size": batching.batch_size})
        writer = IdMapFiles(model, scenes, out, testing, "overlay" in options.save, options.as_scenes)
        batch_size = 1  # images have different sizes
    _claim_output_dir(out, {"weights": writer.digest, "protocol": writer.protocol, "images": _identify_images(images)})
    writer.prepare()
    writer.module.to(world.device).eval()
    pending = writer.list_pending()
    batches = [pending[first : first + batch_size] for first in range(0, len(pending), batch_size)]
    broken: list[str] = []
    reader, batching = _ImageReader(scenes, writer.view), replace(batching, batch_size=batch_size)
    for _, loaded in iterate_batches(reader, batches, world, batching):
        broken += loaded.problems
        if loaded.images:
            writer.write(loaded.rows, loaded.images)
    unreadable = (*problems, *broken)
    _write_unreadable(out / UNREADABLE_FILE, unreadable)
    return PredictResult(
        is_segmenter=isinstance(model, Segmenter),
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


def _load_model(
    source: str, options: PredictOptions, *, step: int | None, use_ema: bool
) -> ImageClassifier | Segmenter:
    """Return the model of a source, after a check that the options are for its kind."""
    for kind in options.save:
        if kind not in SAVED_KINDS:
            raise unknown_name_error("output", kind, SAVED_KINDS)
    path = Path(source)
    run_kind = read_run_info(path, step).kind if is_run_or_checkpoint(path) else None
    if run_kind == "pretraining":
        raise UserError(
            f"{source}: is a pre-training run, which predicts no classes. Make a classifier of it with `c2fmae eval "
            f"finetune {source} --data D`, or a segmenter with `c2fmae eval segment {source} --data D`"
        )
    if run_kind == "segmentation":
        if options.top_k is not None:
            raise UserError(f"--top-k: is for classifiers, but {source} is a segmenter. Leave it out")
        return load_segmenter(source, step=step, use_ema=use_ema)
    classifier = load_image_classifier(source, step=step, use_ema=use_ema)
    segmenter_options = {
        "--save": "overlay" in options.save,
        "--as-scenes": options.as_scenes,
        "--set": bool(options.overrides),
    }
    if given := [option for option, is_given in segmenter_options.items() if is_given]:
        raise UserError(f"{given[0]}: is for segmenters, but {source} is a classifier. Leave it out")
    return classifier


def _read_testing(source: str, step: int | None, overrides: Iterable[str]) -> TestingConfig:
    """Return the settings of the test of a segmentation run, with some of them changed."""
    values = read_run_info(Path(source), step).config.get("testing", {})
    return TestingConfig.from_dict(values, overrides, source="predict")


def _open_images(source: str, out: Path) -> tuple[Scenes, tuple[str, ...]]:
    """Return the images of a source, and messages for those that are no samples, such as two of the same name."""
    path = Path(source)
    if path.is_file() and path.name.lower().endswith(DOTTED_IMAGE_SUFFIXES):
        return _open_image_file(path), ()
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
