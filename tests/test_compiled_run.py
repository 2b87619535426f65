"""A compiled run has one static graph, although it evaluates, draws figures, and resumes with an evaluation."""

import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch

from c2fmae.core.metric_rows import read_rows
from c2fmae.core.run_dir import RunDir
from c2fmae.methods.held_out import HeldOutEvaluator
from c2fmae.pretrain import pretrain
from c2fmae.recipes.config import load_recipe

pytestmark = [pytest.mark.compile, pytest.mark.unchecked]

SETTINGS = (
    "training.steps=4",
    "training.warmup_steps=0",
    "training.batch_size=4",
    "training.compile=model",
    "method.encoder.depth=1",
    "method.decoder.options.depth=1",
    "saving.steps=2",
    "watching.held_out_every=2",
    "watching.figures=2",
    "watching.figures_every=2",
    "data.held_out_samples=3",
    "data.workers=0",
)


@pytest.fixture(autouse=True)
def restored_limit() -> Iterator[None]:
    """Restore what compilation sets for the whole process."""
    with torch._dynamo.config.patch(recompile_limit=torch._dynamo.config.recompile_limit):
        yield


def test_a_run_with_evaluations_and_a_resume_that_begins_with_one_compiles_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    graphs: list[list[torch.Tensor]] = []

    def record(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Any:
        graphs.append(inputs)
        return graph.forward

    def interrupt(*_: object) -> NoReturn:
        raise KeyboardInterrupt

    monkeypatch.setenv("C2FMAE_CACHE", str(tmp_path))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "unused")
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=record))
    config, out = load_recipe("c2fmae-debug", SETTINGS), tmp_path / "run"
    with monkeypatch.context() as patched:
        patched.setattr(HeldOutEvaluator, "compute_losses", interrupt)
        with pytest.raises(KeyboardInterrupt):
            pretrain(config, out)
    other = Path(shutil.copytree(out, tmp_path / "other"))
    torch._dynamo.reset()  # as in a new process
    graphs.clear()
    pretrain(config, out, resume=True)
    (graph,) = graphs
    assert not any(isinstance(size, torch.SymInt) for tensor in graph for size in tensor.shape)
    pretrain(load_recipe("c2fmae-debug", [*SETTINGS, "training.compile=off"]), other, resume=True)
    assert len(graphs) == 1
    for run, changes in ((out, []), (other, ["compile model → off"])):
        assert RunDir(run).read_environment()["resumed"] == [{"step": 2, "changes": changes}]
        assert [row["step"] for row in read_rows(run / "metrics.jsonl") if "held_out/loss" in row] == [2, 4]
