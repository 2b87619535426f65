"""`c2fmae export …`: weights for other programs."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

export = typer.Typer(
    help="Take a ViT along: to timm, transformers, safetensors, ONNX, torch.export; each is loaded back and compared.",
    no_args_is_help=True,
)

BackboneArgument = Annotated[
    str, typer.Argument(help="A run, a checkpoint, timm:NAME@FILE, or whatever else holds a ViT.")
]
ExportDirArgument = Annotated[Path, typer.Argument(help="The folder to write; nothing may be in it.")]
StepOption = Annotated[int | None, typer.Option(help="Of a run: the checkpoint of this step instead of the newest.")]
EmaOption = Annotated[bool, typer.Option("--average", help="Of a run: the weights that training.ema averaged.")]
AllowMissingOption = Annotated[
    list[str] | None, typer.Option(metavar="NAME", help="A tensor, or pattern, that may be missing; repeatable.")
]
ImageSizeOption = Annotated[
    tuple[int, int] | None,
    typer.Option("--image-size", metavar="HEIGHT WIDTH", help="Of photos, where it is not what it learned from."),
]
PartOption = Annotated[
    str | None,
    typer.Option(
        "--part", help="encoder: without a head; rgb: what sees photos alone; autoencoder: of a pre-training run, all."
    ),
]


EXPORT_SUMMARIES = {
    "timm": 'Write what `timm.create_model("local-dir:OUT", pretrained=True)` loads.',
    "hf": "Write what `transformers.ViTModel`, or of a classifier `ViTForImageClassification`, loads.",
    "safetensors": "Write tensors under our names, with a config from which they become a model again.",
    "onnx": "Write what ONNX Runtime runs: photos in, tokens, pooled features and a classifier's logits out.",
    "torch-export": "Write what `torch.export.load` loads: photos in, the same out as of ONNX.",
}


def _make_image_export(kind: str) -> Callable[..., None]:
    def run(
        source: BackboneArgument,
        out: ExportDirArgument,
        step: StepOption = None,
        use_ema: EmaOption = False,
        allow_missing: AllowMissingOption = None,
        image_size: ImageSizeOption = None,
    ) -> None:
        _run_export(kind, source, out, step=step, use_ema=use_ema, allow_missing=allow_missing, image_size=image_size)

    return run


def _export_safetensors(
    source: BackboneArgument,
    out: ExportDirArgument,
    component: PartOption = None,
    step: StepOption = None,
    use_ema: EmaOption = False,
    allow_missing: AllowMissingOption = None,
) -> None:
    _run_export("safetensors", source, out, part=component, step=step, use_ema=use_ema, allow_missing=allow_missing)


for _kind, _summary in EXPORT_SUMMARIES.items():
    export.command(_kind, help=_summary)(_export_safetensors if _kind == "safetensors" else _make_image_export(_kind))


def _run_export(kind: str, source: str, out: Path, *, allow_missing: list[str] | None, **options: Any) -> None:
    from c2fmae.exports import export as write

    exported = write(kind, source, out, allow_missing=tuple(allow_missing or ()), **options)
    print(f"read back by {exported.target.tool}:")
    for comparison in exported.comparisons:
        print(f"  {comparison}")
    print(f"largest difference: {exported.max_difference:.1e}")
    print(
        f"wrote {out}: {exported.target.weights_file} (SHA-256 {exported.sha256[:12]}…) and a card, README.md, to "
        "read and complete"
    )
    print(f"next, in Python:\n\n{exported.target.usage(str(out))}")
