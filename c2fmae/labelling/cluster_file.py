"""Files of clusters: centroids as safetensors, with what they depend on."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxtyping import Float32
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from c2fmae.core.errors import UserError
from c2fmae.core.files import check_regular_file, write_atomic
from c2fmae.data.shard_writing import describe_plan_changes

_NAME, _KEY = "centroids", "c2fmae"


def write_clusters(path: Path, centroids: Float32[Tensor, "cluster dim"], metadata: Mapping[str, Any]) -> None:
    """Write centroids completely or not at all. `metadata` has `features` and `fit`."""
    write_atomic(path, save({_NAME: centroids.contiguous()}, {_KEY: json.dumps(metadata)}))


def read_clusters(path: Path) -> tuple[Float32[Tensor, "cluster dim"], dict[str, Any]]:
    """Return centroids and metadata. Raise a `UserError` for any other file."""
    fix = "Give a file that the option --fit wrote"
    check_regular_file(path, fix=fix)
    try:
        with safe_open(path, framework="pt") as opened:
            metadata = json.loads((opened.metadata() or {})[_KEY])
            return opened.get_tensor(_NAME), {name: dict(metadata[name]) for name in ("features", "fit")}
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path}: is not a file of clusters. {fix}") from error


def describe_cluster_changes(stored: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    """Return the differences of a part of the metadata in words, nothing if there are none.

    >>> describe_cluster_changes({"layer": 4, "grid_size": 28}, {"layer": 3, "grid_size": 28})
    'layer 4, now 3'
    """
    return "; ".join(describe_plan_changes(stored, wanted))
