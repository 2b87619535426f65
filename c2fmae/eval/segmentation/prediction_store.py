"""Predicted class ids of a set as PNG files, from which an interrupted test resumes and scores are recomputed."""

import logging
from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from c2fmae.core.distributed import World
from c2fmae.core.errors import UserError
from c2fmae.core.files import read_file, write_atomic
from c2fmae.data.decode import decode_ids
from c2fmae.data.encode import encode_ids
from c2fmae.eval.prediction_dir import open_prediction_dir

log = logging.getLogger(__name__)

_FORMAT = 1
_NUM_WRITERS, _MAX_PENDING = 2, 32
_PNG_LEVEL = 4  # a tenth of the time of level 9, and a few percent more bytes


@dataclass(frozen=True)
class PredictionStore:
    """A directory with one PNG of class ids for each image, at the image's size."""

    predictions_dir: Path
    identity: Mapping[str, Any]
    """Everything that predictions depend on, as JSON: weights, data and settings."""

    def open(self, world: World) -> None:
        """Delete predictions of another identity, and record this one. All processes must call this."""
        open_prediction_dir(self.predictions_dir, {"format": _FORMAT, **self.identity}, world)

    def path(self, key: str) -> Path:
        """Return the file of an image's prediction: the image's key, with `.png`."""
        if PurePosixPath(key).is_absolute() or ".." in PurePosixPath(key).parts:
            raise UserError(f"{key}: cannot be the name of a file below {self.predictions_dir}. Rename the image")
        return self.predictions_dir / f"{key}.png"

    def read(self, key: str, size: tuple[int, int] | None = None) -> UInt8[Tensor, "height width"] | None:
        """Return the prediction of an image; None if there is none, or none of this size."""
        path = self.path(key)
        if not path.exists():
            return None
        try:
            ids = decode_ids(read_file(path), str(path))
        except UserError as error:  # of a machine that lost power, for example
            log.warning("%s. The image is predicted again", str(error).rstrip("."))
            return None
        if ids.dtype != np.uint8 or size not in (None, ids.shape):
            log.warning("%s: is not the prediction of an image of %s pixels, which is predicted again", path, size)
            return None
        return torch.from_numpy(ids)

    @contextmanager
    def open_writer(self) -> "Iterator[PredictionWriter]":
        """Write predictions in the background; all of them are on the disk at the end of the block."""
        with ThreadPoolExecutor(_NUM_WRITERS) as pool:
            writer = PredictionWriter(self, pool, deque())
            yield writer
            writer.wait(0)


@dataclass(frozen=True)
class PredictionWriter:
    """Encodes and writes predictions in threads."""

    store: PredictionStore
    pool: ThreadPoolExecutor
    pending: "deque[Future[None]]"

    def write(self, key: str, ids: UInt8[Tensor, "height width"]) -> None:
        """Write the prediction of an image, completely or not at all."""
        self.wait(_MAX_PENDING)
        self.pending.append(self.pool.submit(_write_ids, self.store.path(key), ids.cpu().numpy()))

    def wait(self, max_pending: int) -> None:
        """Wait until at most `max_pending` predictions are not written yet, and raise the error of one that failed."""
        while len(self.pending) > max_pending:
            self.pending.popleft().result()


def _write_ids(path: Path, ids: UInt8[np.ndarray, "height width"]) -> None:
    write_atomic(path, encode_ids(ids, level=_PNG_LEVEL))
