import json
import re
from collections.abc import Iterator
from multiprocessing import get_context
from pathlib import Path

import pytest

from c2fmae.core.errors import UserError
from c2fmae.eval import keeping
from c2fmae.eval import results as running
from c2fmae.eval.evaluation import Evaluation, Metric, Subject
from c2fmae.eval.results import evaluate, place_of, sections_of, table_of
from c2fmae.report import as_lines
from tests.eval.tiny_backbones import subject, tiny_backbone

RUNS: list[str] = []


class Ask(Evaluation):
    """One number."""

    number: float = 5

    def run(self, subject: Subject) -> Iterator[Metric]:
        RUNS.append(subject.name)
        yield Metric("answer", self.number, 10, (self.number - 1, self.number + 1))

    def protocol(self, subject: Subject) -> str:
        return f"It asks {subject.name}, once."

    def inputs(self, subject: Subject) -> dict[str, str]:
        return {"data": "these"}


@pytest.fixture(autouse=True)
def _none_has_run() -> None:
    RUNS.clear()


def test_a_result_is_written_with_its_protocol_and_all_that_it_depends_on(tmp_path: Path) -> None:
    result = evaluate("ask", Ask(), subject(tiny_backbone(), tmp_path), tmp_path / "ask")
    assert result.is_new
    found = json.loads((tmp_path / "ask" / "results.json").read_text(encoding="utf-8"))
    assert found["protocol"] == "It asks tiny, once."
    assert found["metrics"] == [{"name": "answer", "value": 5.0, "count": 10, "interval": [4.0, 6.0], "note": ""}]
    assert found["config"] == {"number": 5.0}
    assert found["data"] == "these"
    assert len(found["weights"]) == 64
    assert "torch" in found["environment"]
    page = (tmp_path / "ask" / "report.html").read_text(encoding="utf-8")
    assert "It asks tiny, once." in page
    assert "5.00 (4.00-6.00)" in page


def test_what_was_found_is_not_computed_again_unless_something_else_is_asked(tmp_path: Path) -> None:
    who, place = subject(tiny_backbone(), tmp_path), tmp_path / "ask"
    first = evaluate("ask", Ask(), who, place)
    again = evaluate("ask", Ask(), who, place)
    assert (again.metrics, again.is_new, len(RUNS)) == (first.metrics, False, 1)
    assert evaluate("ask", Ask(number=6), who, place).is_new
    assert evaluate("ask", Ask(number=6), subject(tiny_backbone(seed=1), tmp_path), place).is_new
    assert evaluate("ask", Ask(number=6), who, place, again=True).is_new
    assert len(RUNS) == 4


@pytest.mark.parametrize("text", ["", "{", "[]", '{"metrics": []}', "null"])
def test_a_file_that_is_no_result_is_computed_anew(tmp_path: Path, text: str) -> None:
    (tmp_path / "ask").mkdir()
    (tmp_path / "ask" / "results.json").write_text(text, encoding="utf-8")
    assert evaluate("ask", Ask(), subject(tiny_backbone(), tmp_path), tmp_path / "ask").is_new


def test_sources_stand_side_by_side(tmp_path: Path) -> None:
    results = [
        evaluate("ask", Ask(number=n), subject(tiny_backbone(), tmp_path, name), tmp_path / name)
        for name, n in (("one", 1), ("two", 2))
    ]
    assert as_lines(table_of(results)) == [
        "        one               two",
        "answer  1.00 (0.00-2.00)  2.00 (1.00-3.00)",
    ]


def test_a_runs_page_has_what_lies_in_its_folder(tmp_path: Path) -> None:
    evaluate("ask", Ask(), subject(tiny_backbone(), tmp_path), tmp_path / "evaluations" / "ask-these")
    evaluate("ask", Ask(), subject(tiny_backbone(seed=1), tmp_path), tmp_path / "evaluations" / "ask-other")
    (tmp_path / "evaluations" / "broken").mkdir()
    (tmp_path / "evaluations" / "broken" / "results.json").write_text("[]", encoding="utf-8")
    html = "".join(section.html() for section in sections_of(tmp_path))
    assert html.count("Evaluation: ask") == html.count("It asks tiny, once.") == 1  # by one protocol: one table
    assert html.count('<th scope="col">tiny</th>') == 2
    assert sections_of(tmp_path / "nowhere") == []


def test_a_place_that_cannot_be_written_to_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(keeping, "write_whole", full)
    with pytest.raises(UserError) as caught:
        evaluate("ask", Ask(), subject(tiny_backbone(), tmp_path), tmp_path / "ask")
    place = tmp_path / "ask" / "results.json"
    assert str(caught.value) == f"{place}: cannot be written: No space left on device. Give another --out"


def test_another_evaluation_format_or_protocol_is_computed_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    who = subject(tiny_backbone(), tmp_path)
    evaluate("ask", Ask(), who, tmp_path / "a")
    assert evaluate("other", Ask(), who, tmp_path / "a").is_new
    monkeypatch.setattr(Ask, "protocol", lambda *_: "It asks otherwise.")
    assert evaluate("other", Ask(), who, tmp_path / "a").is_new
    monkeypatch.setattr(running, "FORMAT", 2)
    assert evaluate("other", Ask(), who, tmp_path / "a").is_new


def test_other_settings_and_weights_have_other_places(tmp_path: Path) -> None:
    who, other = subject(tiny_backbone(), tmp_path), subject(tiny_backbone(seed=1), tmp_path)
    asked = (("ask", Ask(), who), ("ask", Ask(number=6), who), ("ask", Ask(), other), ("other", Ask(), who))
    places = {place_of(tmp_path, "label", *each) for each in asked}
    assert len(places) == 4
    assert all(re.fullmatch("label-[0-9a-f]{6}", place.name) for place in places)


def test_metrics_that_are_there_already_are_only_written(tmp_path: Path) -> None:
    result = evaluate(
        "ask", Ask(), subject(tiny_backbone(), tmp_path), tmp_path / "a", found=[Metric("answer", 1.0, 2)]
    )
    assert (RUNS, result.metrics) == ([], (Metric("answer", 1.0, 2),))
    assert (tmp_path / "a" / "results.json").exists()


def test_two_commands_may_keep_the_same_file_at_once(tmp_path: Path) -> None:
    def write(rounds: int) -> None:
        for _ in range(rounds):
            keeping.keep(tmp_path / "features" / "chunk", b"the same")

    processes = [get_context("fork").Process(target=write, args=(60,)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
    assert [path.name for path in (tmp_path / "features").iterdir()] == ["chunk"]
