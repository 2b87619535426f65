"""What settings say, in words for a card."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any


class Said:
    """What a tree of settings says at a dotted path, in words; what it does not say is empty."""

    def __init__(self, tree: Any) -> None:
        self._tree = tree

    def __call__(self, path: str) -> str:
        """Say what is at a path."""
        value = self._tree
        for key in path.split("."):
            value = value.get(key) if isinstance(value, Mapping) else None
        if isinstance(value, list | tuple | Mapping):
            return ", ".join(map(str, value))
        return "" if value is None else f"{value:,}" if type(value) is int else str(value)

    def listed(self, path: str, *keys: str) -> str:
        """Return those settings of a part that are set, with their names."""
        pairs = {key.replace("_", " "): self(f"{path}.{key}".lstrip(".")) for key in keys}
        return ", ".join(f"{name.removesuffix('.name')} {value}" for name, value in pairs.items() if value)


def file_name(source: str) -> str:
    """Return a source without the folders above it, which are nobody else's business."""
    scheme, at, file = source.partition("@")
    return f"{scheme}{at}{Path(file).name}" if at else Path(source).name


def pretraining_facts(said: Said) -> dict[str, str]:
    """Return what the config of a pre-training says, by what it is about."""
    return {
        **_training(said, "lr", "base_lr", "weight_decay"),
        "Recipe's source": said("source"),
        "Method": said("method.name"),
        "Granularities, coarse to fine": said("method.granularities"),
        "Masking": said.listed("method.masking", "policy", "curriculum.name", "blend", "object_share"),
        "Visible patches": said("method.num_visible"),
        "Decoder": said.listed("method.decoder", "name", "dim", "depth", "num_heads", "context"),
        "Started from": file_name(said("init")),
    }


def tuning_facts(said: Said, classifier: Said) -> dict[str, str]:
    """Return what the config of a fine-tuning says, by what it is about, and the spec of its classifier."""
    scratch = " with weights drawn anew" if said("from_scratch") == "True" else ""
    return {
        **_training(said, "lr", "base_lr", "weight_decay", "layer_decay"),
        "Fine-tuned from": f"{file_name(said('init'))}{scratch}",
        "Granularities, coarse to fine": classifier("backbone.channels"),
        "Trained alone": said.listed("", "train_blocks"),
        "Regularisation": said.listed("", "drop_path", "granularity_dropout"),
        "Mixing": said.listed("mixing", "mixup", "cutmix", "chance", "cutmix_chance", "smoothing"),
        "Changes of photos": said.listed("data", "scale", "rand_augment", "erasing"),
    }


def _training(said: Said, *rates: str) -> dict[str, str]:
    return {
        "Data": ", ".join(file_name(each) for each in said("data.train").split(", ")),
        "Length": said.listed("training", "epochs", "batch_size"),
        "Optimisation": said.listed("training", *rates, "precision", "seed"),
    }
