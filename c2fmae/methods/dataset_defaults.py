"""Settings of a method that are filled from the data."""

from typing import TypeVar

from c2fmae.config.method import MethodConfig
from c2fmae.core.errors import UserError
from c2fmae.data import DatasetInfo

C = TypeVar("C", bound=MethodConfig)


def fill_from_dataset(config: C, info: DatasetInfo) -> C:
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
    return type(config).from_dict({**config.model_dump(), "channels": channels, **statistics}, source="method")
