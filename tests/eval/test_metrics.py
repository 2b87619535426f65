import json

import pytest

from c2fmae.eval.metrics import METRIC_INFO, Metric, build_accuracy_metric, find_metric


def test_a_metric_is_read_back_from_json() -> None:
    metric = Metric("top1", 58.0, 1024, (54.9, 61.0), tags={"layer": 12, "votes": "plain"}, notes=("a", "b; c"))
    assert Metric.from_json(json.loads(json.dumps(metric.to_json()))) == metric


def test_the_name_of_a_metric_of_format_1_is_its_key_and_label() -> None:
    values = {"name": "top-1, weighted votes, k = 5", "value": 58.0, "count": 10, "interval": None, "note": "so"}
    metric = Metric.from_json(values)
    assert (metric.key, metric.label, metric.tags, metric.notes) == (values["name"], values["name"], {}, ("so",))


def test_the_default_unit_is_that_of_the_table() -> None:
    assert Metric("top1", 1, 1).unit == "%"
    assert Metric("parameters", 1, 1, unit="millions").unit == "millions"
    assert Metric("of_another_package", 1, 1).unit == ""


@pytest.mark.parametrize("key", METRIC_INFO)
def test_keys_are_identifiers_and_display_names_are_unique(key: str) -> None:
    assert key.isidentifier()
    same_name = {other for other, info in METRIC_INFO.items() if info.display_name == METRIC_INFO[key].display_name}
    assert same_name in ({key}, {"mce_vs_reference"})


def test_metrics_are_found_by_their_key_and_all_their_tags() -> None:
    metrics = [build_accuracy_metric("top1", 0.5, 10, tags={"k": k, "votes": "plain"}) for k in (1, 5)]
    assert find_metric(metrics, "top1", votes="plain", k=5) == metrics[1]
    assert find_metric(metrics, "top1", k=5) is None
    assert find_metric(metrics, "top5", votes="plain", k=5) is None
