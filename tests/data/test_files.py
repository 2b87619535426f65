import os
from functools import partial
from pathlib import Path

import pytest

from c2fmae.core.errors import UserError
from c2fmae.data.files import open_descriptor, open_file, read_file
from tests.data.dataset_files import assert_user_error


def test_the_content_of_a_file_or_of_a_link_to_it_is_read(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"content")
    (tmp_path / "link").symlink_to("a")
    assert read_file(tmp_path / "a") == read_file(str(tmp_path / "link")) == b"content"


def test_only_regular_files_are_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")  # to read from it would wait for ever
    for path in (tmp_path / "pipe", tmp_path):
        message = f"{path}: is not a regular file. Replace it with one, or remove it"
        assert_user_error(partial(read_file, path), message)
    missing = tmp_path / "missing"
    message = f"{missing}: cannot be read: No such file or directory. Check the path, or restore the file"
    assert_user_error(lambda: read_file(missing), message)
    assert_user_error(lambda: open_descriptor(missing), message)


def test_an_error_while_reading_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"")
    with pytest.raises(UserError, match=f"^{path}: cannot be read: Input/output error"), open_file(path):
        raise OSError(5, "Input/output error")
