"""What the interface of labellers promises about a result, checked for each image: labellers may be foreign code."""

import numpy as np
from jaxtyping import Integer
from torch import Tensor

from c2fmae.core.errors import RunError
from c2fmae.core.granularity import IGNORE
from c2fmae.labelling.protocol import LabelInput, Labeller, LabelResult


def check_result(result: LabelResult, labeller: Labeller, labelled: LabelInput, stride: int) -> None:
    """Raise a `RunError` that names the image if the maps of a labeller are not what its interface promises."""
    cells = tuple(-(-side // stride) for side in labelled.image.shape[1:])
    problem = ""
    if result.maps.keys() != labeller.granularities:
        problem = f"returned maps of {sorted(result.maps)} (expected {sorted(labeller.granularities)})"
    for name, ids in result.maps.items():
        if tuple(ids.shape) != cells:
            problem = f"returned a {name} map of {tuple(ids.shape)} cells (expected {cells})"
    if not problem and "semantic" in result.maps:
        used = _unique_ids(result.maps["semantic"]) - {IGNORE}
        if unknown := sorted(each for each in used if not 0 <= each < len(labeller.classes)):
            problem = f"returned the semantic id {unknown[0]} (expected ids below {len(labeller.classes)}, or {IGNORE})"
    if not problem and "instance" in result.maps:
        shown = _unique_ids(result.maps["instance"]) - {0, IGNORE}
        listed = sorted(each.id for each in result.objects)
        if sorted(shown) != listed:
            problem = f"returned objects with the ids {listed[:5]}…, but {sorted(shown)[:5]}… are in the instance map"
    if problem:
        raise RunError(f"image {labelled.key!r}: {name_labeller(labeller)} {problem}. Fix the labeller")


def _unique_ids(ids: Integer[Tensor, "rows columns"]) -> set[int]:
    return set(np.unique(ids.numpy()).tolist())


def name_labeller(labeller: Labeller) -> str:
    """Return the name of a labeller for messages."""
    described = labeller.describe().get("labeller")
    return f"the labeller {described if isinstance(described, str) else type(labeller).__name__}"
