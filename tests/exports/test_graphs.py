"""ViTs as graphs, which ONNX Runtime and PyTorch run without timm."""

import sys
from pathlib import Path

import pytest
import torch

from c2fmae.core.errors import UserError
from c2fmae.exports.as_graph import onnx_target, torch_export_target
from c2fmae.exports.export import write_export
from tests.exports.noise_sources import NOISE_ORIGIN, draw_noise_images, is_close, make_noise_backbone

pytestmark = [pytest.mark.compile, pytest.mark.numeric]


def test_an_exported_program_takes_any_batch_size(tmp_path: Path) -> None:
    backbone = make_noise_backbone(size=(32, 48), channels=1, keep_positions=True, pool="cls")
    done = write_export(torch_export_target(backbone), NOISE_ORIGIN, tmp_path / "out")
    assert done.max_difference < 1e-5
    model = torch.export.load(tmp_path / "out" / "model.pt2").module()
    for batch in (1, 5):
        images = backbone.standardise(draw_noise_images((32, 48), channels=1, batch=batch))
        with torch.inference_mode():
            tokens, pooled = model(images)
            assert is_close(tokens, backbone.tokens(images))
            assert is_close(pooled, backbone.pooled(images))
    assert "Input: `photos` [batch, 1, 32, 48], any batch size" in (tmp_path / "out" / "README.md").read_text()
    other = make_noise_backbone(size=(32, 48), channels=1, pool="cls")  # its positions are computed
    assert [each.is_within_tolerance for each in torch_export_target(other).compare(tmp_path / "out")] == [False, False]


def test_onnx_runtime_takes_any_batch_size(tmp_path: Path) -> None:
    import onnxruntime  # type: ignore[import-untyped]

    backbone = make_noise_backbone(size=(48, 32), has_fc_norm=True, depth=1)
    done = write_export(onnx_target(backbone), NOISE_ORIGIN, tmp_path / "out")
    assert done.max_difference < 1e-4
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"model.onnx", "README.md"}
    session = onnxruntime.InferenceSession(str(tmp_path / "out" / "model.onnx"))
    axes = [array.shape[0] for array in (*session.get_inputs(), *session.get_outputs())]
    assert axes == ["batch", "batch", "batch"]
    for batch in (1, 5):
        images = backbone.standardise(draw_noise_images((48, 32), batch=batch))
        tokens, pooled = session.run(None, {"photos": images.numpy()})
        with torch.inference_mode():
            assert is_close(torch.from_numpy(tokens), backbone.tokens(images))
            assert is_close(torch.from_numpy(pooled), backbone.pooled(images))
    other = make_noise_backbone(size=(48, 32), has_fc_norm=True, depth=1, keep_positions=True)
    assert [each.is_within_tolerance for each in onnx_target(other).compare(tmp_path / "out")] == [False, False]


def test_a_missing_onnx_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(UserError) as caught:
        onnx_target(make_noise_backbone())
    message = (
        "export onnx: needs the packages onnx, onnxscript and onnxruntime. Install them: pip install 'c2fmae[onnx]'"
    )
    assert str(caught.value) == message
