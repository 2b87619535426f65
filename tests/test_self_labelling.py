"""The script of two rounds of self-labelling: its commands exist, and it does not claim more than the scores show."""

from pathlib import Path
from typing import Any

from tests.cli.parsing import parse_command
from tools.self_labelling import SCORES, Score, describe_results, is_better, list_commands, read_score


def test_its_commands_exist() -> None:
    commands = list(list_commands("images", "truth", Path("out"), 10))
    assert [words[0] for words in commands] == ["pretrain", "label", "label"] * 2
    for words in commands:
        parse_command(["c2fmae", *words])
    first_maps = commands[1][2]
    assert commands[3][commands[3].index("--data") + 1] == first_maps


def test_only_scores_with_separate_intervals_are_better() -> None:
    low, middle, high = Score(10, 9, 11), Score(11, 10, 12), Score(20, 19, 21)
    assert [is_better(high, low), is_better(low, high)] == ["yes", "no"]
    assert is_better(middle, low) == is_better(low, middle) == "not clearly: the intervals overlap"


def make_comparison(value: float) -> dict[str, Any]:
    """Return the content of `comparison.json` with one value for all scores of the maps, and 30 for a baseline."""
    (overlap, overlap_tags), *others = SCORES.values()
    metrics = [
        {"key": key, "tags": tags, "value": value, "interval": [value - 1, value + 1]}
        for key, tags in ((overlap, overlap_tags), *others)
    ]
    baseline = {"key": overlap, "tags": overlap_tags, "value": 30, "interval": [29, 31]}
    return {"metrics": {"maps": metrics, "regions": [baseline, {**metrics[1], "value": None}]}}


def test_the_second_maps_are_compared_with_the_first_and_with_baselines() -> None:
    lines = list(describe_results(make_comparison(10), make_comparison(20)))
    assert lines[:3] == [
        "average best overlap of objects, %: first maps 10.0 (9.0-11.0), second maps 20.0 (19.0-21.0),"
        " regions 30.0 (29.0-31.0)",
        "  are the second maps better than the first maps? yes",
        "  are the second maps better than the regions? no",
    ]
    assert lines[3] == "mIoU, clusters assigned one to one, %: first maps 10.0 (9.0-11.0), second maps 20.0 (19.0-21.0)"
    assert len(lines) == 7


def test_a_score_without_an_interval_is_left_out() -> None:
    metric = {"key": "mean_iou", "tags": {}, "value": 10.0, "interval": None}
    assert read_score({"metrics": {"maps": [metric]}}, "maps", "mean_iou", {}) is None
