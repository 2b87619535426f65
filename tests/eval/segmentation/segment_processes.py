"""A test of a segmenter in two processes, for test_evaluator.py."""

from pathlib import Path

import torch
import torch.distributed as dist

from c2fmae.core.distributed import World
from c2fmae.eval.segmentation.evaluator import SegmenterEvaluator
from c2fmae.eval.segmentation.prediction_store import PredictionStore
from c2fmae.eval.segmentation.testing_config import TestingConfig
from tests.eval.segmentation.tiny_segmenters import draw_map_scenes, tiny_segmenter


def run_rank(rank: int, folder: Path) -> None:
    """Evaluate as one of two ranks, and save the scores."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    evaluator = SegmenterEvaluator(draw_map_scenes(5), TestingConfig(), World(rank, 2), num_workers=0)
    store = PredictionStore(folder / "ids", {"weights": "0", "data": "1", "testing": {}})
    scores = evaluator.evaluate(tiny_segmenter(), store=store)
    torch.save((scores.confusion, scores.image_totals), folder / f"{rank}.pt")
    dist.destroy_process_group()
