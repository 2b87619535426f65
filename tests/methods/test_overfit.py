"""Every method can overfit eight scenes from their visible patches."""

import pytest
import torch
from torch import Tensor

from c2fmae.core.granularity import IGNORE
from c2fmae.core.scene import SceneBatch
from c2fmae.data import CentralView, open_scenes
from c2fmae.methods import METHODS, build_method

pytestmark = [pytest.mark.numeric, pytest.mark.unchecked]

NUM_SCENES = 8


def generate_scenes(side: int) -> SceneBatch:
    source, view = (
        open_scenes("generated", size=side, length=NUM_SCENES),
        CentralView(size=(side, side), label_stride=4),
    )
    return SceneBatch.stack([view(source[index]) for index in range(NUM_SCENES)])


@pytest.mark.parametrize(("name", "side", "steps"), [("c2fmae", 64, 180), ("mae", 32, 120), ("multimae", 32, 150)])
def test_every_method_overfits_eight_scenes(name: str, side: int, steps: int) -> None:
    small = [
        "encoder.name=test_vit",
        "decoder.options.dim=64",
        "decoder.options.num_heads=4",
        "decoder.options.depth=1",
    ]
    method = build_method(METHODS.get(name)().override([*small, f"image_size=[{side}, {side}]"]))
    scenes = generate_scenes(side)
    maps = method.prepare_inputs(scenes)
    masks = method.sample_masks(scenes, progress=0.4, generator=torch.Generator().manual_seed(0))
    optimiser = torch.optim.AdamW(method.model.parameters(), lr=3e-3, betas=(0.9, 0.95))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: min((step + 1) / 20, 1 - step / steps))
    history: list[dict[str, Tensor]] = []
    for _ in range(steps):
        optimiser.zero_grad()
        loss = method.compute_loss(method.model(maps, masks), maps, masks)
        loss.total.backward()
        optimiser.step()
        schedule.step()
        history.append(loss.terms)

    assert list(history[0]) == list(method.objectives)
    for head, first in history[0].items():
        assert history[-1][head] <= 0.1 * first

    # The predictions depend on the scene: those of one scene have a higher error on the next.
    with torch.no_grad():
        predictions = {head: values.roll(1, 0) for head, values in method.model(maps, masks).items()}
    for head, error in method.compute_loss(predictions, maps, masks).terms.items():
        assert error > 5 * history[-1][head]

    predicted = method.predict(scenes, masks)
    for head in predicted.maps.keys() & {"semantic", "instance"}:
        labelled = scenes.maps[head] != IGNORE
        assert (predicted.maps[head] == scenes.maps[head])[labelled].float().mean() > 0.95
