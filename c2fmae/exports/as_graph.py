"""Exports of the computation graph, for programs without timm (torch.export) or without PyTorch (ONNX)."""

import json
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from c2fmae.core.errors import UserError
from c2fmae.exports.as_timm import compute_timm_outputs
from c2fmae.exports.example_inputs import compute_outputs, example_images
from c2fmae.exports.target import (
    ExportableModel,
    ExportComparison,
    ExportTarget,
    compare_tensors,
    describe_comparison,
    get_backbone,
)
from c2fmae.exports.timm_vit import to_timm_vit
from c2fmae.models.backbones import Backbone
from c2fmae.models.classifiers import Classifier

_ONNX_FILE, _PROGRAM_FILE = "model.onnx", "model.pt2"
_INPUT_NAME = "photos"
"""The name of the graph's input, and of `ViTOutputs.forward`'s parameter: programs that run exported graphs use it."""
_MAX_SINGLE_FILE_BYTES = 1_900_000_000  # an ONNX file is a protocol buffer, which is limited to 2 GB


class ViTOutputs(nn.Module):
    """A ViT that returns all its outputs."""

    def __init__(self, vit: VisionTransformer) -> None:
        super().__init__()
        self.vit = vit

    def forward(self, photos: Tensor) -> tuple[Tensor, ...]:
        """Return tokens [batch, token, dim], pooled features [batch, dim], and with a head logits [batch, label]."""
        return compute_timm_outputs(self.vit, photos)


def torch_export_target(model: ExportableModel) -> ExportTarget:
    """Return the export for `torch.export.load`."""
    backbone = get_backbone(model)

    def usage(folder: str) -> str:
        return "\n".join(
            [
                "import torch",
                f"model = torch.export.load({json.dumps(f'{folder}/{_PROGRAM_FILE}')}).module()",
                f"{', '.join(_output_names(model))} = model(images)",
            ]
        )

    def write(folder: Path) -> None:
        torch.export.save(_export_program(model), folder / _PROGRAM_FILE)

    def compare_with_program(folder: Path) -> Sequence[ExportComparison]:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The given buffer is not writable")  # torch 2.11, of its own tensors
            module = torch.export.load(folder / _PROGRAM_FILE).module()
        with torch.inference_mode():
            return [_compare_outputs(model, batch, module(_example_input(backbone, batch))) for batch in (1, 3)]

    return ExportTarget(
        model=model,
        tool=f"torch {torch.__version__}",
        weights_file=_PROGRAM_FILE,
        library="pytorch",
        write=write,
        compare=compare_with_program,
        usage=usage,
        notes=[_describe_signature(model)],
    )


def onnx_target(model: ExportableModel) -> ExportTarget:
    """Return the export for ONNX Runtime."""
    runtime, backbone, names = _import_onnx(), get_backbone(model), ", ".join(_output_names(model))
    num_bytes = sum(tensor.numel() * tensor.itemsize for tensor in model.state_dict().values())

    def usage(folder: str) -> str:
        return "\n".join(
            [
                "import onnxruntime",
                f"session = onnxruntime.InferenceSession({json.dumps(f'{folder}/{_ONNX_FILE}')})",
                f'{names} = session.run(None, {{"{_INPUT_NAME}": images}})  # a NumPy array, float32',
            ]
        )

    def write(folder: Path) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about the internals of the exporter
            torch.onnx.export(
                _export_program(model),
                f=str(folder / _ONNX_FILE),
                input_names=[_INPUT_NAME],
                output_names=_output_names(model),
                dynamic_shapes={_INPUT_NAME: {0: torch.export.Dim("batch")}},  # names the axis, also of the outputs
                external_data=num_bytes > _MAX_SINGLE_FILE_BYTES,
                verbose=False,
            )

    def compare_with_runtime(folder: Path) -> Sequence[ExportComparison]:
        session = runtime.InferenceSession(str(folder / _ONNX_FILE), providers=["CPUExecutionProvider"])
        comparisons = []
        for batch in (1, 3):
            outputs = session.run(_output_names(model), {_INPUT_NAME: _example_input(backbone, batch).numpy()})
            comparisons.append(_compare_outputs(model, batch, [torch.from_numpy(output) for output in outputs]))
        return comparisons

    return ExportTarget(
        model=model,
        tool=f"ONNX Runtime {runtime.__version__}",
        weights_file=_ONNX_FILE,
        library="onnx",
        write=write,
        compare=compare_with_runtime,
        usage=usage,
        notes=[_describe_signature(model)],
    )


def _output_names(model: ExportableModel) -> list[str]:
    return ["tokens", "pooled", *(["logits"] if isinstance(model, Classifier) else [])]


def _export_program(model: ExportableModel) -> Any:
    batch = torch.export.Dim("batch", min=1)
    example_input = _example_input(get_backbone(model), 2)
    with torch.no_grad():
        return torch.export.export(
            ViTOutputs(to_timm_vit(model)).eval(), (example_input,), dynamic_shapes={_INPUT_NAME: {0: batch}}
        )


def _example_input(backbone: Backbone, batch: int) -> Tensor:
    return backbone.standardise(example_images(backbone.spec.image_size, backbone.spec.channels["rgb"], batch))


def _compare_outputs(model: ExportableModel, batch: int, actual: Sequence[Tensor]) -> ExportComparison:
    backbone = get_backbone(model)
    description = f"{describe_comparison(backbone.spec.image_size, model)}, batch size {batch}"
    return compare_tensors(description, actual, compute_outputs(model, _example_input(backbone, batch)))


def _describe_signature(model: ExportableModel) -> str:
    spec = get_backbone(model).spec
    height, width = spec.image_size
    *first, last = [f"`{name}`" for name in _output_names(model)]
    return (
        f"Input: `{_INPUT_NAME}` [batch, {spec.channels['rgb']}, {height}, {width}], any batch size, standardised as "
        f"above. Outputs: {', '.join(first)} and {last}."
    )


def _import_onnx() -> Any:
    try:
        import onnx  # noqa: F401 - the exporter needs it
        import onnxruntime  # type: ignore[import-untyped]
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise UserError(
            "export onnx: needs the packages onnx, onnxscript and onnxruntime. Install them: pip install 'c2fmae[onnx]'"
        ) from error
    return onnxruntime
