import json
import re
from collections.abc import Iterator
from multiprocessing import get_context
from pathlib import Path

import pytest

from c2fmae.core import files
from c2fmae.core.errors import UserError
from c2fmae.eval import results
from c2fmae.eval.evaluation import Evaluation, ModelUnderTest
from c2fmae.eval.metrics import Metric
from c2fmae.eval.results import make_result_dir, make_result_sections, make_results_table, run_evaluation
from c2fmae.report import table_to_lines
from tests.eval.tiny_backbones import make_tiny_model_under_test, tiny_backbone

RUNS: list[str] = []


class Ask(Evaluation):
    """One number."""

    number: float = 5

    def run(self, subject: ModelUnderTest) -> Iterator[Metric]:
        RUNS.append(subject.name)
        yield Metric("answer", self.number, 10, (self.number - 1, self.number + 1))

    def describe_protocol(self, subject: ModelUnderTest) -> str:
        return f"It asks {subject.name}, once."

    def identify_inputs(self, subject: ModelUnderTest) -> dict[str, str]:
        return {"data": "these"}


@pytest.fixture(autouse=True)
def _none_has_run() -> None:
    RUNS.clear()


def test_a_result_is_written_with_its_protocol_and_all_that_it_depends_on(tmp_path: Path) -> None:
    result = run_evaluation("ask", Ask(), make_tiny_model_under_test(tiny_backbone(), tmp_path), tmp_path / "ask")
    assert result.is_new
    found = json.loads((tmp_path / "ask" / "results.json").read_text(encoding="utf-8"))
    assert found["protocol"] == "It asks tiny, once."
    assert found["metrics"] == [
        {"key": "answer", "value": 5.0, "count": 10, "interval": [4.0, 6.0], "unit": "", "tags": {}, "notes": []}
    ]
    assert found["config"] == {"number": 5.0}
    assert found["data"] == "these"
    assert len(found["weights"]) == 64
    assert "torch" in found["environment"]
    page = (tmp_path / "ask" / "report.html").read_text(encoding="utf-8")
    assert "It asks tiny, once." in page
    assert "5.00 (4.00-6.00)" in page


def test_what_was_found_is_not_computed_again_unless_something_else_is_asked(tmp_path: Path) -> None:
    who, place = make_tiny_model_under_test(tiny_backbone(), tmp_path), tmp_path / "ask"
    first = run_evaluation("ask", Ask(), who, place)
    again = run_evaluation("ask", Ask(), who, place)
    assert (again.metrics, again.is_new, len(RUNS)) == (first.metrics, False, 1)
    assert run_evaluation("ask", Ask(number=6), who, place).is_new
    assert run_evaluation(
        "ask", Ask(number=6), make_tiny_model_under_test(tiny_backbone(seed=1), tmp_path), place
    ).is_new
    assert run_evaluation("ask", Ask(number=6), who, place, again=True).is_new
    assert len(RUNS) == 4


@pytest.mark.parametrize("text", ["", "{", "[]", '{"metrics": []}', "null"])
def test_a_file_that_is_no_result_is_computed_anew(tmp_path: Path, text: str) -> None:
    (tmp_path / "ask").mkdir()
    (tmp_path / "ask" / "results.json").write_text(text, encoding="utf-8")
    assert run_evaluation("ask", Ask(), make_tiny_model_under_test(tiny_backbone(), tmp_path), tmp_path / "ask").is_new


def test_sources_stand_side_by_side(tmp_path: Path) -> None:
    results = [
        run_evaluation(
            "ask", Ask(number=n), make_tiny_model_under_test(tiny_backbone(), tmp_path, name), tmp_path / name
        )
        for name, n in (("one", 1), ("two", 2))
    ]
    assert table_to_lines(make_results_table(results)) == [
        "        unit  count  one               two",
        "answer        10     1.00 (0.00-2.00)  2.00 (1.00-3.00)",
    ]


def test_a_runs_page_has_what_lies_in_its_folder(tmp_path: Path) -> None:
    run_evaluation(
        "ask", Ask(), make_tiny_model_under_test(tiny_backbone(), tmp_path), tmp_path / "evaluations" / "ask-these"
    )
    run_evaluation(
        "ask",
        Ask(),
        make_tiny_model_under_test(tiny_backbone(seed=1), tmp_path),
        tmp_path / "evaluations" / "ask-other",
    )
    (tmp_path / "evaluations" / "broken").mkdir()
    (tmp_path / "evaluations" / "broken" / "results.json").write_text("[]", encoding="utf-8")
    html = "".join(section.to_html() for section in make_result_sections(tmp_path))
    assert html.count("Evaluation: ask") == html.count("It asks tiny, once.") == 1  # by one protocol: one table
    assert html.count('<th scope="col">tiny</th>') == 2
    assert make_result_sections(tmp_path / "nowhere") == []


def test_a_place_that_cannot_be_written_to_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files, "fsync", full)
    with pytest.raises(UserError) as caught:
        run_evaluation("ask", Ask(), make_tiny_model_under_test(tiny_backbone(), tmp_path), tmp_path / "ask")
    place = tmp_path / "ask" / "results.json"
    assert (
        str(caught.value)
        == f"{place}: cannot be written: No space left on device. Free space or fix its permissions, then run again"
    )


def test_another_evaluation_format_or_protocol_is_computed_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    who = make_tiny_model_under_test(tiny_backbone(), tmp_path)
    run_evaluation("ask", Ask(), who, tmp_path / "a")
    assert run_evaluation("other", Ask(), who, tmp_path / "a").is_new
    monkeypatch.setattr(Ask, "describe_protocol", lambda *_: "It asks otherwise.")
    assert run_evaluation("other", Ask(), who, tmp_path / "a").is_new
    monkeypatch.setattr(results, "RESULT_FORMAT", 3)
    assert run_evaluation("other", Ask(), who, tmp_path / "a").is_new


def test_other_settings_and_weights_have_other_places(tmp_path: Path) -> None:
    who, other = (
        make_tiny_model_under_test(tiny_backbone(), tmp_path),
        make_tiny_model_under_test(tiny_backbone(seed=1), tmp_path),
    )
    asked = (("ask", Ask(), who), ("ask", Ask(number=6), who), ("ask", Ask(), other), ("other", Ask(), who))
    places = {make_result_dir(tmp_path, "label", *each) for each in asked}
    assert len(places) == 4
    assert all(re.fullmatch("label-[0-9a-f]{6}", place.name) for place in places)


def test_metrics_that_are_there_already_are_only_written(tmp_path: Path) -> None:
    result = run_evaluation(
        "ask",
        Ask(),
        make_tiny_model_under_test(tiny_backbone(), tmp_path),
        tmp_path / "a",
        measured=[Metric("answer", 1.0, 2)],
    )
    assert (RUNS, result.metrics) == ([], (Metric("answer", 1.0, 2),))
    assert (tmp_path / "a" / "results.json").exists()


def test_two_commands_may_keep_the_same_file_at_once(tmp_path: Path) -> None:
    def write(rounds: int) -> None:
        for _ in range(rounds):
            files.write_atomic(tmp_path / "features" / "chunk", b"the same", is_shared=True)

    processes = [get_context("fork").Process(target=write, args=(60,)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
    assert [path.name for path in (tmp_path / "features").iterdir()] == ["chunk"]
