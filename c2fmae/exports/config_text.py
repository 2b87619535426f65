"""What settings say, in words for a card."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any


class ConfigText:
    """What a tree of settings says at a dotted path, in words; what it does not say is empty."""

    def __init__(self, tree: Any) -> None:
        self._tree = tree

    def get(self, path: str) -> str:
        """Say what is at a path."""
        value = self._tree
        for key in path.split("."):
            value = value.get(key) if isinstance(value, Mapping) else None
        if isinstance(value, list | tuple | Mapping):
            return ", ".join(map(str, value))
        return "" if value is None else f"{value:,}" if type(value) is int else str(value)

    def list_options(self, path: str, *keys: str) -> str:
        """Return those settings of a part that are set, with their names."""
        pairs = {key.replace("_", " "): self.get(f"{path}.{key}".lstrip(".")) for key in keys}
        return ", ".join(f"{name.removesuffix('.name')} {value}" for name, value in pairs.items() if value)


def strip_folders(source: str) -> str:
    """Return a source without the folders above it, which are nobody else's business."""
    scheme, separator, file = source.partition("@")
    return f"{scheme}{separator}{Path(file).name}" if separator else Path(source).name


def summarise_pretraining(config: ConfigText) -> dict[str, str]:
    """Return what the config of a pre-training says, by what it is about."""
    return {
        **_summarise_training(config, "lr", "base_lr", "weight_decay"),
        "Recipe's source": config.get("source"),
        "Method": config.get("method.name"),
        "Granularities, coarse to fine": config.get("method.granularities"),
        "Masking": config.list_options("method.masking", "policy", "curriculum.name", "blend", "object_share"),
        "Visible patches": config.get("method.num_visible"),
        "Decoder": config.list_options("method.decoder", "name", "dim", "depth", "num_heads", "context"),
        "Started from": strip_folders(config.get("init")),
    }


def summarise_finetuning(config: ConfigText, classifier: ConfigText) -> dict[str, str]:
    """Return what the config of a fine-tuning says, by what it is about, and the spec of its classifier."""
    scratch = " with weights drawn anew" if config.get("from_scratch") == "True" else ""
    return {
        **_summarise_training(config, "lr", "base_lr", "weight_decay", "layer_decay"),
        "Fine-tuned from": f"{strip_folders(config.get('init'))}{scratch}",
        "Granularities, coarse to fine": classifier.get("backbone.channels"),
        "Trained alone": config.list_options("", "train_blocks"),
        "Regularisation": config.list_options("", "drop_path", "granularity_dropout"),
        "Mixing": config.list_options("mixing", "mixup", "cutmix", "chance", "cutmix_chance", "smoothing"),
        "Changes of photos": config.list_options("data", "scale", "rand_augment", "erasing"),
    }


def _summarise_training(config: ConfigText, *rates: str) -> dict[str, str]:
    return {
        "Data": ", ".join(strip_folders(each) for each in config.get("data.train").split(", ")),
        "Length": config.list_options("training", "epochs", "batch_size"),
        "Optimisation": config.list_options("training", *rates, "precision", "seed"),
    }
