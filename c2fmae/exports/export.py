"""From a source to a folder that others load: written, read back by the other tool, compared, and only then there."""

import hashlib
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from c2fmae.core.errors import RunError, UserError, unknown_name_error
from c2fmae.core.files import fsync
from c2fmae.core.run_info import is_run_or_checkpoint
from c2fmae.eval.digests import compute_weights_digest
from c2fmae.exports.as_graph import onnx_target, torch_export_target
from c2fmae.exports.as_hf import hf_target
from c2fmae.exports.as_safetensors import autoencoder_target, safetensors_target
from c2fmae.exports.as_timm import timm_target
from c2fmae.exports.card import render_card
from c2fmae.exports.provenance import WeightsProvenance, read_provenance
from c2fmae.exports.target import ExportableModel, ExportComparison, ExportTarget, get_backbone
from c2fmae.exports.timm_vit import restrict_to_rgb
from c2fmae.loading import load_run
from c2fmae.models.backbones import load_backbone
from c2fmae.models.classifiers import Classifier, load_model

EXPORT_KINDS: dict[str, Callable[[ExportableModel], ExportTarget]] = {
    "timm": timm_target,
    "hf": hf_target,
    "safetensors": safetensors_target,
    "onnx": onnx_target,
    "torch-export": torch_export_target,
}
EXPORT_PARTS = ("encoder", "rgb", "autoencoder")
CARD_FILE = "README.md"


@dataclass(frozen=True, kw_only=True)
class ExportResult:
    """What was written, and how far the other tool is from us."""

    folder: Path
    target: ExportTarget
    comparisons: Sequence[ExportComparison]
    sha256: str

    @property
    def max_difference(self) -> float:
        """The largest of those that were held to a limit."""
        return max(each.difference for each in self.comparisons if each.tolerance is not None)


def export(
    kind: str,
    source: str | Path,
    out: Path,
    *,
    part: str | None = None,
    step: int | None = None,
    average: bool = False,
    allow_missing: Sequence[str] = (),
    image_size: tuple[int, int] | None = None,
) -> ExportResult:
    """Export what `load_backbone` takes; `out` is there afterwards whole and checked, or not at all.

    A source that says what its classes are, as a fine-tuned run does, goes out as a classifier. `part` is for
    safetensors alone: the `encoder` with all its granularities and no head, what sees `rgb` alone, or a run's whole
    `autoencoder`; all others take rgb alone. The remaining settings are those of `load_backbone`.
    """
    if kind not in EXPORT_KINDS:
        raise unknown_name_error("export", kind, EXPORT_KINDS)
    if part is not None and kind != "safetensors":
        raise UserError(f"export {kind}: takes what sees photos, and no part. Leave part away, or export safetensors")
    if part is not None and part not in EXPORT_PARTS:
        raise unknown_name_error("part", part, EXPORT_PARTS)
    check_output_dir(out)
    load = load_backbone if part == "encoder" else load_model
    model = load(source, step=step, average=average, allow_missing=allow_missing, image_size=image_size)
    if part == "autoencoder":
        target = _load_autoencoder_target(source, model, step, average)
    else:
        target = EXPORT_KINDS[kind](model if kind == "safetensors" and part != "rgb" else restrict_to_rgb(model))
    provenance = read_provenance(str(source), step=step, average=average)
    # Numbers of other weights may lie beside them: of other steps, or of the same ViT untrained.
    weights = {compute_weights_digest(each) for each in (model, get_backbone(model))}
    matching_evaluations = [each for each in provenance.evaluations if each.weights in weights]
    return write_export(target, replace(provenance, evaluations=matching_evaluations), out)


def write_export(target: ExportTarget, provenance: WeightsProvenance, out: Path) -> ExportResult:
    """Write a target's files and the card, if what the other tool makes of them is what we do."""
    with _atomic_folder(out) as folder:
        target.write(folder)
        comparisons = target.compare(folder)
        if wrong := [each for each in comparisons if not each.is_within_tolerance]:
            raise RunError(
                f"{out}: is not written: {target.tool} does not give the same of it. "
                + "; ".join([*map(str, wrong), *target.notes])
            )
        with (folder / target.weights_file).open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        card = render_card(target, provenance, comparisons, sha256, out.name)
        (folder / CARD_FILE).write_text(card, encoding="utf-8")
    return ExportResult(folder=out, target=target, comparisons=comparisons, sha256=sha256)


def check_output_dir(out: Path) -> None:
    """Refuse a place where something is: an export replaces nothing."""
    if out.is_dir() and not any(out.iterdir()):
        return
    if out.exists() or out.is_symlink():
        raise UserError(f"{out}: is there already, and an export replaces nothing. Give another folder, or remove it")


def _load_autoencoder_target(
    source: str | Path, model: ExportableModel, step: int | None, average: bool
) -> ExportTarget:
    path = Path(source)
    if isinstance(model, Classifier) or not is_run_or_checkpoint(path):
        raise UserError(
            f"{source}: has no decoder: --part autoencoder is for a pre-training run or one of its checkpoints"
        )
    return autoencoder_target(load_run(path, step=step, use_ema=average).method, model)


@contextmanager
def _atomic_folder(out: Path) -> Iterator[Path]:
    """Give a folder that takes its name when all is in it; what a killed export left there goes."""
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
        raise UserError(f"{path}: cannot be written: {error.strerror or error}. Give another folder") from error
