"""Two sets for a probe: one whose truth it is given, and one on which it is tried."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from c2fmae.core.config import Config
from c2fmae.core.errors import UserError, did_you_mean
from c2fmae.data import CentralView, Scenes, open_scenes
from c2fmae.data.config import DataSourceOption
from c2fmae.data.digest import compute_scenes_digest
from c2fmae.models import label_stride
from c2fmae.models.backbones import Backbone

_TRAIN_NAMES, _TEST_NAMES = ("train",), ("val", "valid", "validation", "test")

_GENERATED_LENGTH_AND_SEED = {"train": (2048, 1001), "test": (1024, 1002)}
"""How many generated scenes, and from which seed, unless options say so."""


class TrainTestConfig(Config):
    """Which two sets, and how their photos are cut."""

    train: DataSourceOption | None = None
    """Scenes whose truth the probe is given: a folder, shards, a pattern of shards, or `generated`."""
    test: DataSourceOption | None = None
    """Scenes on which it is tried."""
    options: dict[str, Any] = Field({})
    """Of both sets, where they are `generated`: size, length, seed, difficulty, domain."""
    test_options: dict[str, Any] = Field({})
    """Of the test set, where it differs."""
    image_size: tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)]] | None = None
    """Height and width; those that the backbone learned from, unless given."""
    crop: Annotated[float, Field(gt=0, le=1)] = 1.0
    """How much of the photo's largest central part is taken; 224 of 256 pixels, the custom on ImageNet, is 0.875."""

    @classmethod
    def resolve_data_options(cls, data: str | None, test: str | None) -> dict[str, Any]:
        """Return where the two sets are: both in `data`, or the one there and the other in `test`."""
        if data is None:
            return {} if test is None else {"test": test}
        return find_train_test(data) if test is None else {"train": data, "test": test}

    @model_validator(mode="after")
    def _check(self) -> "TrainTestConfig":
        has_own_seed = self.train == "generated" and "seed" not in self.options
        is_different_set = has_own_seed or not self.test_options.items() <= self.options.items()
        if self.train is not None and self.train == self.test and not is_different_set:
            raise UserError(
                "test: is the training set. What a probe has been given the truth of says nothing about features; "
                "give other scenes"
            )
        return self

    def resolve_image_size(self, backbone: Backbone) -> tuple[int, int]:
        """Return the height and width of photos."""
        return self.image_size or backbone.spec.image_size

    def make_view(self, backbone: Backbone) -> CentralView:
        """Return how scenes are cut for a backbone."""
        size = self.resolve_image_size(backbone)
        for side in size:
            if side % backbone.patch:
                raise UserError(f"image_size: {side} is not divisible into patches of {backbone.patch}")
        return CentralView(size=size, crop=self.crop, label_stride=label_stride(backbone.patch))


@dataclass(frozen=True)
class OpenedSet:
    """A set of scenes, and what tells it from others."""

    scenes: Scenes
    name: str
    identity: str

    def __str__(self) -> str:
        return f"{self.name} ({len(self.scenes):,})"


def open_set(
    split: Literal["train", "test"],
    source: DataSourceOption | None,
    options: Mapping[str, Any],
    size: tuple[int, int],
    granularities: tuple[str, ...],
) -> OpenedSet:
    """Open one of the two sets."""
    if source is None:
        raise UserError(
            f"{split}: no data is given. Give --data, a folder of {_TRAIN_NAMES[0]} and {_TEST_NAMES[0]} sets"
        )
    if source == "generated":
        length, seed = _GENERATED_LENGTH_AND_SEED[split]
        options = {"size": max(size), "length": length, "seed": seed, **options}
    try:
        scenes = open_scenes(source, granularities=granularities, **options)
    except UserError as error:
        raise UserError(f"{split}: {error}") from error
    name = source if isinstance(source, str) else ", ".join(source)
    described_options = "".join(f", {key} {value}" for key, value in options.items())
    return OpenedSet(
        scenes, f"{name}{described_options}", compute_scenes_digest(scenes, f"{name}{sorted(options.items())}")
    )


def check_same_names(
    sets: tuple[OpenedSet, OpenedSet], field: Literal["label_names", "class_names"]
) -> tuple[str, ...]:
    """Return the names of labels, or of maps' classes, on which both sets must agree: numbers alone mean nothing."""
    train, test = (getattr(each.scenes.info, field) for each in sets)
    if train != test:
        kind = "labels" if field == "label_names" else "classes"
        first_difference = next(
            iter([*(name for name in test if name not in train), *(n for n in train if n not in test)]), "order"
        )
        raise UserError(
            f"test: {sets[1].name} has other {kind} than {sets[0].name}: {len(test)} and {len(train)}, and they "
            f"differ in {first_difference!r}. Give both the same names in their dataset.json"
        )
    return tuple(train)


def find_train_test(source: str) -> dict[str, str]:
    """Return where in a folder the training and the test set lie: shards `train-*.tar`, or folders of these names."""
    if source == "generated":
        return {"train": source, "test": source}
    root = Path(source)
    if not root.is_dir():
        hint = did_you_mean(source, ["generated"])
        raise UserError(
            f"{source}: is not a folder of a training and a test set. {hint or 'Name them with --data and --test'}"
        )
    return {split: _find_split(root, split, names) for split, names in (("train", _TRAIN_NAMES), ("test", _TEST_NAMES))}


def _find_split(root: Path, split: str, names: tuple[str, ...]) -> str:
    for name in names:
        if (root / name).is_dir():
            return str(root / name)
        if any(root.glob(f"{name}[-_0-9]*.tar")):
            return str(root / f"{name}[-_0-9]*.tar")
        if (root / f"{name}.tar").exists():
            return str(root / f"{name}.tar")
    flag = {"train": "--data", "test": "--test"}[split]
    raise UserError(f"{root}: has no {split} set: no folder or shards named {' or '.join(names)}. Name it with {flag}")
