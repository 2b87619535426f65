"""Files of tensors that take long to compute: written completely or not at all, and named by what they depend on."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from c2fmae.core.errors import UserError
from c2fmae.core.files import write_atomic


def save_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write tensors from any device into one file."""
    contiguous = {name: values.cpu().contiguous() for name, values in tensors.items()}
    write_atomic(path, save(contiguous, dict(metadata) if metadata else None), is_shared=True)


def open_tensors(path: Path) -> Any:
    """Open a file for reading tensor by tensor: `get_tensor(name)`, `get_slice(name)`."""
    try:
        return safe_open(path, framework="pt")
    except (OSError, SafetensorError) as error:
        raise _unreadable(path, error) from error


def load_tensors(path: Path, names: Sequence[str]) -> list[Tensor]:
    """Return these tensors of a file."""
    opened = open_tensors(path)
    try:
        return [opened.get_tensor(name) for name in names]
    except (OSError, SafetensorError) as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> UserError:
    reason = f"cannot be read: {error}" if isinstance(error, OSError) else "is corrupted"
    return UserError(f"{path}: {reason}. Delete it; the next evaluation computes it again")
