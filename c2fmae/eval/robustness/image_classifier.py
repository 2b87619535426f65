"""Image classifiers with known classes and their own view of images: fine-tuned ones of this package, or timm's."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from c2fmae.core.crop_box import CropBox
from c2fmae.core.errors import UserError
from c2fmae.core.labels import LabelInfo
from c2fmae.core.pixels import standardise
from c2fmae.core.scene import Scene
from c2fmae.core.weight_file import read_weight_file
from c2fmae.data import CentralView
from c2fmae.data.geometry import resized_crop_image
from c2fmae.eval.cache import compute_module_digest, compute_weights_digest
from c2fmae.eval.robustness.timm_names import guess_timm_name
from c2fmae.models.backbones.hugging_face_reader import read_hugging_face_config
from c2fmae.models.backbones.mae_reader import check_plain_vit
from c2fmae.models.backbones.timm_reader import TIMM_PREFIX, parse_timm_labels
from c2fmae.models.classifiers import Classifier, imagenet_labels, load_classifier

_TIMM_LOCAL_PREFIX = "local-dir:"


@runtime_checkable
class ImageView(Protocol):
    """A transform from an image to a classifier's input. Equal views are computed once for all classifiers."""

    def __call__(self, image: UInt8[Tensor, "3 height width"], /) -> UInt8[Tensor, "3 rows columns"]:
        """Return the transformed image."""
        ...

    @property
    def identity(self) -> dict[str, Any]:
        """All settings of the view, for JSON."""
        ...

    def __hash__(self) -> int: ...

    def __str__(self) -> str: ...


@dataclass(frozen=True)
class CentralImageView:
    """The central part of an image, as in the evaluation of fine-tuning."""

    view: CentralView

    def __call__(self, image: UInt8[Tensor, "3 height width"]) -> UInt8[Tensor, "3 rows columns"]:
        """Return the transformed image."""
        return self.view(Scene("", {"rgb": image})).maps["rgb"]

    @property
    def identity(self) -> dict[str, Any]:
        """All settings of the view, for JSON."""
        return {"kind": "central", "size": self.view.size, "crop": self.view.crop}

    def __str__(self) -> str:
        height, width = self.view.size
        part = "the largest central part" if self.view.crop == 1 else f"the central {100 * self.view.crop:g} %"
        return f"{part} of the image, resized to {height}×{width} bicubically"


@dataclass(frozen=True)
class UncroppedImageView:
    """The full image, resized only if its size is not the model's."""

    size: tuple[int, int]

    def __call__(self, image: UInt8[Tensor, "3 height width"]) -> UInt8[Tensor, "3 rows columns"]:
        """Return the transformed image."""
        return resized_crop_image(image, CropBox(0, 0, *image.shape[1:]), self.size)

    @property
    def identity(self) -> dict[str, Any]:
        """All settings of the view, for JSON."""
        return {"kind": "uncropped", "size": self.size}

    def __str__(self) -> str:
        height, width = self.size
        return f"uncropped images, resized bicubically if they are not of {height}×{width}"


@dataclass(frozen=True)
class TimmImageView:
    """The transform that timm uses to evaluate a model."""

    data_config: tuple[tuple[str, Any], ...]
    """Items of the data config that timm resolves for the model."""

    @cached_property
    def _transform(self) -> Any:
        from timm.data.transforms_factory import create_transform

        # With use_prefetcher, the transform returns bytes.
        return create_transform(**dict(self.data_config), is_training=False, use_prefetcher=True)

    def __call__(self, image: UInt8[Tensor, "3 height width"]) -> UInt8[Tensor, "3 rows columns"]:
        """Return the transformed image."""
        from PIL import Image

        return self._transform(Image.fromarray(image.permute(1, 2, 0).numpy()))  # type: ignore[no-any-return]

    @property
    def identity(self) -> dict[str, Any]:
        """All settings of the view, for JSON."""
        return {"kind": "timm", **dict(self.data_config)}

    def __str__(self) -> str:
        config = dict(self.data_config)
        size = "×".join(map(str, config["input_size"][1:]))
        return (
            f"timm's transform: {size}, crop {config['crop_pct']:g} ({config['crop_mode']}), {config['interpolation']}"
        )


