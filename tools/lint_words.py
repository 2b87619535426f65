"""Check that names, docstrings, comments, messages and pages use ordinary technical English.

    python tools/lint_words.py [PATH …]

Checks the given Python and Markdown files, or all that git tracks, and prints `path:line: 'word': write …` for each
word that a reader would have to translate. Code is skipped: text in backticks, fenced blocks, doctests, URLs, paths,
options, and single quoted words such as 'pixels'. To allow a word somewhere, add it to `ALLOWED` with the reason.

Exit codes: 0 no findings, 1 findings, 2 a file cannot be read.
"""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

PROSE = {
    r"anew|afresh": "again, from scratch; to compute again is to recompute",
    r"answer(?:s|ed|ing)?": "prediction, output, response; return",
    r"behind": "after, following",
    r"by\s+a\s+hair": "slightly",
    r"by\s+heart": "overfit, or list explicitly",
    r"cannot\s+be\s+had": "cannot be loaded, does not exist",
    r"entrants?": "model, model under test",
    r"facts": "metadata",
    r"(?:go(?:es|ing)?|gone|went)\s+by": "use, depend on, be named",
    r"(?:go(?:es|ing)?|gone|went)\s+on": "continue, resume",
    r"gives?\s+way": "be replaced",
    r"hands": "workers; pass",
    r"heirs?": "replacement",
    r"(?:is|are)\s+not\s+there": "is missing, does not exist",
    r"kept": "stored, cached, saved",
    r"knows": "support, contain, store",
    r"last\s+words": "failure reason",
    r"(?<!scikit )learns?|learnt|learned\s+(?:from|on|by)|(?:has|have|had)\s+learned": "train, be trained on",
    r"look(?:s|ed|ing)?\s+(?:at|into)|a\s+look": "read, inspect, attend to",
    r"made\s+ahead|makes?\s+ahead": "prefetch",
    r"mend(?:s|ed|ing)?": "fix, repair",
    r"nobody|somebody|everybody|anybody|whoever": "name the person or process: the caller, the user, no one",
    r"of\s+(?:then|before|today)": "previous, current",
    r"opinions?": "prediction",
    r"pass(?:es|ed|ing)?\s+over": "skip",
    r"pictures?": "image (input); figure, plot (output)",
    r"so\s+many": "the number: N, num_…",
    r"says?|said|saying": "report, state, name, show",
    r"speaks?|spoken|speaking": "write, log",
    r"spoil(?:s|t|ed)?": "corrupt, break",
    r"stands\b(?!\s+for)": "be",
    r"strange|strangers?": "unexpected; another package, a newcomer",
    r"tells?|told|telling": "report, print, pass; to tell apart is to distinguish",
}
"""Words of docstrings, comments, messages and pages that readers have to translate, and what to write instead."""

PYTHON_PROSE = {r"photos?": "image (only pages may call a user's own files photos)"}
"""Further such words, for Python files only."""

NAME_WORDS = {
    "anew": "recompute",
    "answer": "prediction",
    "answers": "predictions",
    "entrant": "model",
    "facts": "metadata",
    "hands": "workers, batching",
    "heir": "replacement",
    "kept": "cached, saved",
    "nobody": "no one",
    "opinion": "prediction",
    "photo": "image",
    "photos": "images",
    "picture": "image, figure",
    "pictures": "images, figures",
    "said": "message, config",
    "say": "report, describe",
    "says": "reports, describes",
    "tell": "report, describe",
    "tells": "reports, describes",
    "told": "config, message",
}
"""Words that no name contains."""

FULL_NAMES = frozenset(
    ("at", "each", "found", "it", "keep", "look", "made", "note", "of", "parts", "see", "share", "take", "who", "whole")
)
"""Words that may be part of the name of a function, class, parameter or attribute, but not the complete name."""

_FULL_NAME_ADVICE = "a verb and its object (load_checkpoint), or a specific noun (num_visible)"
_TEST_NAME_ADVICE = "the subject first (test_invalid_options_are_rejected)"


class Exemption(NamedTuple):
    """Words that are allowed in some files."""

    path: str
    words: str
    reason: str


ALLOWED = [
    Exemption(r"docs/renamed\.md|tools/lint_words\.py|tests/test_words\.py", r"[\s\S]*", "lists the words"),
    Exemption(r"(c2fmae|tests)/data/generated/.*", "behind", "objects lie behind others"),
    Exemption(r"c2fmae/exports/as_graph\.py|tests/exports/.*", "photos", "the input of exported graphs has this name"),
    Exemption(r"c2fmae/labelling/grounded/owlv2\.py", "photo", "the text with which the model was trained"),
    Exemption(r"c2fmae/config/decoder\.py", "share", "the setting's complete name is method.decoder.share"),
    Exemption(
        r"c2fmae/data/corruption/creation_record\.py|tests/data/corruption/test_make_set\.py",
        "photo",
        "a key of stored records has this name",
    ),
]
"""Words that some files need despite the rules above. The patterns of path and words must match completely."""


@dataclass(frozen=True)
class Finding:
    """A word to replace."""

    path: str
    line: int
    word: str
    advice: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {' '.join(self.word.split())!r}: write {self.advice}"


class Vocabulary:
    """Patterns of words, joined into one regular expression, with what to write instead of each."""

    def __init__(self, *tables: Mapping[str, str]) -> None:
        rules = {pattern: advice for table in tables for pattern, advice in table.items()}
        self._advice = list(rules.values())
        groups = "|".join(f"({pattern})" for pattern in rules)
        self._pattern = re.compile(rf"(?<![\w.-])(?:{groups})(?!\w)", re.IGNORECASE)

    def find(self, text: str) -> Iterator[tuple[int, str, str]]:
        """Yield the position, the word and the advice of each match."""
        for match in self._pattern.finditer(text):
            assert match.lastindex is not None
            yield match.start(), match[0], self._advice[match.lastindex - 1]


