"""The lint of words finds planted words in every kind of place, and none in clean text."""

from pathlib import Path

import pytest

from tools.lint_words import ALLOWED, NAME_WORDS, PROSE, PYTHON_PROSE, lint, main

CLEAN = '''\
"""Load images; `photos` and 'kept' are names, and so are --again, a/kept/path, photo=1 and https://told.org/said.

>>> said = told(photo)
'kept by nobody'
"""

import photos as images
from told import said

#!kept


class ImageFolder:
    """Images in a directory."""

    cache_dir: str
    """Where decoded images are cached."""


def load_images(path, *, num_images=None):
    """Return the learned embedding of images, as scikit-learn does."""
    options = {"kept": 1, "photo": said(path), f"{path}photos": images.told.said}
    return f"{path}: {options['kept']} images"  # cached in memory


def test_images_are_the_same_after_reloading():
    pass
'''

PLANTED = {
    "module docstring": '"""What nobody labelled."""\n',
    "docstring of one word": 'def load():\n    """Photos."""\n',
    "function docstring": 'def load():\n    """Say\n    which."""\n',
    "attribute docstring": 'SIZE = 1\n"""Of the photos."""\n',
    "comment line": "# made anew\n",
    "comment after code": "size = 1  # of the kept ones\n",
    "message": 'raise ValueError("cannot be had from here")\n',
    "f-string": 'print(f"{name} goes on with {step}")\n',
    "end of an f-string": 'print(f"{name} kept")\n',
    "phrase over two lines": '"""Images that are looked\nat often."""\n',
    "function": "def tell_all(): ...\n",
    "nested function": "def load():\n    def _said(): ...\n",
    "async function": "async def say(): ...\n",
    "class": "class KeptScenes: ...\n",
    "parameter": "def load(photo): ...\n",
    "keyword parameter": "def load(*, picture_size=1): ...\n",
    "lambda parameter": "load = lambda told: None\n",
    "attribute": "self.answers = 1\n",
    "field": "class Image:\n    opinion: str\n",
    "variable": "def load():\n    heir = 1\n",
    "constant": "SAID_FIRST = 1\n",
    "full name of a function": "def whole(): ...\n",
    "full name of a parameter": "def load(of): ...\n",
    "full name of a field": "class Image:\n    found: int\n",
    "test name": "def test_it_speaks_first(): ...\n",
    "test name that begins with a clause": "def test_what_fails_is_reported(): ...\n",
}


def words(path: str, text: str) -> list[str]:
    return [finding.word for finding in lint(path, text)]


@pytest.mark.parametrize("place", list(PLANTED))
def test_a_planted_word_is_found(place: str) -> None:
    assert len(words("c2fmae/core/images.py", PLANTED[place])) == 1


def test_clean_python_has_no_findings() -> None:
    assert words("c2fmae/core/images.py", CLEAN) == []


@pytest.mark.parametrize("path", ["c2fmae/core/kept.py", "c2fmae/pictures/image.py", "tests/test_said.py"])
def test_file_and_folder_names_are_checked(path: str) -> None:
    assert len(words(path, "")) == 1


def test_pages_are_checked_outside_of_code() -> None:
    page = "# Pictures\n\nYour photos, `kept` or [not](told.md):\n\n```python\nsaid  # anew\n```\n\nIt goes\non.\n"
    assert [str(finding) for finding in lint("docs/images.md", page)] == [
        "docs/images.md:1: 'Pictures': write image (input); figure, plot (output)",
        "docs/images.md:9: 'goes on': write continue, resume",
    ]


def test_a_word_inside_a_longer_one_is_not_found() -> None:
    page = "Skype's unsaid, foretold and scikit-learn's untold essays, handsome artifacts, and storytelling.\n"
    assert words("docs/images.md", page) == []


def test_a_short_name_may_be_part_of_a_longer_one() -> None:
    assert words("c2fmae/core/images.py", "def keep_last(note_width, at_step): ...\nwhole = 1\n") == []


def test_lines_are_those_of_the_words() -> None:
    text = '"""Load.\n\nAs told.\n"""\n\nSIZE = 1  # photos\n'
    assert [finding.line for finding in lint("c2fmae/core/images.py", text)] == [3, 6]


def test_exempted_words_are_allowed_in_their_files_alone() -> None:
    text = '"""Objects behind others, kept."""\n'
    assert words("c2fmae/data/generated/layout.py", text) == ["kept"]
    assert words("c2fmae/data/loader.py", text) == ["behind", "kept"]
    assert all(exemption.reason for exemption in ALLOWED)


def test_advice_uses_no_denied_word() -> None:
    for advice in [*PROSE.values(), *PYTHON_PROSE.values(), *NAME_WORDS.values()]:
        denied = words("docs/advice.md", advice.replace("made ahead", ""))
        assert not denied or "to tell apart" in advice, advice


def test_exit_code_is_1_with_findings_0_without_and_2_for_unreadable_files(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("clean.py").write_text(CLEAN)
    Path("page.md").write_text("It is spoilt.\n")
    Path("broken.py").write_text("def :\n")
    assert main(["clean.py"]) == 0
    assert main(["clean.py", "page.md"]) == 1
    assert capsys.readouterr().out == "page.md:1: 'spoilt': write corrupt, break\n"
    assert main(["missing.py"]) == 2
    assert main(["broken.py"]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert errors[0].startswith("missing.py: cannot be read: ")
    assert errors[1].startswith("broken.py: cannot be read: ")
