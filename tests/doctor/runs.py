"""Small run directories as they are after some steps, and damage to them."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from c2fmae.core.checkpoint import Checkpoint, save_checkpoint
from c2fmae.core.environment import collect_environment
from c2fmae.core.metric_rows import RowWriter
from c2fmae.core.run_dir import RunDir
from c2fmae.recipes.config import load_recipe

LAST_STEP = 120


def make_run(
    path: Path,
    *,
    state: Mapping[str, Any] | None = None,
    last_step: int = LAST_STEP,
    checkpoints: tuple[int, ...] = (50, 100),
    changed_rows: Mapping[int, Mapping[str, Any]] | None = None,
    lr: float = 0.001,
    **environment: Any,
) -> RunDir:
    """Create a run directory; `changed_rows` gives steps other metrics, `environment` replaces entries."""
    run_dir = RunDir(path)
    path.mkdir()
    config = load_recipe("c2fmae-debug", [f"training.lr={lr}"])
    run_dir.write_text("config.yaml", config.to_yaml())
    environment = {**collect_environment(world_size=1, compile="off"), **environment}
    run_dir.write_text("environment.json", json.dumps(environment))
    run_dir.write_state(**(state or {"status": "running", "step": 0}))
    with RowWriter(run_dir.metrics) as rows:
        for step in range(1, last_step + 1):
            changes = (changed_rows or {}).get(step, {})
            rows.write({"step": step, "lr": 0.1, "loss": 4.0, "loss/rgb": 2.0, **changes})
    metadata = {"kind": "pretraining", "config": config.model_dump(mode="json")}
    for step in checkpoints:
        save_checkpoint(run_dir.checkpoints, Checkpoint(step, {"model/w": torch.ones(3)}, metadata))
    return run_dir


def corrupt_checkpoint(run_dir: RunDir, step: int) -> Path:
    """Flip a bit in the tensors of a checkpoint; return their file."""
    file = run_dir.checkpoints / f"step-{step:08d}" / "tensors.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    return file
