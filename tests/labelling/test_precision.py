"""The precision of forward passes, on tiny models with random weights."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import pytest
import torch

from c2fmae.labelling.context import LabellerContext
from c2fmae.labelling.protocol import LabelInput
from c2fmae.labelling.registry import build_labellers
from tests.labelling.test_grounded import draw_image

pytestmark = pytest.mark.usefixtures("no_network")


@pytest.mark.parametrize(
    ("name", "models", "precision"),
    [
        ("grounded", ("owlv2", "sam-hq"), "bf16"),
        ("grounded", ("grounding-dino", "sam2"), "bf16"),
        ("sam3", ("sam3",), "bf16"),
        ("rf-detr", ("rf-detr",), "bf16"),
        ("universal", ("eomt",), "bf16"),
        ("universal", ("eomt",), "fp32"),
    ],
)
def test_every_pass_of_a_model_has_the_precision_of_the_command(
    tiny_model: Callable[[str], Path],
    tmp_path: Path,
    name: str,
    models: Sequence[str],
    precision: Literal["fp32", "bf16"],
) -> None:
    (tmp_path / "names.txt").write_text("cat\ndog\n")
    context = LabellerContext(names=str(tmp_path / "names.txt"), precision=precision)
    spec = f"{name}:{','.join(str(tiny_model(model)) for model in models)}"
    is_reduced = list[bool]()

    def record(module: torch.nn.Module, arguments: object) -> None:
        is_reduced.append(torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") == torch.bfloat16)

    hook = torch.nn.modules.module.register_module_forward_pre_hook(record)
    try:
        options = {"universal": {}, "rf-detr": {"space": "coco"}}.get(name, {"thresholds": [0.0]})
        (labeller,) = build_labellers(None, spec, context, instances_options=options)
        labeller.label([LabelInput("a", draw_image(48, 80))], 4)
    finally:
        hook.remove()

    assert len(is_reduced) > 20
    assert set(is_reduced) == {precision == "bf16"}
