"""Conversion of the weights of images to another number of channels."""

from collections.abc import MutableMapping

from torch import Tensor

from c2fmae.core.text import format_count

RGB_EMBEDDING = "embeddings.rgb.proj.weight"


def change_image_channels(tensors: MutableMapping[str, Tensor], channels: int) -> str:
    """Convert the embedding and the heads of images to another number of channels, in place; return a note.

    Every new channel gets the mean of the old ones, scaled so that an image with equal channels has the same tokens.
    """
    weight = tensors[RGB_EMBEDDING]
    old_channels = weight.shape[1]
    mean = weight.mean(dim=1, keepdim=True)
    tensors[RGB_EMBEDDING] = (mean * old_channels / channels).repeat(1, channels, 1, 1)
    heads = [name for name in tensors if name.startswith("heads.rgb")]
    for name in heads:
        tensors[name] = tensors[name].unflatten(0, (-1, old_channels)).mean(dim=1).repeat_interleave(channels, dim=0)
    return (
        f"images have {format_count(channels, 'channel', 'channels')} instead of {old_channels}: each new channel is"
        f" embedded{' and predicted' if heads else ''} as the mean of the old ones"
    )
