"""Description of runs and checkpoints: their kind, specs, config and step. No other module reads these itself."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, get_args

from c2fmae.core.checkpoint import METADATA_FILE, Checkpoint, list_checkpoints
from c2fmae.core.detector_spec import DetectorSpec
from c2fmae.core.errors import UserError
from c2fmae.core.experiment_config import RunKind
from c2fmae.core.run_dir import RunDir, find_checkpoint
from c2fmae.core.specs import BackboneSpec, ClassifierSpec, SegmenterSpec
from c2fmae.core.yaml_file import read_yaml


@dataclass(frozen=True)
class RunInfo:
    """Description of a run, or of one of its checkpoints."""

    path: Path
    """The path that was read."""
    step: int | None
    """Step of the checkpoint; None for a run without an intact checkpoint."""
    metadata: Mapping[str, Any]
    """Metadata of the checkpoint; for a run without one, `kind`, `config` and, if recorded, `backbone`."""

    @classmethod
    def from_checkpoint(cls, checkpoint: Checkpoint, path: Path) -> "RunInfo":
        """Return the description of a checkpoint that was loaded from `path`."""
        return cls(path, checkpoint.step, checkpoint.metadata)

    @property
    def predicts_patches(self) -> bool:
        """Whether a pre-training run has a decoder whose predictions can be drawn: that of masked autoencoding."""
        method = self.config.get("method")
        return isinstance(method, Mapping) and method.get("kind", "masked") == "masked"

    @cached_property
    def kind(self) -> RunKind:
        """Whether the run pre-trains an autoencoder, fine-tunes a classifier, or trains a segmenter or detector."""
        kind: RunKind = self._entry("kind")
        if kind not in get_args(RunKind):
            raise UserError(
                f"{self.path}: is a run of kind {kind!r}, which this version does not support. Upgrade c2fmae"
            )
        return kind

    @cached_property
    def config(self) -> Mapping[str, Any]:
        """The config of the run, with the keys of the version that wrote it."""
        config: Mapping[str, Any] = self._entry("config")
        return config

    @cached_property
    def backbone(self) -> BackboneSpec:
        """Spec of the backbone, with the class names of its semantic maps."""
        return BackboneSpec.from_dict(self._entry("backbone"), source=str(self.path))

    @cached_property
    def classifier(self) -> ClassifierSpec | None:
        """Spec of a fine-tuned classifier; None for another kind, and for a run without an intact checkpoint."""
        if self.kind != "finetuning" or self.step is None:
            return None
        values = {**self._entry("classifier"), "backbone": self.backbone}
        return ClassifierSpec.from_dict(values, source=str(self.path))

    @cached_property
    def segmenter(self) -> SegmenterSpec | None:
        """Spec of a trained segmenter; None for another kind, and for a run without an intact checkpoint."""
        if self.kind != "segmentation" or self.step is None:
            return None
        values = {**self._entry("segmenter"), "backbone": self.backbone}
        return SegmenterSpec.from_dict(values, source=str(self.path))

    @cached_property
    def detector(self) -> DetectorSpec | None:
        """Spec of a trained detector; None for another kind, and for a run without an intact checkpoint."""
        if self.kind != "detection" or self.step is None:
            return None
        values = {**self._entry("detector"), "backbone": self.backbone}
        return DetectorSpec.from_dict(values, source=str(self.path))

    @property
    def num_samples(self) -> int | None:
        """Number of training samples; None if it is unknown."""
        return self.metadata.get("samples")

    @property
    def run_dir(self) -> RunDir | None:
        """The run directory at the path or above it; None for a checkpoint outside of a run."""
        parent = self.path.resolve().parent
        return next((RunDir(path) for path in (self.path, parent, parent.parent) if RunDir(path).is_started), None)

    def _entry(self, key: str) -> Any:
        if key not in self.metadata:
            raise UserError(f"{self.path}: its metadata has no {key!r}. Use a run, or one of its checkpoints")
        return self.metadata[key]


def is_run_or_checkpoint(path: Path) -> bool:
    """Return whether a path is a run directory, a directory of checkpoints, or a checkpoint."""
    return RunDir(path).is_started or (path / METADATA_FILE).exists() or bool(list_checkpoints(path))


def read_run_info(path: Path, step: int | None = None) -> RunInfo:
    """Return the description of a run directory, a directory of checkpoints, or a checkpoint, without reading tensors.

    The metadata is that of the newest checkpoint in which it is intact, or of the checkpoint of `step`. Without such a
    checkpoint, a run is described by its config.yaml.
    """
    try:
        return RunInfo.from_checkpoint(find_checkpoint(path, step, with_tensors=False), path)
    except UserError:
        if step is not None or not RunDir(path).is_started:
            raise
    config = read_yaml(RunDir(path).config_path)
    is_finetuning = "mixing" in config  # in a config.yaml of version 0.1, which names no kind
    kind = config.get("kind", "finetuning" if is_finetuning else "pretraining")
    recorded = {key: config[key] for key in ("backbone",) if key in config}
    return RunInfo(path, None, {"kind": kind, "config": config, **recorded})
