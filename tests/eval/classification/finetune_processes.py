"""Fine-tuning in two processes, for test_experiment.py."""

from pathlib import Path

import torch.distributed as dist

from c2fmae.core.distributed import World
from c2fmae.eval.classification.config import FinetuneConfig
from c2fmae.eval.classification.experiment import finetune


def run_rank(rank: int, config: str, folder: Path) -> None:
    """Fine-tune as one of two ranks."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    finetune(FinetuneConfig.model_validate_json(config), folder / "two", World(rank, 2))
    dist.destroy_process_group()
