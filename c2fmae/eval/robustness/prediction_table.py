"""The table that `c2fmae predict` writes for a classifier: the most probable classes of each image."""

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from jaxtyping import UInt8
from torch import Tensor, nn

from c2fmae.core.files import read_text, write_atomic
from c2fmae.data import Scenes
from c2fmae.data.folders import FolderScenes
from c2fmae.eval.robustness.image_classifier import ImageClassifier, ImageView

TABLE_FILE = "predictions.csv"


@dataclass(frozen=True)
class PredictionTable:
    """A CSV file with a line for each image. Lines are appended, so those of a killed process remain."""

    classifier: ImageClassifier
    scenes: Scenes
    out: Path
    top_k: int

    @property
    def path(self) -> Path:
        """The file."""
        return self.out / TABLE_FILE

    @property
    def module(self) -> nn.Module:
        """The model, which is to be moved to its device."""
        return self.classifier.model

    @property
    def view(self) -> ImageView:
        """The transform of each image before it is predicted."""
        return self.classifier.view

    @property
    def digest(self) -> str:
        """A digest of the weights."""
        return self.classifier.digest

    @property
    def protocol(self) -> str:
        """What the table holds, in words."""
        return f"the {self.top_k} most probable of {len(self.classifier.labels):,} classes; {self.classifier.view}"

    def prepare(self) -> None:
        """Write the header, or remove an incomplete last line, which a killed process may leave."""
        lines = [self._header, *self._read_lines()]
        write_atomic(self.path, "".join(map(_format_line, lines)).encode())

    def list_pending(self) -> list[int]:
        """Return the rows of images without a line."""
        done = {line[0] for line in self._read_lines()}
        return [row for row, name in enumerate(self._image_names) if name not in done]

    def write(self, rows: Sequence[int], images: Sequence[UInt8[Tensor, "channels height width"]]) -> None:
        """Append the lines of images, which are given as the classifier views them."""
        device = next(self.module.parameters()).device
        with torch.inference_mode():
            probabilities = self.module(torch.stack([*images]).to(device)).float().softmax(dim=1)
        values, indices = (tensor.cpu().tolist() for tensor in probabilities.topk(self.top_k, dim=1))
        text = ""
        for row, row_values, row_indices in zip(rows, values, indices, strict=True):
            line = [self._image_names[row]]
            for value, index in zip(row_values, row_indices, strict=True):
                label = self.classifier.labels[index]
                line += [" ".join(label.name.split()) if label else "", str(index), f"{value:.6f}"]
            text += _format_line(line)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(text)

    @cached_property
    def _header(self) -> list[str]:
        names = ("class", "index", "probability")
        return ["image", *(f"{name}_{rank}" for rank in range(1, self.top_k + 1) for name in names)]

    @cached_property
    def _image_names(self) -> list[str]:
        """The path of each image in its folder; of other sources, its key."""
        if not isinstance(self.scenes, FolderScenes):
            return list(self.scenes.keys)
        return [
            f"{key}{Path(self.scenes.describe_location(row, 'rgb')).suffix}" for row, key in enumerate(self.scenes.keys)
        ]

    def _read_lines(self) -> list[list[str]]:
        """Return the complete lines of the file, without the header."""
        if not self.path.exists():
            return []
        text = read_text(self.path, fix="Restore or remove it")
        complete = text[: text.rfind("\n") + 1]
        lines = list(csv.reader(io.StringIO(complete)))
        return [line for line in lines if len(line) == len(self._header) and line != self._header]


def _format_line(values: Sequence[str]) -> str:
    stream = io.StringIO()
    csv.writer(stream, lineterminator="\n").writerow(values)
    return stream.getvalue()
