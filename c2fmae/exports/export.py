"""From a source to a folder that others load: written, read back by the other tool, compared, and only then there."""

import hashlib
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from c2fmae.core.errors import RunError, UserError, unknown_name
from c2fmae.core.files import sync
from c2fmae.eval.digests import weights_digest
from c2fmae.exports.as_graph import onnx_target, program_target
from c2fmae.exports.as_hf import hf_target
from c2fmae.exports.as_safetensors import autoencoder_target, safetensors_target
from c2fmae.exports.as_timm import timm_target
from c2fmae.exports.card import card_of
from c2fmae.exports.provenance import Origin, origin_of
from c2fmae.exports.target import Comparison, Model, Target, backbone_of
from c2fmae.exports.timm_vit import rgb_alone
from c2fmae.loading import load_run
from c2fmae.models.backbones import load_backbone
from c2fmae.models.backbones.run_reader import is_run
from c2fmae.models.classifiers import Classifier, load_whole

KINDS: dict[str, Callable[[Model], Target]] = {
    "timm": timm_target,
    "hf": hf_target,
    "safetensors": safetensors_target,
    "onnx": onnx_target,
    "torch-export": program_target,
}
PARTS = ("encoder", "rgb", "autoencoder")
CARD = "README.md"


@dataclass(frozen=True, kw_only=True)
class Exported:
    """What was written, and how far the other tool is from us."""

    folder: Path
    target: Target
    comparisons: Sequence[Comparison]
    sha256: str

    @property
    def difference(self) -> float:
        """The largest of those that were held to a limit."""
        return max(each.difference for each in self.comparisons if each.limit is not None)


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
) -> Exported:
    """Export what `load_backbone` takes; `out` is there afterwards whole and checked, or not at all.

    A source that says what its classes are, as a fine-tuned run does, goes out as a classifier. `part` is for
    safetensors alone: the `encoder` with all its granularities and no head, what sees `rgb` alone, or a run's whole
    `autoencoder`; all others take rgb alone. The remaining settings are those of `load_backbone`.
    """
    if kind not in KINDS:
        raise unknown_name("export", kind, KINDS)
    if part is not None and kind != "safetensors":
        raise UserError(f"export {kind}: takes what sees photos, and no part. Leave part away, or export safetensors")
    if part is not None and part not in PARTS:
        raise unknown_name("part", part, PARTS)
    check_out(out)
    load = load_backbone if part == "encoder" else load_whole
    model = load(source, step=step, average=average, allow_missing=allow_missing, image_size=image_size)
    if part == "autoencoder":
        target = _autoencoder(source, model, step, average)
    else:
        target = KINDS[kind](model if kind == "safetensors" and part != "rgb" else rgb_alone(model))
    origin = origin_of(str(source), step=step, average=average)
    # Numbers of other weights may lie beside them: of other steps, or of the same ViT untrained.
    weights = {weights_digest(each) for each in (model, backbone_of(model))}
    own = [each for each in origin.evaluations if each.weights in weights]
    return write(target, replace(origin, evaluations=own), out)


def write(target: Target, origin: Origin, out: Path) -> Exported:
    """Write a target's files and the card, if what the other tool makes of them is what we do."""
    with _unfinished(out) as folder:
        target.write(folder)
        comparisons = target.compare(folder)
        if wrong := [each for each in comparisons if not each.is_held]:
            raise RunError(
                f"{out}: is not written: {target.tool} does not give the same of it. "
                + "; ".join([*map(str, wrong), *target.notes])
            )
        with (folder / target.weights).open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        card = card_of(target, origin, comparisons, sha256, out.name)
        (folder / CARD).write_text(card, encoding="utf-8")
    return Exported(folder=out, target=target, comparisons=comparisons, sha256=sha256)


def check_out(out: Path) -> None:
    """Refuse a place where something is: an export replaces nothing."""
    if out.is_dir() and not any(out.iterdir()):
        return
    if out.exists() or out.is_symlink():
        raise UserError(f"{out}: is there already, and an export replaces nothing. Give another folder, or remove it")


def _autoencoder(source: str | Path, model: Model, step: int | None, average: bool) -> Target:
    path = Path(source)
    if isinstance(model, Classifier) or not is_run(path):
        raise UserError(
            f"{source}: has no decoder: --part autoencoder is for a pre-training run or one of its checkpoints"
        )
    return autoencoder_target(load_run(path, step=step, average=average).method, model)


@contextmanager
def _unfinished(out: Path) -> Iterator[Path]:
    """Give a folder that takes its name when all is in it; what a killed export left there goes."""
    folder = out.absolute().with_name(f".{out.absolute().name}.unfinished")
    try:
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            yield folder
            for file in folder.iterdir():
                sync(file)
            sync(folder)
            check_out(out)
            folder.rename(out)
            sync(folder.parent)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
    except OSError as error:
        place = error.filename or out
        raise UserError(f"{place}: cannot be written: {error.strerror or error}. Give another folder") from error
