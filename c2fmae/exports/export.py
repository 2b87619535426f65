"""Export of a source: write files, reload them with their library, compare outputs, then rename the directory."""

import hashlib
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from c2fmae.core.errors import RunError, UserError, unknown_name_error
from c2fmae.core.experiment_config import RunKind
from c2fmae.core.files import fsync
from c2fmae.core.run_info import is_run_or_checkpoint, read_run_info
from c2fmae.eval.cache import compute_weights_digest
from c2fmae.exports.as_graph import onnx_target, torch_export_target
from c2fmae.exports.as_hf import hf_target
from c2fmae.exports.as_mae import mae_target
from c2fmae.exports.as_mmseg import mmseg_target
from c2fmae.exports.as_safetensors import autoencoder_target, safetensors_target
from c2fmae.exports.as_timm import timm_target
from c2fmae.exports.card import render_card
from c2fmae.exports.provenance import WeightsProvenance, read_provenance
from c2fmae.exports.target import ExportableModel, ExportComparison, ExportTarget, get_backbone
from c2fmae.exports.timm_vit import restrict_to_rgb
from c2fmae.loading import load_run
from c2fmae.models.backbones import Backbone, load_backbone
from c2fmae.models.classifiers import load_model
from c2fmae.models.segmenters import Segmenter, load_segmenter

EXPORT_KINDS: dict[str, Callable[[ExportableModel], ExportTarget]] = {
    "timm": timm_target,
    "hf": hf_target,
    "safetensors": safetensors_target,
    "onnx": onnx_target,
    "torch-export": torch_export_target,
    "mae": mae_target,
    "mmseg": mmseg_target,
}
_KINDS_OF_ANY_MODEL = ("safetensors", "mae", "mmseg")
"""Kinds whose targets take models of all granularities; the others get the part for rgb."""
EXPORT_PARTS = ("encoder", "rgb", "autoencoder")
CARD_FILE = "README.md"
_BACKBONE_CAUTIONS: dict[RunKind, str] = {
    "segmentation": (
        "This is only the backbone of a segmenter, without its head and classes. For those: c2fmae export hf"
    ),
    "detection": "This is only the backbone of a detector, without its pyramid, heads and classes.",
}


@dataclass(frozen=True, kw_only=True)
class ExportResult:
    """The exported directory, and the differences between the outputs of the reloaded and the original model."""

    folder: Path
    target: ExportTarget
    comparisons: Sequence[ExportComparison]
    sha256: str

    @property
    def max_difference(self) -> float:
        """The largest difference of the comparisons that have a tolerance."""
        return max(comparison.difference for comparison in self.comparisons if comparison.tolerance is not None)


def export(
    kind: str,
    source: str | Path,
    out: Path,
    *,
    part: str | None = None,
    step: int | None = None,
    use_ema: bool = False,
    allow_missing: Sequence[str] = (),
    image_size: tuple[int, int] | None = None,
) -> ExportResult:
    """Export any source of `load_backbone` to the directory `out`; it is written only if the export is verified.

    A source with a classification head and class names, such as a fine-tuned run, is exported as a classifier; `mae`
    and `mmseg` export its backbone. Of a segmenter, `hf` exports everything and the others its backbone; of a detector,
    all export its backbone. `part` is for safetensors only: `encoder`, with all granularities and no head; `rgb`, the
    model without the other granularities; or `autoencoder`, the whole model of a run. Other formats always export the
    `rgb` part. The remaining options are those of `load_backbone`.
    """
    if kind not in EXPORT_KINDS:
        raise unknown_name_error("export", kind, EXPORT_KINDS)
    if part is not None and kind != "safetensors":
        raise UserError(
            f"export {kind}: part={part} is not supported, only safetensors has parts. Omit part, or export safetensors"
        )
    if part is not None and part not in EXPORT_PARTS:
        raise unknown_name_error("part", part, EXPORT_PARTS)
    check_output_dir(out)
    run_kind = _read_run_kind(source, step)
    model: ExportableModel
    if run_kind == "segmentation" and kind == "hf":
        if image_size is not None:
            raise UserError(f"{source}: image_size: a segmenter takes images of any size. Omit image_size")
        model = load_segmenter(source, step=step, use_ema=use_ema)
    else:
        load = load_backbone if part == "encoder" else load_model
        model = load(source, step=step, use_ema=use_ema, allow_missing=allow_missing, image_size=image_size)
    if part == "autoencoder":
        target = _load_autoencoder_target(source, model, step, use_ema)
    else:
        target = EXPORT_KINDS[kind](model if kind in _KINDS_OF_ANY_MODEL and part != "rgb" else restrict_to_rgb(model))
    if run_kind in _BACKBONE_CAUTIONS and not isinstance(model, Segmenter):
        target = replace(target, cautions=[*target.cautions, _BACKBONE_CAUTIONS[run_kind]])
    provenance = read_provenance(str(source), step=step, use_ema=use_ema)
    # The run directory may hold results of other weights: of other steps, or of the untrained ViT.
    weights = {compute_weights_digest(part) for part in (model, get_backbone(model))}
    matching_evaluations = [row for row in provenance.evaluations if row.weights in weights]
    return write_export(target, replace(provenance, evaluations=matching_evaluations), out)


def write_export(target: ExportTarget, provenance: WeightsProvenance, out: Path) -> ExportResult:
    """Write a target's files and its model card; if a comparison exceeds its tolerance, raise and write nothing."""
    with _atomic_folder(out) as folder:
        target.write(folder)
        comparisons = target.compare(folder)
        if failed := [comparison for comparison in comparisons if not comparison.is_within_tolerance]:
            raise RunError(
                f"{out}: was not written, because {target.tool} computes other outputs: "
                + "; ".join([*map(str, failed), *target.notes])
            )
        with (folder / target.weights_file).open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        card = render_card(target, provenance, comparisons, sha256, out.name)
        (folder / CARD_FILE).write_text(card, encoding="utf-8")
    return ExportResult(folder=out, target=target, comparisons=comparisons, sha256=sha256)


def check_output_dir(out: Path) -> None:
    """Raise if `out` exists and is not an empty directory: an export never overwrites files."""
    if out.is_dir() and not any(out.iterdir()):
        return
    if out.exists() or out.is_symlink():
        raise UserError(
            f"{out}: already exists, and an export never overwrites files. Choose another directory, or remove it"
        )


def _load_autoencoder_target(
    source: str | Path, model: ExportableModel, step: int | None, use_ema: bool
) -> ExportTarget:
    path = Path(source)
    if not isinstance(model, Backbone) or not is_run_or_checkpoint(path):
        raise UserError(
            f"{source}: has no decoder. Use --part autoencoder only with a pre-training run or one of its checkpoints"
        )
    return autoencoder_target(load_run(path, step=step, use_ema=use_ema).method, model)


def _read_run_kind(source: str | Path, step: int | None) -> RunKind | None:
    path = Path(source)
    return read_run_info(path, step).kind if is_run_or_checkpoint(path) else None


@contextmanager
def _atomic_folder(out: Path) -> Iterator[Path]:
    """Yield a temporary directory that is renamed to `out` at the end; one left by a killed export is removed first."""
    folder = out.absolute().with_name(f".{out.absolute().name}.unfinished")
    try:
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            yield folder
            for file in folder.iterdir():
                fsync(file)
            fsync(folder)
            check_output_dir(out)
            folder.rename(out)
            fsync(folder.parent)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
    except OSError as error:
        path = error.filename or out
        raise UserError(f"{path}: cannot be written: {error.strerror or error}. Choose another directory") from error
