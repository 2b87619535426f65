"""Files of weights from anywhere, read without ever running what is in them."""

from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from c2fmae.core.errors import UserError


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """Return a file's tensors by name."""
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path}: cannot be read: {error}") from error
