"""`c2fmae export …`: write weights for other libraries."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from c2fmae_cli.options import AllowMissingOption, BackboneSourceArgument, CheckpointStepOption, EmaOption

export = typer.Typer(
    help="Export a ViT to timm, transformers, safetensors, ONNX, torch.export, MAE, detectron2, mmdet or mmseg, and "
    "compare what is read back.",
    no_args_is_help=True,
)

ExportDirArgument = Annotated[Path, typer.Argument(metavar="OUT", help="The directory to write: new or empty.")]
ImageSizeOption = Annotated[
    tuple[int, int] | None,
    typer.Option("--image-size", metavar="HEIGHT WIDTH", help="Size of the input images; by default that of training."),
]
PartOption = Annotated[
    str | None,
    typer.Option(
        "--part",
        help="encoder: all granularities, without a head. rgb: the encoder for images only. autoencoder: everything, "
        "of a pre-training run.",
    ),
]


EXPORT_SUMMARIES = {
    "timm": 'Write a folder for `timm.create_model("local-dir:OUT", pretrained=True)`.',
    "hf": "Write a folder for `transformers.ViTModel`, of a classifier for `ViTForImageClassification`, or of a "
    "segmenter for `UperNetForSemanticSegmentation`.",
    "safetensors": "Write tensors under the names of this package, with a config to rebuild the model.",
    "onnx": "Write a graph for ONNX Runtime: images in; tokens, pooled features and a classifier's logits out.",
    "torch-export": "Write a program for `torch.export.load`: inputs and outputs as of ONNX.",
    "mae": "Write a file of weights that MAE's fine-tuning and the ViTDets of detectron2 and mmdet read.",
    "mmseg": "Write a file of weights for the `MAE` backbone of mmseg.",
}


def _make_image_export(kind: str) -> Callable[..., None]:
    def run(
        source: BackboneSourceArgument,
        out: ExportDirArgument,
        step: CheckpointStepOption = None,
        use_ema: EmaOption = False,
        allow_missing: AllowMissingOption = None,
        image_size: ImageSizeOption = None,
    ) -> None:
        _run_export(kind, source, out, step=step, use_ema=use_ema, allow_missing=allow_missing, image_size=image_size)

    return run


def _export_safetensors(
    source: BackboneSourceArgument,
    out: ExportDirArgument,
    component: PartOption = None,
    step: CheckpointStepOption = None,
    use_ema: EmaOption = False,
    allow_missing: AllowMissingOption = None,
) -> None:
    _run_export("safetensors", source, out, part=component, step=step, use_ema=use_ema, allow_missing=allow_missing)


for _kind, _summary in EXPORT_SUMMARIES.items():
    export.command(_kind, help=_summary)(_export_safetensors if _kind == "safetensors" else _make_image_export(_kind))


def _run_export(kind: str, source: str, out: Path, *, allow_missing: list[str] | None, **options: Any) -> None:
    from c2fmae.exports import export as write_export

    exported = write_export(kind, source, out, allow_missing=tuple(allow_missing or ()), **options)
    print(f"read back by {exported.target.tool}:")
    for comparison in exported.comparisons:
        print(f"  {comparison}")
    print(f"largest difference: {exported.max_difference:.1e}")
    print(
        f"wrote {out}: {exported.target.weights_file} (SHA-256 {exported.sha256[:12]}…), and README.md, a model card "
        "to complete"
    )
    for caution in exported.target.cautions:
        print(caution)
    print(f"next, in Python:\n\n{exported.target.usage(str(out))}")
