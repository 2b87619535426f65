"""Commands that messages suggest, found in the source: the command line accepts each of them."""

import ast
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import c2fmae_cli
import pytest
import typer.main

import c2fmae
from tests.cli.parsing import is_bare_command, parse_command, split_commands

ROOTS = [Path(str(package.__file__)).parent for package in (c2fmae, c2fmae_cli)]
COMMANDS = typer.main.get_command(c2fmae_cli.app).commands  # type: ignore[attr-defined]


def find_texts(tree: ast.AST) -> Iterator[str]:
    """Yield the strings of a module, docstrings excluded, with X for each inserted value."""
    skipped = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and isinstance(node.body[0], ast.Expr)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            skipped |= {id(part) for part in node.values}
            yield "".join(str(part.value) if isinstance(part, ast.Constant) else "X" for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in skipped:
            yield node.value


def find_hints() -> Iterator[str]:
    """Yield every command in the strings of the package and of the command line, up to the end of its line."""
    for root in ROOTS:
        for path in sorted(root.rglob("*.py")):
            for text in find_texts(ast.parse(path.read_text())):
                for match in re.finditer(r"(?<![\w-])c2fmae [a-z][^`\n>]*", text):
                    is_quoted = text[: match.start()].endswith(("`", "next: ", "Run: ", "Use: ", "with: ", "it: "))
                    if is_quoted or match[0].split()[1] in COMMANDS:  # others are sentences about the package
                        yield match[0].partition(" with ")[0].replace("STEP", "1")


HINTS = sorted({hint for hint in find_hints() if not re.match(r"c2fmae \w+ X X", hint)})  # a command's name is inserted


def test_hints_are_found() -> None:
    assert len(HINTS) > 40
    assert "c2fmae eval robustness X --custom NAME=DIR" in HINTS


@pytest.mark.parametrize("hint", HINTS)
def test_suggested_commands_exist(hint: str) -> None:
    (words,) = split_commands(hint)
    if not is_bare_command(words):  # the mere name of a command, which the message is about, needs no arguments
        parse_command(words)


def test_extras_to_install_exist() -> None:
    named = {
        extra
        for root in ROOTS
        for path in root.rglob("*.py")
        for text in find_texts(ast.parse(path.read_text()))
        for extra in re.findall(r"c2fmae\[([a-z]+)\]", text)
    }
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    assert {"hf", "onnx"} <= named <= project["optional-dependencies"].keys()