class NormalisedModel(nn.Module):
    """A model that standardises images of bytes itself."""

    def __init__(self, model: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.model = model
        self.register_buffer("mean", torch.tensor(mean), persistent=False)
        self.register_buffer("std", torch.tensor(std), persistent=False)

    def forward(self, images: UInt8[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch classes"]:
        """Return logits."""
        return self.model(standardise(images, self.mean, self.std))  # type: ignore[no-any-return, arg-type]


@dataclass(frozen=True)
class ImageClassifier:
    """A classifier under test."""

    source: str
    labels: tuple[LabelInfo | None, ...]
    """The class of each logit; None if unknown."""
    view: ImageView
    model: nn.Module
    """The model of images of bytes, on its device."""
    image_size: tuple[int, int]
    """Height and width of the model's input."""
    digest: str
    """A digest of weights and architecture; for timm's models, of classes and view as well."""
    load_report: str
    """Description of the loaded tensors."""


def load_image_classifier(source: str, *, step: int | None = None, use_ema: bool = False) -> ImageClassifier:
    """Return the classifier of a source: one that was fine-tuned with this package, or one of timm with its transform.

    timm's are `timm:NAME`, `timm:NAME@FILE`, and folders that timm has saved. For a run, `step` chooses the checkpoint,
    and `use_ema` its averaged weights.
    """
    if source.startswith(TIMM_PREFIX):
        name, _, file = source.removeprefix(TIMM_PREFIX).partition("@")
        return _load_timm_classifier(source, name, Path(file) if file else None)
    folder = Path(source)
    if (folder / "config.json").is_file() and not (folder / "config.yaml").exists() and _is_timm_folder(folder):
        return _load_timm_classifier(source, f"{_TIMM_LOCAL_PREFIX}{folder}", folder)
    try:
        classifier = load_classifier(source, step=step, use_ema=use_ema)
    except UserError as error:
        if Path(source).is_file() and (suggestion := _suggest_timm_source(source)):
            raise UserError(f"{str(error).rstrip('.')}. {suggestion}") from error
        raise
    return wrap_classifier(source, classifier)


def _suggest_timm_source(file: str) -> str:
    """Return a hint to load a file as a timm model; empty if it holds a plain ViT, which has other problems."""
    tensors = read_weight_file(Path(file)).tensors
    try:
        check_plain_vit(file, tensors)
    except UserError:
        if name := guess_timm_name(tensors):
            return f"Use timm:{name}@{file}, which has the same tensors"
        return f"If timm has the model, use timm:NAME@{file}"
    return ""


def wrap_classifier(source: str, classifier: Classifier) -> ImageClassifier:
    """Return a classifier of this package as one of images alone, with the view of its own evaluation."""
    spec = classifier.spec
    if "rgb" not in spec.backbone.channels:
        channels = ", ".join(spec.backbone.channels)
        raise UserError(
            f"{source}: is not a classifier of images (expected a granularity 'rgb', got {channels}). Evaluate one "
            "that was fine-tuned on images"
        )
    view = CentralImageView(CentralView(size=spec.backbone.image_size, crop=spec.crop))
    model = NormalisedModel(classifier, spec.backbone.mean, spec.backbone.std).eval()
    digest = compute_weights_digest(classifier)
    return ImageClassifier(
        source, spec.labels, view, model, spec.backbone.image_size, digest, str(classifier.load_report)
    )


def _load_timm_classifier(source: str, name: str, weights_path: Path | None) -> ImageClassifier:
    import timm
    from timm.data.config import resolve_data_config

    weight_file = read_weight_file(weights_path) if weights_path is not None else None
    # Local weights are read without timm, which would unpickle files that could run code.
    overlay = {"state_dict": weight_file.tensors, "source": "", "custom_load": False} if weight_file else None
    try:
        model: Any = timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay).eval()
    except Exception as error:  # any error of timm, torch or the network
        reason = " ".join(str(error).split())
        fix = "Check the name and the file" if weight_file else f"Use timm:{name}@FILE to load a local file"
        raise UserError(f"{source}: timm cannot load the model ({reason}). {fix}") from error
    config = dict(model.pretrained_cfg)
    data_config: dict[str, Any] = resolve_data_config(model=model)  # type: ignore[no-untyped-call]
    labels = _read_timm_labels(source, model.num_classes, config)
    digest = compute_module_digest(
        model, f"{config.get('architecture')}{sorted(data_config.items())}{labels}{describe_architecture(model)}"
    )
    notes = "".join(f"\n{note}" for note in weight_file.notes) if weight_file else ""
    load_report = f"{source}: {config.get('architecture')}, all tensors loaded by timm{notes}"
    normalised_model = NormalisedModel(model, data_config["mean"], data_config["std"]).eval()
    size = (data_config["input_size"][1], data_config["input_size"][2])
    return ImageClassifier(
        source, labels, TimmImageView(_make_hashable(data_config)), normalised_model, size, digest, load_report
    )


def describe_architecture(model: nn.Module) -> str:
    """Return all plain attributes of each module, such as pooling, number of heads and strides, one per line."""
    plain_types = (bool, int, float, str)
    lines = []
    for name, module in model.named_modules():
        for key, value in sorted(vars(module).items()):
            is_plain = all(isinstance(item, plain_types) for item in (value if isinstance(value, tuple) else (value,)))
            if is_plain and not key.startswith("_") and key != "training":
                lines.append(f"{name}.{key}={value!r}")
        lines.append(f"{name}: {type(module).__name__}")
    return "\n".join(lines)


def _read_timm_labels(source: str, num_classes: int, config: Mapping[str, Any]) -> tuple[LabelInfo | None, ...]:
    """Return the classes that timm lists for a model; if it lists none and there are 1,000, those of ImageNet."""
    labels = parse_timm_labels(config.get("label_names"), config.get("label_descriptions"))
    if labels and len(labels) == num_classes:
        return tuple(labels)
    if num_classes == len(imagenet_labels()):
        return imagenet_labels()
    raise UserError(
        f"{source}: the names of its {num_classes} classes are unknown. Use a folder saved by timm, and list WordNet "
        "ids or names of the classes as label_names in its config.json"
    )


def _make_hashable(data: Mapping[str, Any]) -> tuple[tuple[str, Any], ...]:
    return tuple((name, tuple(value) if isinstance(value, list) else value) for name, value in sorted(data.items()))


def _is_timm_folder(folder: Path) -> bool:
    return "architecture" in read_hugging_face_config(folder)
