"""Text about a labelling: what makes each map, and with what."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from c2fmae.core.text import format_count
from c2fmae.labelling.config import LabelConfig
from c2fmae.labelling.context import LabellerContext
from c2fmae.labelling.protocol import Labeller

_DIGEST_LENGTH = 8
_UNSTATED = "licence not stated"


def combine_knowledge(labellers: Sequence[Labeller]) -> bool | None:
    """Return whether a map depends on anything but its image, that is, `maps_know_labels` of `dataset.json`."""
    values = [labeller.maps_know_labels for labeller in labellers]
    return True if True in values else None if None in values else False


def describe_labelling(labellers: Sequence[Labeller], config: LabelConfig, context: LabellerContext) -> list[str]:
    """Return a line for each labeller, one about the device, and a warning if maps may reveal labels."""
    knows = combine_knowledge(labellers)
    known = {True: "yes", False: "no", None: "unknown"}[knows]
    lines = [f"{' and '.join(sorted(each.granularities))} maps: {_describe_labeller(each)}" for each in labellers]
    lines.append(
        f"device {context.device}, {context.precision}, batches of {config.batch_size}, maps at stride"
        f" {config.label_stride}; maps know labels: {known}"
    )
    if knows:
        lines.append(
            "note: the maps are made from more than the pixels of an image, such as its label. Do not evaluate"
            " classification on images with these maps"
        )
    return lines


def list_licences(labellers: Sequence[Labeller]) -> list[str]:
    """Return name and licence of the weights of each labeller."""
    weights = [each for labeller in labellers for each in _find_weights(labeller.describe())]
    return [f"{each.get('name', 'weights')}: {each.get('licence') or _UNSTATED}" for each in weights]


def count_prompts(labellers: Sequence[Labeller]) -> int:
    """Return the number of prompts with which each image is searched; 0 without a detector that has them."""
    prompts = [labeller.describe().get("prompts") for labeller in labellers]
    return sum(len(each) if isinstance(each, list | tuple) else each for each in prompts if each is not None)


def _describe_labeller(labeller: Labeller) -> str:
    description = labeller.describe()
    name = description.get("labeller", type(labeller).__name__)
    items = [
        f"{each.get('name', 'weights')} (sha256 {each['sha256'][:_DIGEST_LENGTH]}, {each.get('licence') or _UNSTATED})"
        for each in _find_weights(description)
    ]
    settings = {key: value for key, value in description.items() if key not in ("labeller", "prompts")}
    items += [f"{key}={value}" for key, value in _list_settings(settings) if _is_short(value)]
    if prompts := count_prompts([labeller]):
        items.append(format_count(prompts, "prompt"))
    return f"{name}: {', '.join(items)}" if items else str(name)


def _find_weights(description: Any) -> Iterator[Mapping[str, Any]]:
    """Yield the descriptions of weights, which have a digest."""
    if isinstance(description, Mapping):
        if "sha256" in description:
            yield description
        for value in description.values():
            yield from _find_weights(value)


def _list_settings(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the settings and those in them, but for the descriptions of weights."""
    for key, value in tree.items():
        if not isinstance(value, Mapping):
            yield f"{prefix}{key}", value
        elif "sha256" not in value:
            yield from _list_settings(value, f"{prefix}{key}.")


def _is_short(value: object) -> bool:
    return isinstance(value, bool | int | float) or (isinstance(value, str) and len(value) <= 40)
