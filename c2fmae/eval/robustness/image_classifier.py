"""A classifier as robustness takes it: whose classes are known, with its own way of looking at a photo."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from c2fmae.core.errors import UserError
from c2fmae.core.labels import LabelInfo
from c2fmae.core.pixels import standardise
from c2fmae.core.scene import Scene
from c2fmae.core.weight_file import read_weight_file
from c2fmae.data import CentralView
from c2fmae.data.geometry import CropBox, resized_crop_image
from c2fmae.eval.cache import compute_module_digest, compute_weights_digest
from c2fmae.models.backbones.hugging_face_reader import read_hugging_face_config
from c2fmae.models.backbones.timm_reader import TIMM_PREFIX, parse_timm_labels
from c2fmae.models.classifiers import Classifier, imagenet_labels, load_classifier

_TIMM_LOCAL_PREFIX = "local-dir:"


@runtime_checkable
class ImageView(Protocol):
    """What a classifier is shown of a photo; views that show the same are equal, and are made once for all."""

    def __call__(self, image: UInt8[Tensor, "3 height width"], /) -> UInt8[Tensor, "3 rows columns"]:
        """Make it."""
        ...

    @property
    def identity(self) -> dict[str, Any]:
        """Everything that the view depends on, for JSON."""
        ...

    def __hash__(self) -> int: ...

    def __str__(self) -> str: ...


@dataclass(frozen=True)
class CentralImageView:
    """The central part, as fine-tuning's own test takes it."""

    view: CentralView

    def __call__(self, image: UInt8[Tensor, "3 height width"]) -> UInt8[Tensor, "3 rows columns"]:
        """Take it."""
        return self.view(Scene("", {"rgb": image})).maps["rgb"]

    @property
    def identity(self) -> dict[str, Any]:
        """Everything that the view depends on, for JSON."""
        return {"kind": "central", "size": self.view.size, "crop": self.view.crop}

    def __str__(self) -> str:
        height, width = self.view.size
        part = "the largest central part" if self.view.crop == 1 else f"the central {100 * self.view.crop:g} %"
        return f"{part} of the photo, brought to {height}×{width} bicubically"


@dataclass(frozen=True)
class UncroppedImageView:
    """The whole photo; only one that is of another size than the model's is brought to it."""

    size: tuple[int, int]

    def __call__(self, image: UInt8[Tensor, "3 height width"]) -> UInt8[Tensor, "3 rows columns"]:
        """Take it."""
        return resized_crop_image(image, CropBox(0, 0, *image.shape[1:]), self.size)

    @property
    def identity(self) -> dict[str, Any]:
        """Everything that the view depends on, for JSON."""
        return {"kind": "uncropped", "size": self.size}

    def __str__(self) -> str:
        return (
            f"photos as they are, without resizing or cropping; others than {self.size[0]}×{self.size[1]} bicubically"
        )


@dataclass(frozen=True)
class TimmImageView:
    """What timm shows a model of its own in evaluation."""

    data_config: tuple[tuple[str, Any], ...]
    """Of data, as timm resolves it."""

    @cached_property
    def _transform(self) -> Any:
        from timm.data.transforms_factory import create_transform

        return create_transform(
            **dict(self.data_config), is_training=False, use_prefetcher=True
        )  # bytes come out of it

    def __call__(self, image: UInt8[Tensor, "3 height width"]) -> UInt8[Tensor, "3 rows columns"]:
        """Take it."""
        from PIL import Image

        return self._transform(Image.fromarray(image.permute(1, 2, 0).numpy()))  # type: ignore[no-any-return]

    @property
    def identity(self) -> dict[str, Any]:
        """Everything that the view depends on, for JSON."""
        return {"kind": "timm", **dict(self.data_config)}

    def __str__(self) -> str:
        config = dict(self.data_config)
        size = "×".join(map(str, config["input_size"][1:]))
        return f"timm's own: {size}, crop {config['crop_pct']:g} ({config['crop_mode']}), {config['interpolation']}"


class NormalisedModel(nn.Module):
    """A model that takes photos as bytes."""

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
    """A classifier among others."""

    source: str
    labels: tuple[LabelInfo | None, ...]
    """By index of the logit."""
    view: ImageView
    model: nn.Module
    """Of photos as bytes, on its device."""
    image_size: tuple[int, int]
    """Height and width of the photos that it takes."""
    digest: str
    """What tells its weights, its classes and its view from others'."""
    load_report: str
    """What was loaded."""


