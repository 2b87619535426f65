"""The names that an open-vocabulary detector searches for in an image.

The name of a label is its `prompt` in dataset.json, or that of its WordNet id, or its own name.
"""

import hashlib
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from c2fmae.core.errors import UserError, did_you_mean
from c2fmae.core.files import read_text
from c2fmae.core.labels import LabelInfo
from c2fmae.data.info import DatasetInfo
from c2fmae.data.label_spaces import COCO_PANOPTIC
from c2fmae.labelling.wordnet_names import name_wnid, split_names

NAME_SETS = ("things", "everyday", "own", "own+things", "labels")

EVERYDAY = split_names(
    """person, dog, cat, horse, cow, sheep, bear, monkey, big cat, rodent, rabbit, bird, duck, fish, shark,
        whale, snake, lizard, turtle, frog, crab, insect, butterfly, spider, snail, animal, car, truck, bus, train,
        airplane, boat, ship, bicycle, motorcycle, food, fruit, vegetable, mushroom, dish, drink, flower, tree, plant,
        musical instrument, tool, weapon, machine, clothing, hat, shoe, bag, ball, toy, furniture, chair, table, lamp,
        container, bottle, cup, bowl, box, book, clock, telephone, computer, screen, camera, kitchen appliance, sign,
        building, tower, bridge, fence, fountain"""
)
"""General words that cover the labels of ImageNet and the objects of most images. They are the same for all images."""


@dataclass(frozen=True)
class ImageNames:
    """The names to search for in each image."""

    common: tuple[str, ...] = ()
    """Names for all images."""
    by_label: tuple[str | None, ...] = ()
    """A further name for the images with each label; empty if names do not depend on labels."""

    @property
    def know_labels(self) -> bool:
        """Whether the names of an image depend on its label."""
        return bool(self.by_label)

    def list_names(self, label: int | None) -> tuple[str, ...]:
        """Return the names for an image with a label: its own first, then the common ones."""
        has_name = label is not None and 0 <= label < len(self.by_label)
        own = self.by_label[label] if has_name and label is not None else None
        return self.common if own is None else (own, *(name for name in self.common if name != own))

    def list_some(self) -> tuple[str, ...]:
        """Return the names of one image, for descriptions: of one with the first label if names depend on labels."""
        return self.list_names(0 if self.know_labels else None)

    def list_all(self) -> tuple[str, ...]:
        """Return the names of all images, each once."""
        return tuple(dict.fromkeys((*self.common, *(name for name in self.by_label if name is not None))))

    def compute_digest(self) -> str:
        """Return the SHA-256 of all names."""
        return hashlib.sha256(repr((self.common, self.by_label)).encode()).hexdigest()


def resolve_names(names: str, info: DatasetInfo) -> ImageNames:
    """Return the names of an option: one of `NAME_SETS`, or a text file with a name on each line."""
    things = tuple(entry.name for entry in COCO_PANOPTIC.classes if entry.is_thing)
    match names:
        case "things":
            return ImageNames(common=things)
        case "everyday":
            return ImageNames(common=EVERYDAY)
        case "own":
            return ImageNames(by_label=_name_labels(names, info.labels))
        case "own+things":
            return ImageNames(common=things, by_label=_name_labels(names, info.labels))
        case "labels":
            return ImageNames(common=tuple(name for name in _name_labels(names, info.labels) if name is not None))
    return ImageNames(common=_read_names(names))


def describe_names(names: ImageNames, option: str) -> dict[str, Any]:
    """Return what the maps of an image depend on, for names that an option such as `things` gave."""
    return {
        "names": option if option in NAME_SETS else "file",
        "num_names": len(names.list_some()),
        "names_sha256": names.compute_digest(),
    }


def clean_name(name: str) -> str:
    """Return a name in the form of a prompt: in lower case, without the marks that end a phrase.

    >>> clean_name("St. Bernard\\n(dog?)")
    'st bernard (dog )'
    """
    text = unicodedata.normalize("NFKC", name).lower()  # first, because it makes full stops of other characters
    return " ".join(text.replace(".", " ").replace("?", " ").split())


def name_label(label: LabelInfo) -> str:
    """Return the prompt for a label."""
    prompt = (label.model_extra or {}).get("prompt")
    if prompt is not None:
        if not isinstance(prompt, str):
            raise UserError(f"dataset.json: labels: the prompt of {label.name!r} is no text. Write a name")
        return prompt
    if label.wnid is not None and (name := name_wnid(label.wnid)):
        return name
    return label.name.replace("_", " ")


def _name_labels(names: str, labels: Sequence[LabelInfo | None]) -> tuple[str | None, ...]:
    if not any(labels):
        raise UserError(
            f"--names {names}: needs labels with names, but the data has none. Use --names things, or everyday"
        )
    prompts: list[str | None] = []
    for label in labels:
        prompt = None if label is None else clean_name(name_label(label))
        if label is not None and not prompt:
            raise UserError(
                f"--names {names}: nothing is left of the name of the label {label.name!r}. Add a `prompt` to its entry"
                " in dataset.json"
            )
        if label is not None and prompt in prompts:
            first = labels[prompts.index(prompt)]
            raise UserError(
                f"--names {names}: the labels {_describe_label(first)} and {_describe_label(label)} have the same name"
                f" {prompt!r}. Add a `prompt` to one of their entries in dataset.json"
            )
        prompts.append(prompt)
    return tuple(prompts)


def _describe_label(label: LabelInfo | None) -> str:
    assert label is not None
    return f"{label.name!r}" + (f" ({label.wnid})" if label.wnid else "")


def _read_names(path: str) -> tuple[str, ...]:
    if not Path(path).exists():
        hint = did_you_mean(path, NAME_SETS)
        raise UserError(
            f"--names {path}: is neither {', '.join(NAME_SETS)} nor a file with a name on each line."
            f"{f' {hint}' if hint else ''}"
        )
    names: dict[str, int] = {}
    for number, line in enumerate(read_text(path).splitlines(), start=1):
        if not line.strip():
            continue
        name = clean_name(line)
        if not name:
            raise UserError(f"{path}: line {number}: nothing is left of the name {line.strip()!r}. Remove the line")
        if name in names:
            raise UserError(f"{path}: lines {names[name]} and {number} are the same name {name!r}. Remove one")
        names[name] = number
    if not names:
        raise UserError(f"{path}: has no names. Write one on each line")
    return tuple(names)