_PAGES, _SOURCES = Vocabulary(PROSE), Vocabulary(PROSE, PYTHON_PROSE)

_CODE = re.compile(
    r"""
      ^\s*```[\s\S]*?^\s*```      # a fenced block
    | ^\s*>>>.*(?:\n\s*\S.*)*     # a doctest and its output
    | ``.+?`` | `[^`]+`           # code
    | \]\([^)\s]+\)               # the target of a link
    | '[^'\s]+' | "[^"\s]+"       # a quoted name
    | (?<!\w)--?[a-z]\S*          # an option
    | \w*[./=_:\\]\w\S*           # a path, URL, assignment or dotted name
    """,
    re.MULTILINE | re.VERBOSE,
)


def lint(path: str, text: str) -> Iterator[Finding]:
    """Yield every word of a file that readers would have to translate."""
    findings = _lint_page(path, text) if path.endswith(".md") else _lint_source(path, text)
    exemptions = [exemption.words for exemption in ALLOWED if re.fullmatch(exemption.path, path)]
    for finding in findings:
        if not any(re.fullmatch(words, finding.word, re.IGNORECASE) for words in exemptions):
            yield finding


def _lint_page(path: str, text: str) -> Iterator[Finding]:
    yield from _lint_prose(path, 1, text, _PAGES)


def _lint_source(path: str, text: str) -> Iterator[Finding]:
    for name in Path(path).with_suffix("").parts:
        yield from _lint_name(path, 1, name)
    source = _read_source(text)
    for line, name in source.names:
        yield from _lint_name(path, line, name)
    for line, name in source.variables:
        yield from _lint_name(path, line, name, is_variable=True)
    for line, prose in source.prose:
        yield from _lint_prose(path, line, prose, _SOURCES)


def _lint_prose(path: str, line: int, text: str, vocabulary: Vocabulary) -> Iterator[Finding]:
    prose = _CODE.sub(lambda code: re.sub(r"[^\n]", "`", code[0]), text)
    for start, word, advice in vocabulary.find(prose):
        yield Finding(path, line + prose.count("\n", 0, start), word, advice)


def _lint_name(path: str, line: int, name: str, *, is_variable: bool = False) -> Iterator[Finding]:
    words = [word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])", name)]
    if name.startswith("test_"):  # a sentence
        for _, word, advice in _SOURCES.find(" ".join(words[1:])):
            yield Finding(path, line, f"{word} (in {name})", advice)
        if words[1:2] == ["what"]:
            yield Finding(path, line, name, _TEST_NAME_ADVICE)
        return
    for word in words:
        if word in NAME_WORDS:
            yield Finding(path, line, name, NAME_WORDS[word])
    if len(words) == 1 and words[0] in FULL_NAMES and not is_variable:
        yield Finding(path, line, name, _FULL_NAME_ADVICE)


class Source(NamedTuple):
    """Names and text of a Python file, each with its line."""

    names: list[tuple[int, str]]
    """Names of functions, classes, parameters and attributes."""
    variables: list[tuple[int, str]]
    prose: list[tuple[int, str]]
    """Docstrings, comments, and strings of several words: a single word is a key or a registered name."""


def _read_source(text: str) -> Source:
    names, variables, prose = [], [], []
    read, docstrings, string_lines = set[int](), set[int](), set[int]()
    for node in ast.walk(ast.parse(text)):  # a node before its children
        if id(node) in read:
            continue
        match node:
            case ast.Expr():
                docstrings.add(id(node.value))
            case ast.Constant(value=str(string)):
                if " " in string.strip() or id(node) in docstrings:
                    prose.append((node.lineno, string))
                if "\n" in string:
                    string_lines.update(range(node.lineno, (node.end_lineno or node.lineno) + 1))
            case ast.JoinedStr():
                literals = [part for part in node.values if isinstance(part, ast.Constant)]
                read.update(map(id, literals))
                string = "".join(str(part.value) if part in literals else "{}" for part in node.values)
                if " " in string.strip():
                    prose.append((node.lineno, string))
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
                names.append((node.lineno, node.name))
            case ast.arg():
                names.append((node.lineno, node.arg))
            case ast.Attribute(ctx=ast.Store()):
                names.append((node.lineno, node.attr))
            case ast.Name(ctx=ast.Store()):
                variables.append((node.lineno, node.id))
        if isinstance(node, ast.ClassDef):
            fields = [line.target for line in node.body if isinstance(line, ast.AnnAssign)]
            read.update(map(id, fields))
            names += [(field.lineno, field.id) for field in fields if isinstance(field, ast.Name)]
    for number, line in enumerate(text.splitlines(), 1):
        if number not in string_lines and (comment := re.search(r"(?:^|\s)# (.*)", line)):
            prose.append((number, comment[1]))
    return Source(names, variables, prose)


def _tracked_files() -> list[str]:
    listed = subprocess.run(["git", "ls-files", "*.py", "*.md"], capture_output=True, text=True, check=True)
    return [path for path in listed.stdout.splitlines() if not Path(path).is_symlink()]


def main(paths: list[str]) -> int:
    """Lint the given files, or all that git tracks; return the exit code."""
    findings: list[Finding] = []
    for path in paths or _tracked_files():
        try:
            findings += lint(path, Path(path).read_text(encoding="utf-8"))
        except (OSError, ValueError, SyntaxError) as error:
            print(f"{path}: cannot be read: {error}", file=sys.stderr)
            return 2
    for finding in findings:
        print(finding)
    return int(bool(findings))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
