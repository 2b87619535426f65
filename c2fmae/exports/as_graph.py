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
from c2fmae.exports.as_timm import timm_features
from c2fmae.exports.example_inputs import features, trial_photos
from c2fmae.exports.target import Comparison, Model, Target, at, backbone_of, compare
from c2fmae.exports.timm_vit import timm_vit
from c2fmae.models.backbones import Backbone
from c2fmae.models.classifiers import Classifier

_ONNX, _PROGRAM = "model.onnx", "model.pt2"
_ONE_FILE = 1_900_000_000  # bytes; what ONNX is written in ends at two gigabytes


class AllItSays(nn.Module):
    """A ViT that returns all it has to say of photos."""

    def __init__(self, vit: VisionTransformer) -> None:
        super().__init__()
        self.vit = vit

    def forward(self, photos: Tensor) -> tuple[Tensor, ...]:
        """Return tokens [batch, token, dim], pooled features [batch, dim], and with a head logits [batch, label]."""
        return timm_features(self.vit, photos)


def program_target(model: Model) -> Target:
    """Return the way to `torch.export.load`."""
    backbone = backbone_of(model)

    def usage(folder: str) -> str:
        return "\n".join(
            [
                "import torch",
                f"model = torch.export.load({json.dumps(f'{folder}/{_PROGRAM}')}).module()",
                f"{', '.join(_said(model))} = model(photos)",
            ]
        )

    def write(folder: Path) -> None:
        torch.export.save(_program(model), folder / _PROGRAM)

    def compare_with_program(folder: Path) -> Sequence[Comparison]:
        module = torch.export.load(folder / _PROGRAM).module()
        with torch.inference_mode():
            return [_compare(model, batch, module(_given(backbone, batch))) for batch in (1, 3)]

    return Target(
        model=model,
        tool=f"torch {torch.__version__}",
        weights=_PROGRAM,
        library="pytorch",
        write=write,
        compare=compare_with_program,
        usage=usage,
        notes=[_takes(model)],
    )


def onnx_target(model: Model) -> Target:
    """Return the way to ONNX Runtime."""
    runtime, backbone, names = _onnx(), backbone_of(model), ", ".join(_said(model))
    size = sum(each.numel() * each.itemsize for each in model.state_dict().values())

    def usage(folder: str) -> str:
        return "\n".join(
            [
                "import onnxruntime",
                f"session = onnxruntime.InferenceSession({json.dumps(f'{folder}/{_ONNX}')})",
                f'{names} = session.run(None, {{"photos": photos}})  # a NumPy array, float32',
            ]
        )

    def write(folder: Path) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about the exporter's own insides
            torch.onnx.export(
                _program(model),
                f=str(folder / _ONNX),
                input_names=["photos"],
                output_names=_said(model),
                external_data=size > _ONE_FILE,
                verbose=False,
            )

    def compare_with_runtime(folder: Path) -> Sequence[Comparison]:
        session = runtime.InferenceSession(str(folder / _ONNX), providers=["CPUExecutionProvider"])
        comparisons = []
        for batch in (1, 3):
            found = session.run(_said(model), {"photos": _given(backbone, batch).numpy()})
            comparisons.append(_compare(model, batch, [torch.from_numpy(each) for each in found]))
        return comparisons

    return Target(
        model=model,
        tool=f"ONNX Runtime {runtime.__version__}",
        weights=_ONNX,
        library="onnx",
        write=write,
        compare=compare_with_runtime,
        usage=usage,
        notes=[_takes(model)],
    )


def _said(model: Model) -> list[str]:
    return ["tokens", "pooled", *(["logits"] if isinstance(model, Classifier) else [])]


def _program(model: Model) -> Any:
    batch = torch.export.Dim("batch", min=1)
    given = _given(backbone_of(model), 2)
    with torch.no_grad():
        return torch.export.export(AllItSays(timm_vit(model)).eval(), (given,), dynamic_shapes={"photos": {0: batch}})


def _given(backbone: Backbone, batch: int) -> Tensor:
    return backbone.standardise(trial_photos(backbone.spec.image_size, backbone.spec.channels["rgb"], batch))


def _compare(model: Model, batch: int, found: Sequence[Tensor]) -> Comparison:
    backbone = backbone_of(model)
    of = f"{at(backbone.spec.image_size, model)}, {batch} at once"
    return compare(of, found, features(model, _given(backbone, batch)))


def _takes(model: Model) -> str:
    spec = backbone_of(model).spec
    height, width = spec.image_size
    *first, last = [f"`{name}`" for name in _said(model)]
    return (
        f"It takes `photos` [batch, {spec.channels['rgb']}, {height}, {width}], any number of them, "
        f"standardised as said above, and gives {', '.join(first)} and {last}."
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
