"""With `training.compile=blocks`, the blocks of the student and of the teacher are compiled once."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from c2fmae.config.pretrain import PretrainConfig
from c2fmae.core.distributed import World
from c2fmae.core.loop import TrainingLoop, TrainingState
from c2fmae.core.training import CompiledParts, TrainingConfig
from c2fmae.methods import METHODS
from c2fmae.pretrain import build_pretraining
from tests.methods.tiny_branches import ENCODER, TINY

pytestmark = [
    pytest.mark.compile,
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor"),  # torch reads it, and hides the warning
]


@pytest.fixture(autouse=True)
def restored_settings() -> Iterator[None]:
    """Restore what compilation sets for the whole process."""
    limit, optimize_ddp = torch._dynamo.config.recompile_limit, torch._dynamo.config.optimize_ddp
    with torch._dynamo.config.patch(recompile_limit=limit, optimize_ddp=optimize_ddp):
        torch._dynamo.reset()
        yield
    torch._dynamo.reset()


def train(compiled_parts: CompiledParts) -> Iterator[float]:
    """Yield the losses of steps of AttMask."""
    method = METHODS.get("attmask")().override([*ENCODER, *TINY["attmask"]])
    training = TrainingConfig(
        steps=2, batch_size=4, lr=1e-3, warmup_steps=0, precision="fp32", compile=compiled_parts, device="cpu"
    )
    data = ["data.train={name: generated, options: {size: 32, length: 8}}", "data.workers=0"]
    experiment = build_pretraining(PretrainConfig(method=method, training=training).override(data), World())
    state = TrainingState.create(experiment.model, training, experiment.teacher)
    loop = TrainingLoop(experiment.task, training, experiment.plan)
    with experiment.open_batches(0) as batches:
        for report in loop.run(state, batches):
            yield report.values["loss"]


def test_student_and_teacher_have_one_graph_for_each_size_of_their_views(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    tokens: list[int] = []

    def record(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Any:
        tokens.extend(x.shape[1] for x in inputs if x.ndim == 3 and x.shape[0] == 8)
        return graph.forward

    expected = list(train("off"))
    monkeypatch.setenv("C2FMAE_CACHE", str(tmp_path))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "unused")
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=record))
    steps = train("blocks")
    losses = [next(steps)]
    assert sorted(tokens) == [5, 17, 17]  # the student's of local and of large views, and the teacher's
    losses += steps
    assert len(tokens) == 3
    assert losses == pytest.approx(expected, rel=1e-5)
