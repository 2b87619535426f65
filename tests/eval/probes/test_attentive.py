from pathlib import Path

import pytest

from c2fmae.core.errors import UserError
from c2fmae.eval.evaluation import EVALUATIONS
from c2fmae.eval.probes.config import AttentiveProbeEvaluation
from tests.eval.tiny_backbones import (
    compute_metrics,
    draw_coloured_scenes,
    make_tiny_model_under_test,
    tiny_backbone,
    write_scenes,
)

pytestmark = pytest.mark.numeric

SETTINGS = {"workers": 0, "num_queries": 4}


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    root = tmp_path_factory.mktemp("sets")
    splits = {
        "train": draw_coloured_scenes(120, labels=4, noise=120),
        "test": draw_coloured_scenes(60, labels=4, noise=120, seed=1),
    }
    return {part: write_scenes(root / part, scenes) for part, scenes in splits.items()}


def test_the_attentive_probe_classifies_colours(sets: dict[str, str], tmp_path: Path) -> None:
    assert EVALUATIONS.get("attentive") is AttentiveProbeEvaluation
    config = AttentiveProbeEvaluation(**sets, **SETTINGS, head_batch_size=32)
    model = make_tiny_model_under_test(tiny_backbone(), tmp_path)
    metrics = compute_metrics(config, model)
    assert metrics["top-1"].value > 60  # 25 by chance
    assert metrics["top-1"].interval is not None
    assert "4 learned queries attend to the patches" in config.describe_protocol(model)


def test_fractions_of_the_labels_are_drawn_for_each_seed(sets: dict[str, str], tmp_path: Path) -> None:
    config = AttentiveProbeEvaluation(**sets, **SETTINGS, epochs=2, fractions=(0.5,), seeds=2)
    names = [metric.label for metric in config.run(make_tiny_model_under_test(tiny_backbone(), tmp_path))]
    assert names[1:] == ["top-1, 50 % of the labels", "top-1, standard deviation over seeds, 50 % of the labels"]


def test_numbers_of_queries_that_do_not_divide_the_width_are_rejected(sets: dict[str, str], tmp_path: Path) -> None:
    config = AttentiveProbeEvaluation(**sets, workers=0, num_queries=7)
    with pytest.raises(UserError, match="num_queries: expected a divisor of the pooled width"):
        list(config.run(make_tiny_model_under_test(tiny_backbone(), tmp_path)))
