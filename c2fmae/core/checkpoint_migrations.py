"""Conversion of the metadata of earlier checkpoint formats."""

from collections.abc import Mapping
from typing import Any

from c2fmae.core.granularity import GRANULARITIES


def add_kind_and_backbone(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Return metadata of format 1 with the `kind` of the run and the spec of its `backbone`.

    Format 1 left them to be inferred: a fine-tuned run was the one with a classifier, whose spec contained that of the
    backbone; a pre-trained backbone was described by the method's config. Metadata of neither is returned unchanged.
    """
    new = dict(metadata)
    class_names, normalisation = new.pop("classes", []), new.pop("normalisation", {})
    if "classifier" in new:
        classifier = dict(new["classifier"])
        backbone = classifier.pop("backbone", {})  # an empty one is an error where it is read
        return {**new, "kind": "finetuning", "backbone": backbone, "classifier": classifier}
    try:
        method = new["config"]["method"]
        channels = {
            name: method["channels"].get(name, GRANULARITIES.get(name).channels) for name in method["granularities"]
        }
        backbone = {"encoder": method["encoder"], "image_size": method["image_size"], "channels": channels}
    except (AttributeError, KeyError, TypeError):
        return dict(metadata)
    return {**new, "kind": "pretraining", "backbone": {**backbone, **normalisation, "class_names": class_names}}
