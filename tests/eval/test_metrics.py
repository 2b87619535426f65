import json

import pytest

from c2fmae.eval.metrics import METRIC_INFO, Metric, build_accuracy_metric, find_metric, select_headlines


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


@pytest.mark.parametrize(
    ("key", "interval", "expected"),
    [
        ("mean_error", (73.97, 106.59), (73.97, 100)),
        ("mean_accuracy", (-6.59, 26.03), (0, 26.03)),
        ("mce", (-1, 120), (0, 120)),
        ("attention_distance", (-0.1, 0.3), (0, 0.3)),
        ("loss", (-1, 120), (-1, 120)),
        ("of_another_package", (-1, 120), (-1, 120)),
    ],
)
def test_intervals_end_at_the_limits_of_the_metric(
    key: str, interval: tuple[float, float], expected: tuple[float, float]
) -> None:
    assert Metric(key, 0, 10, interval).interval == expected
    stored = {"key": key, "value": 0, "count": 10, "interval": list(interval), "unit": "", "tags": {}, "notes": []}
    assert Metric.from_json(stored).interval == expected  # results of earlier versions


def test_headlines_are_those_of_the_last_layer_for_each_set() -> None:
    metrics = [
        *(build_accuracy_metric("top1", layer / 10, 10, tags={"layer": layer, "pooling": "mean"}) for layer in (4, 8)),
        *(Metric("top1", 5, 10, tags={"set": "sketch", "classes": name}) for name in ("own classes", "all classes")),
        Metric("top1_std", 1, 10, tags={"set": "sketch"}),
        Metric("loss", 1, 10),
    ]
    assert select_headlines(metrics) == [metrics[1], metrics[2]]


def test_the_headline_of_metrics_of_another_package_is_the_first() -> None:
    metrics = [Metric("train_test_overlap", 0, 10), Metric("of_another_package", 1, 10), Metric("a_second", 2, 10)]
    assert select_headlines(metrics) == [metrics[1]]
    assert select_headlines(metrics[:1]) == []
