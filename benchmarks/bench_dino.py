"""Time of a step of DINO beside lightly's, with the same ViT, views and head: `python -m benchmarks.bench_dino`.

`c2fmae eval cost` measures the steps of all methods beside MAE's.
"""

import argparse
from collections.abc import Callable, Sequence
from functools import partial

import timm
import torch
from torch import Tensor, nn

from benchmarks.tables import print_costs
from c2fmae.core.loop import TrainingLoop, TrainingState
from c2fmae.core.scene import SceneBatch
from c2fmae.core.text import format_count
from c2fmae.core.training import TrainingConfig, plan_training
from c2fmae.eval.cost.speed_and_memory import time_in_turn
from c2fmae.methods import METHODS, build_method

BATCH, SIZE, LOCAL_SIZE, NUM_LOCALS, PROTOTYPES = 8, (128, 128), (64, 64), 8, 4096
OVERRIDES = (
    "encoder={name: vit_small_patch16_224, depth: 6, has_norm: true}",
    f"image_size={list(SIZE)}",
    f"views.local.size={list(LOCAL_SIZE)}",
    f"views.local.count={NUM_LOCALS}",
    f"prototypes={PROTOTYPES}",
    "held_epochs=0",
)


def prepare_own_step() -> Callable[[], object]:
    """Return a function that runs a step of our training loop, from bytes to averaged weights."""
    config = TrainingConfig(steps=1000, batch_size=BATCH, lr=1e-4, precision="fp32")
    plan = plan_training(config, num_samples=1000 * BATCH, world_size=1)
    method = build_method(METHODS.get("dino")().override(OVERRIDES), seed=0)
    loop = TrainingLoop(method.build_task(plan, seed=0), config, plan)
    state = TrainingState.create(method.model, config, method.teacher)
    state.model.train()
    second, local = (
        torch.randint(256, (BATCH, count, 3, *size), dtype=torch.uint8)
        for count, size in ((1, SIZE), (NUM_LOCALS, LOCAL_SIZE))
    )
    keys = tuple(map(str, range(BATCH)))
    scenes = SceneBatch(keys, {"rgb": second[:, 0]}, views={"second": second, "local": local})
    return partial(loop.run_step, state, state.model, scenes, {})


class LightlyDino:
    """DINO as in the guide of lightly: each view has a forward pass of its own."""

    def __init__(self, views: Sequence[Tensor]) -> None:
        from lightly.loss import DINOLoss  # type: ignore[import-untyped]
        from lightly.models.modules import DINOProjectionHead  # type: ignore[import-untyped]

        def create_branch() -> nn.Module:
            vit = timm.create_model(
                "vit_small_patch16_224", depth=6, img_size=SIZE, num_classes=0, dynamic_img_size=True
            )
            return nn.Sequential(vit, DINOProjectionHead(vit.num_features, 2048, 256, PROTOTYPES))

        self.student, self.teacher = create_branch(), create_branch().requires_grad_(False)
        self.loss, self.views = DINOLoss(PROTOTYPES), views
        trained = [parameter for parameter in self.student.parameters() if parameter.requires_grad]
        self.optimiser = torch.optim.AdamW(trained, lr=1e-4, fused=True)

    def step(self) -> None:
        """Train on views, of which the first two are large."""
        from lightly.models.utils import update_momentum  # type: ignore[import-untyped]

        update_momentum(self.student, self.teacher, m=0.996)
        targets = [self.teacher(view) for view in self.views[:2]]
        loss = self.loss(targets, [self.student(view) for view in self.views], epoch=0)
        loss.backward()
        self.optimiser.step()
        self.optimiser.zero_grad()


def main() -> None:
    """Print the times of both, in float32."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    large, small = ((BATCH, 3, *size) for size in (SIZE, LOCAL_SIZE))
    theirs = LightlyDino([torch.randn(large), torch.randn(large), *(torch.randn(small) for _ in range(NUM_LOCALS))])
    seconds = time_in_turn({"c2fmae": prepare_own_step(), "lightly": theirs.step}, rounds=arguments.rounds)
    title = f"A step of DINO with 2 + {NUM_LOCALS} views, {format_count(arguments.threads, 'thread')}"
    print_costs(title, seconds, peers=["lightly"], samples=BATCH)


if __name__ == "__main__":
    main()
