from pathlib import Path

import pytest

from c2fmae.eval.classification.result import make_class_sections
from c2fmae.report import Table


@pytest.mark.parametrize(("num_classes", "expected"), [(1, (1, 0)), (3, (2, 1)), (20, (10, 10)), (45, (10, 10))])
def test_no_class_is_among_the_best_and_the_worst(num_classes: int, expected: tuple[int, int], tmp_path: Path) -> None:
    path = tmp_path / "classes.csv"
    rows = [f'{i},,"name {i},\nin two lines",50,{i},{2 * i}.00,other,3' for i in range(num_classes)]
    header = "label,wnid,name,images,right,accuracy,mistaken for,times"
    path.write_text("\n".join([header, *rows, "99,,never seen,0,0,,,0"]))
    tables = [section for section in make_class_sections(path) if isinstance(section, Table)]
    accuracies = [[float(str(row[1])) for row in table.rows] for table in tables]
    assert tuple(map(len, accuracies)) == tuple(filter(None, expected))
    assert accuracies[0] == sorted(accuracies[0])
    if len(accuracies) > 1:
        assert accuracies[1] == sorted(accuracies[1], reverse=True)
        assert max(accuracies[0]) < min(accuracies[1])
    assert tables[0].rows[0][3] == "other (3)"
    assert bool(tables[0].footnote) == (num_classes > 20)


def test_a_run_without_classes_has_no_class_section(tmp_path: Path) -> None:
    assert make_class_sections(tmp_path / "classes.csv") == []
