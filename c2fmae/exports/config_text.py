"""Options of a run's config as text for a model card."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any


def get_option(config: Any, path: str) -> Any:
    """Return the value at a dotted path of a config; None where the path does not exist."""
    for key in path.split("."):
        config = config.get(key) if isinstance(config, Mapping) else None
    return config


def option_text(config: Any, path: str) -> str:
    """Return an option as text, the items of a list separated by commas; empty for None and for a missing path."""
    value = get_option(config, path)
    if isinstance(value, list | tuple | Mapping):
        return ", ".join(map(str, value))
    return "" if value is None else f"{value:,}" if type(value) is int else str(value)


def list_options(section: Any, *paths: str) -> str:
    """Return the options of a section that are set, with their names: `epochs 5, batch size 32`."""
    pairs = {path.removesuffix(".name").replace("_", " "): option_text(section, path) for path in paths}
    return ", ".join(f"{name} {text}" for name, text in pairs.items() if text)


def choice_text(config: Any, path: str, *options: str) -> str:
    """Return the name of a choice `{name, options}` and those of its options that are set."""
    texts = [option_text(config, f"{path}.name"), list_options(get_option(config, f"{path}.options"), *options)]
    return ", ".join(text for text in texts if text)


def strip_folders(source: str) -> str:
    """Return a source without the folders above it, which may be private."""
    scheme, separator, file = source.partition("@")
    return f"{scheme}{separator}{Path(file).name}" if separator else Path(source).name


def summarise_pretraining(config: Any) -> dict[str, str]:
    """Return the rows of a card that describe a pre-training config, by title."""
    return {
        **_summarise_training(config, "lr", "base_lr", "weight_decay"),
        "Recipe's source": option_text(config, "source"),
        "Method": option_text(config, "method.name"),
        "Granularities, coarse to fine": option_text(config, "method.granularities"),
        "Masking": choice_text(config, "method.masking", "curriculum.name", "blend", "object_share"),
        "Visible patches": option_text(config, "method.num_visible"),
        "Decoder": choice_text(config, "method.decoder", "dim", "depth", "num_heads", "context"),
        "Started from": strip_folders(option_text(config, "init")),
    }


def summarise_finetuning(config: Any, granularities: Mapping[str, Any]) -> dict[str, str]:
    """Return the rows of a card that describe a fine-tuning config, by title; `granularities` are the classifier's."""
    scratch = ", from scratch" if get_option(config, "from_scratch") else ""
    mixing, data = get_option(config, "mixing"), get_option(config, "data")
    return {
        **_summarise_training(config, "lr", "base_lr", "weight_decay", "layer_decay"),
        "Fine-tuned from": f"{strip_folders(option_text(config, 'init'))}{scratch}",
        "Granularities, coarse to fine": ", ".join(granularities),
        "Trained parts": list_options(config, "train_blocks"),
        "Regularisation": list_options(config, "drop_path", "granularity_dropout"),
        "Mixing": list_options(mixing, "mixup", "cutmix", "chance", "cutmix_chance", "smoothing"),
        "Augmentation": list_options(data, "scale", "rand_augment", "erasing"),
    }


def summarise_segmentation(config: Any) -> dict[str, str]:
    """Return the rows of a card that describe the config of a segmenter's training, by title."""
    return {
        **_summarise_fine_tuning(config),
        "Head": choice_text(config, "head", "channels"),
        "Maps": list_options(config, "depths", "normed", "norm", "relative"),
    }


def summarise_detection(config: Any) -> dict[str, str]:
    """Return the rows of a card that describe the config of a detector's training, by title."""
    maps = list_options(get_option(config, "pyramid"), "channels", "norm", "depths", "strides")
    size = option_text(config, "windows.size")
    attention = [list_options(config, "relative"), f"windows of {size} patches" if size else ""]
    return {
        **_summarise_fine_tuning(config),
        "Pyramid": ", ".join(text for text in (option_text(config, "pyramid.name"), maps) if text),
        "Attention": ", ".join(text for text in attention if text),
        "Mask head": "" if get_option(config, "mask_head") else "none",
    }


def _summarise_fine_tuning(config: Any) -> dict[str, str]:
    """Return the rows of trainings of a backbone with a head."""
    scratch = ", from scratch" if get_option(config, "from_scratch") else ""
    return {
        **_summarise_training(config, "lr", "base_lr", "weight_decay", "layer_decay"),
        "Fine-tuned from": f"{strip_folders(option_text(config, 'init'))}{scratch}",
        "Trained parts": list_options(config, "train_blocks"),
        "Regularisation": list_options(config, "drop_path"),
    }


def _summarise_training(config: Any, *rates: str) -> dict[str, str]:
    training, source = get_option(config, "training"), get_option(config, "data.train")
    sources = source if isinstance(source, list | tuple) else [source]
    names = [item.get("name") if isinstance(item, Mapping) else item for item in sources]
    return {
        "Data": ", ".join(strip_folders(str(name)) for name in names if name),
        "Length": list_options(training, "epochs", "batch_size"),
        "Optimisation": list_options(training, *rates, "precision", "seed"),
    }
