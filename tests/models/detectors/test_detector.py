import pytest
import torch

from tests.models.detectors.noise_detectors import draw_inputs, make_detector

LOSSES = {"objectness", "rpn_box", "class", "box", "mask"}


@pytest.mark.parametrize("counts", [[2, 0], [0, 0]])
def test_every_parameter_has_a_gradient_also_without_objects(counts: list[int]) -> None:
    detector = make_detector().train()
    losses = detector(**draw_inputs(counts))
    assert set(losses) == LOSSES
    assert all(loss.shape == (2,) and loss.isfinite().all() for loss in losses.values())
    torch.stack([*losses.values()]).sum().backward()
    assert [name for name, p in detector.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []
