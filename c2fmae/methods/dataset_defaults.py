"""Maps that a method requires in its data, and settings that are filled from the data."""

from c2fmae.config.method import MaskedConfig
from c2fmae.core.errors import UserError
from c2fmae.data import DatasetInfo
from c2fmae.masking.policies import get_required_maps


def required_granularities(config: MaskedConfig) -> tuple[str, ...]:
    """Return the granularities that the data must have: those of the model, and those that guide the masks."""
    return tuple(dict.fromkeys((*config.granularities, *get_required_maps(config.masking.build()))))


def fill_from_dataset(config: MaskedConfig, info: DatasetInfo) -> MaskedConfig:
    """Return a method in which missing channels, numbers of classes, mean and std are those of the data.

    Raise a `UserError` if the method sets another number of classes or channels than the data has.
    """
    from_dataset = {"semantic": len(info.classes), "rgb": info.channels}
    for name in from_dataset.keys() & set(config.granularities):
        if from_dataset[name] and config.channels.get(name, from_dataset[name]) != from_dataset[name]:
            unit = "classes" if name == "semantic" else "channels"
            raise UserError(
                f"method.channels.{name}: expected {from_dataset[name]}, the {unit} of {info.name!r}, got "
                f"{config.channels[name]}. Remove the setting"
            )
    channels = {name: from_dataset[name] for name in config.granularities if from_dataset.get(name)} | config.channels
    statistics = {key: getattr(config, key) or getattr(info, key) for key in ("mean", "std")}
    return MaskedConfig.from_dict({**config.model_dump(), "channels": channels, **statistics}, source="method")
