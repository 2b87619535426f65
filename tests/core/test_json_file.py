from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from c2fmae.core.errors import UserError
from c2fmae.core.json_file import parse_json_object, read_json, to_json, write_json

SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
DOCUMENTS = st.dictionaries(
    st.text(), st.recursive(SCALARS, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=8)
)


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def refusal(path: Path, **limits: Any) -> str:
    with pytest.raises(UserError) as caught:
        read_json(path, **limits)
    return str(caught.value).replace(str(path), "FILE")


@given(DOCUMENTS)
def test_text_is_read_back(document: dict[str, Any]) -> None:
    assert parse_json_object(to_json(document), max_depth=1000) == document


def test_a_written_file_is_read_back(tmp_path: Path) -> None:
    document = {"größe": [1, 2.5, None, True], "undecodable name": "\udcff.jpg"}
    write_json(tmp_path / "made" / "file.json", document)
    assert read_json(tmp_path / "made" / "file.json") == document


def test_text_is_indented_and_not_escaped() -> None:
    assert to_json({"name": "Äpfel", "values": [1]}) == '{\n  "name": "Äpfel",\n  "values": [\n    1\n  ]\n}\n'


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "is not JSON (Expecting value: line 1 column 1 (char 0))"),
        ("{", "is not JSON (Expecting property name enclosed in double quotes: line 1 column 2 (char 1))"),
        ("[1, 2]", "expected a JSON object, got a list"),
        ('"text"', "expected a JSON object, got a string"),
        ("3", "expected a JSON object, got a number"),
        ("null", "expected a JSON object, got null"),
        ('{"a": ' + "[" * 64 + "]" * 64 + "}", "is nested more than 64 levels deep"),
        ('{"a": ' * 100_000, "is nested more than 64 levels deep"),
    ],
)
def test_text_that_is_not_an_object_is_refused(text: str, problem: str, tmp_path: Path) -> None:
    assert refusal(write(tmp_path / "file.json", text), fix="Remove it") == f"FILE: {problem}. Remove it"


def test_numbers_and_bytes_without_meaning_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "file.json", '{"a": ' + "9" * 10_000 + "}")
    assert refusal(path).startswith("FILE: is not JSON (")
    path.write_bytes(b'{"a": "\xff"}')
    assert refusal(path).startswith("FILE: is not JSON (")


def test_nesting_up_to_the_limit_is_read(tmp_path: Path) -> None:
    path = write(tmp_path / "file.json", '{"a": [{"b": []}]}')
    assert read_json(path, max_depth=4) == {"a": [{"b": []}]}
    assert refusal(path, max_depth=3) == "FILE: is nested more than 3 levels deep. Restore it"


def test_a_large_file_is_not_read_unless_it_is_expected(tmp_path: Path) -> None:
    path = write(tmp_path / "file.json", "{" + " " * 2_000_000 + "}")
    assert refusal(path) == "FILE: has 2,000,002 bytes, expected JSON of at most 1,048,576. Restore it"
    assert read_json(path, max_bytes=3_000_000) == {}


def test_a_missing_file_is_reported(tmp_path: Path) -> None:
    assert refusal(tmp_path / "file.json") == "FILE: cannot be read: No such file or directory. Restore it"
    assert refusal(tmp_path).startswith("FILE: cannot be read: Is a directory")