def load_image_classifier(source: str, *, step: int | None = None, use_ema: bool = False) -> ImageClassifier:
    """Return the classifier of a source: one of ours, or any of timm's, which looks at photos as timm shows them.

    timm's are `timm:NAME`, `timm:NAME@FILE`, and folders as timm saves them; `step` and `use_ema` choose a run's
    checkpoint and its averaged weights.
    """
    if source.startswith(TIMM_PREFIX):
        name, _, file = source.removeprefix(TIMM_PREFIX).partition("@")
        return _load_timm_classifier(source, name, Path(file) if file else None)
    folder = Path(source)
    if (folder / "config.json").is_file() and not (folder / "config.yaml").exists() and _is_timm_folder(folder):
        return _load_timm_classifier(source, f"{_TIMM_LOCAL_PREFIX}{folder}", folder)
    return wrap_classifier(source, load_classifier(source, step=step, use_ema=use_ema))


def wrap_classifier(source: str, classifier: Classifier) -> ImageClassifier:
    """Return a classifier of ours, which is shown photos as in its own test, without any maps."""
    spec = classifier.spec
    if "rgb" not in spec.backbone.channels:
        raise UserError(f"{source}: takes no photos, and there is nothing else in these sets. Give one that does")
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
    # Weights that are at hand are read by us: nothing is unpickled that could run code.
    overlay = {"state_dict": weight_file.tensors, "source": "", "custom_load": False} if weight_file else None
    try:
        model: Any = timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay).eval()
    except Exception as error:  # timm's, torch's, and the network's
        reason = " ".join(str(error).split())
        hint = "" if weight_file else f". With a file of its weights at hand, give timm:{name}@FILE"
        raise UserError(f"{source}: cannot be made by timm: {reason}{hint}") from error
    config = dict(model.pretrained_cfg)
    data_config: dict[str, Any] = resolve_data_config(model=model)  # type: ignore[no-untyped-call]
    labels = _read_timm_labels(source, model.num_classes, config)
    digest = compute_module_digest(
        model, f"{config.get('architecture')}{sorted(data_config.items())}{labels}{_describe_architecture(model)}"
    )
    notes = "".join(f"\n{note}" for note in weight_file.notes) if weight_file else ""
    load_report = f"{source}: {config.get('architecture')}, all tensors loaded by timm{notes}"
    normalised_model = NormalisedModel(model, data_config["mean"], data_config["std"]).eval()
    size = (data_config["input_size"][1], data_config["input_size"][2])
    return ImageClassifier(
        source, labels, TimmImageView(_hashable(data_config)), normalised_model, size, digest, load_report
    )


def _describe_architecture(model: nn.Module) -> str:
    """Say of each module what no tensor tells, such as pooling, numbers of heads, strides: all its plain attributes."""
    plain_types = (bool, int, float, str)
    lines = []
    for name, module in model.named_modules():
        for key, value in sorted(vars(module).items()):
            is_plain = all(isinstance(each, plain_types) for each in (value if isinstance(value, tuple) else (value,)))
            if is_plain and not key.startswith("_") and key != "training":
                lines.append(f"{name}.{key}={value!r}")
        lines.append(f"{name}: {type(module).__name__}")
    return "\n".join(lines)


def _read_timm_labels(source: str, num_classes: int, config: Mapping[str, Any]) -> tuple[LabelInfo | None, ...]:
    """Return what timm says of a model's classes; ImageNet's, where it says nothing and there are a thousand."""
    labels = parse_timm_labels(config.get("label_names"), config.get("label_descriptions"))
    if labels and len(labels) == num_classes:
        return tuple(labels)
    if num_classes == len(imagenet_labels()):
        return imagenet_labels()
    raise UserError(
        f"{source}: does not say which its {num_classes} classes are. Give a folder as timm saves it, whose "
        "config.json has label_names: WordNet ids, or names, by class"
    )


def _hashable(data: Mapping[str, Any]) -> tuple[tuple[str, Any], ...]:
    return tuple((name, tuple(each) if isinstance(each, list) else each) for name, each in sorted(data.items()))


def _is_timm_folder(folder: Path) -> bool:
    return "architecture" in read_hugging_face_config(folder)
