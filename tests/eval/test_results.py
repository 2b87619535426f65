import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest

from c2fmae.core import files
from c2fmae.core.errors import UserError
from c2fmae.eval import results
from c2fmae.eval.evaluation import Evaluation, ModelUnderTest, Outcome
from c2fmae.eval.metrics import Metric
from c2fmae.eval.results import (
    RESULTS_FILE,
    EvaluationResult,
    format_protocols,
    format_results,
    load_result,
    make_result_sections,
    run_evaluation,
)
from tests.eval.tiny_backbones import make_tiny_model_under_test, tiny_backbone

RUNS: list[str] = []


class ConstantEvaluation(Evaluation):
    """Yields one number."""

    number: float = 5
    workers: int = 2

    def run(self, model: ModelUnderTest) -> Iterator[Metric]:
        RUNS.append(model.name)
        yield Metric("constant", self.number, 10, (self.number - 1, self.number + 1))

    def describe_protocol(self, model: ModelUnderTest) -> str:
        return f"The constant of {model.name}."

    def identify_inputs(self, model: ModelUnderTest) -> dict[str, str]:
        return {"data": "these"}


class RankEvaluation(ConstantEvaluation):
    """Yields a number that depends on the other models."""

    shares_work: ClassVar[bool] = True
    reuses_results: ClassVar[bool] = False

    def run_models(self, models: Sequence[ModelUnderTest], *, recompute: bool = False) -> Iterator[Outcome]:
        for index in range(len(models)):
            yield Outcome((Metric("rank", index, len(models)),), details=index)


@pytest.fixture(autouse=True)
def _no_runs() -> None:
    RUNS.clear()


def evaluate(
    output_dir: Path,
    config: Evaluation | None = None,
    *,
    seed: int = 0,
    source: str = "tiny",
    **options: Any,
) -> EvaluationResult:
    model = make_tiny_model_under_test(tiny_backbone(seed=seed), output_dir, source)
    (result,) = run_evaluation("constant", config or ConstantEvaluation(), [model], **options)
    return result


def test_a_result_is_stored_with_everything_it_depends_on(tmp_path: Path) -> None:
    result = evaluate(tmp_path)
    assert result.is_new
    document = json.loads((result.result_dir / "results.json").read_text(encoding="utf-8"))
    assert document["protocol"] == "The constant of tiny."
    assert document["metrics"] == [
        {"key": "constant", "value": 5.0, "count": 10, "interval": [4.0, 6.0], "unit": "", "tags": {}, "notes": []}
    ]
    identity = {key: document[key] for key in ("format", "evaluation", "protocol_version", "config", "inputs")}
    assert identity == {
        "format": 2,
        "evaluation": "constant",
        "protocol_version": 1,
        "config": {"number": 5.0},
        "inputs": {"data": "these"},
    }
    assert len(document["weights"]) == 64
    assert "torch" in document["environment"]
    page = (result.result_dir / "report.html").read_text(encoding="utf-8")
    assert "The constant of tiny." in page
    assert "5.00 (4.00-6.00)" in page


def test_a_stored_result_is_reused_unless_settings_or_weights_differ(tmp_path: Path) -> None:
    first, second = evaluate(tmp_path), evaluate(tmp_path)
    assert (second.metrics, second.result_dir, second.is_new, len(RUNS)) == (first.metrics, first.result_dir, False, 1)
    assert not evaluate(tmp_path, ConstantEvaluation(workers=0)).is_new
    assert evaluate(tmp_path, ConstantEvaluation(number=6)).is_new
    assert evaluate(tmp_path, seed=1).is_new
    assert evaluate(tmp_path, recompute=True).is_new
    assert len(RUNS) == 4


