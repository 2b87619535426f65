"""A method and its data: what the one needs, and what the other decides."""

from c2fmae.core.errors import UserError
from c2fmae.data import DatasetInfo
from c2fmae.methods.config import MethodConfig


def maps_needed(config: MethodConfig) -> tuple[str, ...]:
    """Return the granularities that the data has to have: those of the model, and those that guide the masks."""
    guides = getattr(config.masking.build(), "guides", ("semantic", "instance"))
    return tuple(dict.fromkeys((*config.granularities, *guides)))


def fitted(config: MethodConfig, info: DatasetInfo) -> MethodConfig:
    """Return a method with the classes, channels and normalisation of the data, where it does not name its own."""
    found = {"semantic": len(info.classes), "rgb": info.channels}
    for name in found.keys() & set(config.granularities):
        if found[name] and config.channels.get(name, found[name]) != found[name]:
            what = "classes" if name == "semantic" else "channels"
            raise UserError(
                f"method.channels.{name}: is {config.channels[name]}, but the data {info.name!r} has {found[name]} "
                f"{what}. Set it to that, or leave it out"
            )
    channels = {name: found[name] for name in config.granularities if found.get(name)} | config.channels
    statistics = {key: getattr(config, key) or getattr(info, key) for key in ("mean", "std")}
    return MethodConfig.read({**config.model_dump(), "channels": channels, **statistics}, source="method")
