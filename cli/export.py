"""`c2fmae export …`: weights for other programs."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

export = typer.Typer(
    help="Take a ViT along: to timm, transformers, safetensors, ONNX, torch.export; each is loaded back and compared.",
    no_args_is_help=True,
)

Source = Annotated[str, typer.Argument(help="A run, a checkpoint, timm:NAME@FILE, or whatever else holds a ViT.")]
Out = Annotated[Path, typer.Argument(help="The folder to write; nothing may be in it.")]
Step = Annotated[int | None, typer.Option(help="Of a run: the checkpoint of this step instead of the newest.")]
Average = Annotated[bool, typer.Option("--average", help="Of a run: the weights that training.ema averaged.")]
AllowMissing = Annotated[
    list[str] | None, typer.Option(metavar="NAME", help="A tensor, or pattern, that may be missing; repeatable.")
]
Size = Annotated[
    tuple[int, int] | None,
    typer.Option("--image-size", metavar="HEIGHT WIDTH", help="Of photos, where it is not what it learned from."),
]
Part = Annotated[
    str | None,
    typer.Option(help="encoder: without a head; rgb: what sees photos alone; autoencoder: of a pre-training run, all."),
]


HELP = {
    "timm": 'Write what `timm.create_model("local-dir:OUT", pretrained=True)` loads.',
    "hf": "Write what `transformers.ViTModel`, or of a classifier `ViTForImageClassification`, loads.",
    "safetensors": "Write tensors under our names, with a config from which they become a model again.",
    "onnx": "Write what ONNX Runtime runs: photos in, tokens, pooled features and a classifier's logits out.",
    "torch-export": "Write what `torch.export.load` loads: photos in, the same out as of ONNX.",
}


def _of_photos(kind: str) -> Callable[..., None]:
    def run(
        source: Source,
        out: Out,
        step: Step = None,
        average: Average = False,
        allow_missing: AllowMissing = None,
        image_size: Size = None,
    ) -> None:
        _export(kind, source, out, step=step, average=average, allow_missing=allow_missing, image_size=image_size)

    return run


def _safetensors(
    source: Source,
    out: Out,
    part: Part = None,
    step: Step = None,
    average: Average = False,
    allow_missing: AllowMissing = None,
) -> None:
    _export("safetensors", source, out, part=part, step=step, average=average, allow_missing=allow_missing)


for _kind, _summary in HELP.items():
    export.command(_kind, help=_summary)(_safetensors if _kind == "safetensors" else _of_photos(_kind))


def _export(kind: str, source: str, out: Path, *, allow_missing: list[str] | None, **options: Any) -> None:
    from c2fmae.exports import export as write

    done = write(kind, source, out, allow_missing=tuple(allow_missing or ()), **options)
    print(f"read back by {done.target.tool}:")
    for comparison in done.comparisons:
        print(f"  {comparison}")
    print(f"largest difference: {done.difference:.1e}")
    print(
        f"wrote {out}: {done.target.weights} (SHA-256 {done.sha256[:12]}…) and a card, README.md, to read and complete"
    )
    print(f"next, in Python:\n\n{done.target.usage(str(out))}")