def test_results_are_recomputed_for_another_evaluation_format_or_protocol_version(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_tiny_model_under_test(tiny_backbone(), tmp_path)
    assert evaluate(tmp_path).is_new
    assert run_evaluation("other", ConstantEvaluation(), [model])[0].is_new
    monkeypatch.setattr(ConstantEvaluation, "describe_protocol", lambda *_: "The same protocol, reworded.")
    assert not evaluate(tmp_path).is_new
    monkeypatch.setattr(ConstantEvaluation, "protocol_version", 2)
    assert evaluate(tmp_path).is_new
    monkeypatch.setattr(results, "RESULT_FORMAT", 3)
    assert evaluate(tmp_path).is_new


def test_results_of_other_settings_and_weights_have_other_directories(tmp_path: Path) -> None:
    dirs = {
        evaluate(tmp_path, config, seed=seed, label="label").result_dir
        for config, seed in ((ConstantEvaluation(), 0), (ConstantEvaluation(number=6), 0), (ConstantEvaluation(), 1))
    }
    assert len(dirs) == 3
    assert all(re.fullmatch("label-[0-9a-f]{6}", path.name) for path in dirs)


def test_models_with_new_weights_are_named(tmp_path: Path) -> None:
    model = ModelUnderTest("tiny", tmp_path).with_new_weights()
    vars(model).update(backbone=tiny_backbone())
    (result,) = run_evaluation("constant", ConstantEvaluation(), [model])
    assert result.source == "untrained tiny"
    assert result.result_dir.name.startswith("constant-untrained-")


@pytest.mark.parametrize("text", ["", "{", "[]", '{"metrics": []}', "null"])
def test_invalid_result_files_are_ignored(tmp_path: Path, text: str) -> None:
    first = evaluate(tmp_path)
    (first.result_dir / "results.json").write_text(text, encoding="utf-8")
    with pytest.raises(UserError):
        load_result(first.result_dir)
    assert evaluate(tmp_path).is_new
    assert len(RUNS) == 2


def write_format_1(path: Path) -> None:
    document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    document |= {"format": 1, **document.pop("inputs"), "config": {"number": 5.0, "workers": 3}}
    del document["protocol_version"]
    document["metrics"] = [{"name": "the constant", "value": 5.0, "count": 10, "interval": None, "note": "so"}]
    path.write_text(json.dumps(document), encoding="utf-8")


def test_a_result_of_format_1_is_reused(tmp_path: Path) -> None:
    path = evaluate(tmp_path).result_dir / RESULTS_FILE
    write_format_1(path)
    result = evaluate(tmp_path)
    assert (result.is_new, result.result_dir, len(RUNS)) == (False, path.parent, 1)
    assert result.metrics == (Metric("the constant", 5.0, 10, notes=("so",)),)
    for changes in ({"weights": "others"}, {"data": "others"}, {"config": {"number": 7.0}}, {"evaluation": "other"}):
        document = json.loads(path.read_text(encoding="utf-8"))
        path.write_text(json.dumps(document | changes), encoding="utf-8")
        other = evaluate(tmp_path)
        assert other.is_new
        (other.result_dir / RESULTS_FILE).unlink()
        path.write_text(json.dumps(document), encoding="utf-8")


def test_results_of_models_are_shown_side_by_side(tmp_path: Path) -> None:
    stored = [
        evaluate(tmp_path / name, ConstantEvaluation(number=n), source=name) for name, n in (("one", 1), ("two", 2))
    ]
    assert format_results(stored) == [
        "          unit  count  one               two",
        "constant        10     1.00 (0.00-2.00)  2.00 (1.00-3.00)",
    ]
    assert format_protocols(stored) == [
        "protocol of one: The constant of one.",
        "protocol of two: The constant of two.",
    ]


def test_models_that_share_work_are_always_evaluated_together(tmp_path: Path) -> None:
    models = [make_tiny_model_under_test(tiny_backbone(), tmp_path / name, name) for name in ("one", "two")]
    for _ in range(2):
        outcomes = run_evaluation("rank", RankEvaluation(), models)
        assert [(result.metrics[0].value, result.details, result.is_new) for result in outcomes] == [
            (0, 0, True),
            (1, 1, True),
        ]
        assert all((result.result_dir / "results.json").exists() for result in outcomes)


def test_each_result_is_written_before_the_next_model_is_loaded(tmp_path: Path) -> None:
    def open_models() -> Iterator[ModelUnderTest]:
        yield make_tiny_model_under_test(tiny_backbone(), tmp_path / "one", "one")
        assert RUNS == ["one"]
        assert list((tmp_path / "one").glob("*/results.json"))
        yield make_tiny_model_under_test(tiny_backbone(seed=1), tmp_path / "two", "two")

    assert len(run_evaluation("constant", ConstantEvaluation(), open_models())) == 2


def test_the_page_of_a_run_shows_stored_results_by_protocol(tmp_path: Path) -> None:
    for seed in range(2):
        evaluate(tmp_path / "evaluations", seed=seed)
    (tmp_path / "evaluations" / "broken").mkdir()
    (tmp_path / "evaluations" / "broken" / "results.json").write_text("[]", encoding="utf-8")
    html = "".join(section.to_html() for section in make_result_sections(tmp_path))
    assert html.count("Evaluation: constant") == html.count("The constant of tiny.") == 1
    assert html.count('<th scope="col">tiny</th>') == 2
    assert make_result_sections(tmp_path / "nowhere") == []


def test_write_errors_name_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def raise_disk_full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files, "fsync", raise_disk_full)
    with pytest.raises(UserError, match=r"results.json: cannot be written: No space left on device. Free space or fix"):
        evaluate(tmp_path)


@pytest.mark.parametrize(
    ("key", "value", "problem"),
    [
        ("value", "5", "value.int: "),
        ("value", None, "value.int: "),
        ("count", 2.5, "count: "),
        ("interval", [1], "interval.1: "),
        ("tags", {"k": []}, "tags.k."),
        ("notes", [3], "notes.0: "),
        ("key", ["a"], "key: "),
        ("more", 1, "more: no such setting"),
    ],
)
def test_a_metric_of_other_types_is_not_a_result(tmp_path: Path, key: str, value: object, problem: str) -> None:
    path = evaluate(tmp_path).result_dir / "results.json"
    document = json.loads(path.read_text())
    document["metrics"][0][key] = value
    path.write_text(json.dumps(document))
    with pytest.raises(UserError) as caught:
        load_result(path.parent)
    assert str(caught.value).startswith(f"{path}: is not the result of an evaluation (metrics")
    assert problem in str(caught.value)


def test_a_protocol_that_is_no_text_is_not_a_result(tmp_path: Path) -> None:
    path = evaluate(tmp_path).result_dir / "results.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"protocol": {}}))
    with pytest.raises(UserError, match="is not the result of an evaluation \\(protocol: expected text, got dict"):
        load_result(path.parent)
