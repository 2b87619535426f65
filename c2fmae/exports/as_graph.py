"""The computation itself, for programs without timm, or without PyTorch: torch.export's and ONNX's graphs."""

import json
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from c2fmae.core.errors import UserError
from c2fmae.exports.target import Comparison, Target, at, compare
from c2fmae.exports.trial import features, trial_photos
from c2fmae.exports.vit import timm_vit
from c2fmae.models.backbones import Backbone

_ONNX, _PROGRAM = "model.onnx", "model.pt2"
_ONE_FILE = 1_900_000_000  # bytes; what ONNX is written in ends at two gigabytes


class TokensAndPooled(nn.Module):
    """A ViT that returns all it has to say of photos."""

    def __init__(self, vit: VisionTransformer) -> None:
        super().__init__()
        self.vit = vit

    def forward(self, photos: Tensor) -> tuple[Tensor, Tensor]:
        """Return tokens [batch, token, dim] and pooled features [batch, dim]."""
        tokens = self.vit.forward_features(photos)
        return tokens, self.vit.forward_head(tokens, pre_logits=True)


def program_target(backbone: Backbone) -> Target:
    """Return the way to `torch.export.load`."""

    def usage(folder: str) -> str:
        return "\n".join(
            [
                "import torch",
                f"model = torch.export.load({json.dumps(f'{folder}/{_PROGRAM}')}).module()",
                "tokens, pooled = model(photos)",
            ]
        )

    def write(folder: Path) -> None:
        torch.export.save(_program(backbone), folder / _PROGRAM)

    def compare_with_program(folder: Path) -> Sequence[Comparison]:
        module = torch.export.load(folder / _PROGRAM).module()
        with torch.inference_mode():
            return [_compare(backbone, batch, module(_given(backbone, batch))) for batch in (1, 3)]

    return Target(
        backbone=backbone,
        tool=f"torch {torch.__version__}",
        weights=_PROGRAM,
        library="pytorch",
        write=write,
        compare=compare_with_program,
        usage=usage,
        notes=[_takes(backbone)],
    )


def onnx_target(backbone: Backbone) -> Target:
    """Return the way to ONNX Runtime."""
    runtime = _onnx()
    size = sum(each.numel() * each.itemsize for each in backbone.state_dict().values())

    def usage(folder: str) -> str:
        return "\n".join(
            [
                "import onnxruntime",
                f"session = onnxruntime.InferenceSession({json.dumps(f'{folder}/{_ONNX}')})",
                'tokens, pooled = session.run(None, {"photos": photos})  # a NumPy array, float32',
            ]
        )

    def write(folder: Path) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about the exporter's own insides
            torch.onnx.export(
                _program(backbone),
                f=str(folder / _ONNX),
                input_names=["photos"],
                output_names=["tokens", "pooled"],
                external_data=size > _ONE_FILE,
                verbose=False,
            )

    def compare_with_runtime(folder: Path) -> Sequence[Comparison]:
        session = runtime.InferenceSession(str(folder / _ONNX), providers=["CPUExecutionProvider"])
        comparisons = []
        for batch in (1, 3):
            found = session.run(["tokens", "pooled"], {"photos": _given(backbone, batch).numpy()})
            comparisons.append(_compare(backbone, batch, [torch.from_numpy(each) for each in found]))
        return comparisons

    return Target(
        backbone=backbone,
        tool=f"ONNX Runtime {runtime.__version__}",
        weights=_ONNX,
        library="onnx",
        write=write,
        compare=compare_with_runtime,
        usage=usage,
        notes=[_takes(backbone)],
    )


def _program(backbone: Backbone) -> Any:
    model = TokensAndPooled(timm_vit(backbone)).eval()
    batch = torch.export.Dim("batch", min=1)
    given = _given(backbone, 2)
    with torch.no_grad():
        return torch.export.export(model, (given,), dynamic_shapes={"photos": {0: batch}})


def _given(backbone: Backbone, batch: int) -> Tensor:
    return backbone.standardise(trial_photos(backbone.spec.image_size, backbone.spec.channels["rgb"], batch))


def _compare(backbone: Backbone, batch: int, found: Sequence[Tensor]) -> Comparison:
    of = f"{at(backbone.spec.image_size)}, {batch} at once"
    return compare(of, found, features(backbone, _given(backbone, batch)))


def _takes(backbone: Backbone) -> str:
    height, width = backbone.spec.image_size
    return (
        f"It takes `photos` [batch, {backbone.spec.channels['rgb']}, {height}, {width}], any number of them, "
        "standardised as said above, and gives `tokens` and `pooled`."
    )


def _onnx() -> Any:
    try:
        import onnx  # noqa: F401 - the exporter needs it
        import onnxruntime  # type: ignore[import-untyped]
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise UserError(
            "export onnx needs onnx, onnxscript, onnxruntime. Install: pip install 'c2fmae[onnx]'"
        ) from error
    return onnxruntime
