from pathlib import Path

import pytest

from c2fmae.core.config import Config
from c2fmae.core.errors import UserError
from c2fmae.core.yaml_file import parse_yaml, read_yaml

DEEP = "is nested more than 64 levels deep. Remove levels"
ALIASES = "\n".join(["a0: &a0 [1]", *(f"a{n}: &a{n} [{', '.join(10 * [f'*a{n - 1}'])}]" for n in range(1, 12))])
MERGES = "\n".join(
    ["a0: &a0 {x: 1}", *(f"a{n}: &a{n} {{<<: [{', '.join(10 * [f'*a{n - 1}'])}]}}" for n in range(1, 12))]
)


class Settings(Config):
    name: str = ""
    steps: int = 0


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("a: !!int ''", "line 1, column 4: '' is not a valid int"),
        ("a: 1\nb: " + "9" * 5000, f"line 2, column 4: '{'9' * 40}…' is not a valid int"),
        ("a: !!bool x", "line 1, column 4: 'x' is not a valid bool"),
        ("a: !!float x", "line 1, column 4: 'x' is not a valid float"),
        (
            "a: !!timestamp x",
            "line 1, column 4: could not determine a constructor for the tag 'tag:yaml.org,2002:timestamp'",
        ),
        ("a: " + "[" * 3000, DEEP),
        ("a: " + "[" * 100 + "]" * 100, DEEP),
        ("a: " + "{a: " * 3000, DEEP),
        ("- " * 3000, DEEP),
        ("a: &x [*x]", DEEP),
        (ALIASES, "line 1, column 1: has more than 100,000 values"),
        (MERGES, "line 1, column 1: has more than 100,000 values"),
        ("a: \x00", "not YAML: unacceptable character #x0000: special characters are not allowed\n"),
    ],
)
def test_text_without_a_value_is_rejected_with_its_position(text: str, problem: str) -> None:
    with pytest.raises(UserError) as caught:
        parse_yaml(text, "FILE")
    assert str(caught.value).startswith(f"FILE: {problem}")


def test_values_have_the_types_of_json() -> None:
    text = "{a: 2001-99-99, b: 2024-01-02, c: 0x10, d: [1.5, yes, ~], e: '1', f: =, g: &x [1], h: *x}"
    assert parse_yaml(text, "FILE") == {
        "a": "2001-99-99",
        "b": "2024-01-02",
        "c": 16,
        "d": [1.5, True, None],
        "e": "1",
        "f": "=",
        "g": [1],
        "h": [1],
    }
    assert parse_yaml("", "FILE") is None


@pytest.mark.parametrize("text", ["2001-99-99", "!!int ''", "!!bool x", "9" * 5000, "[" * 3000, "{", "&x [*x]"])
def test_an_override_that_is_no_yaml_is_text(text: str) -> None:
    assert Settings().override([f"name={text}"]).name == text
    with pytest.raises(UserError, match=r"^--set: steps: "):
        Settings().override([f"steps={text}"])


def test_a_file_is_read_up_to_a_size(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("steps: 1 #" + " " * (1 << 18))
    with pytest.raises(UserError) as caught:
        read_yaml(path)
    assert str(caught.value) == (
        f"{path}: has 262,154 bytes, expected YAML of at most 262,144. Check the path, or use another file"
    )
