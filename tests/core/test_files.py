import errno
import os
import shutil
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import pytest

from c2fmae.core import files
from c2fmae.core.errors import UserError
from c2fmae.core.files import (
    atomic_writer,
    check_disk_space,
    open_descriptor,
    open_file,
    read_file,
    read_text,
    write_atomic,
)
from tests.data.dataset_files import assert_user_error

DISK_IS_FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_the_content_of_a_file_or_of_a_link_to_it_is_read(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"content")
    (tmp_path / "link").symlink_to("a")
    assert read_file(tmp_path / "a") == read_file(str(tmp_path / "link")) == b"content"


def test_only_regular_files_are_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")  # to read from it would wait for ever
    (tmp_path / "endless").symlink_to("/dev/zero")
    for path in (tmp_path / "pipe", tmp_path / "endless"):
        message = f"{path}: is not a regular file. Replace it with one, or remove it"
        assert_user_error(partial(read_file, path), message)
        assert_user_error(partial(read_file, path, fix="Restore it"), f"{path}: is not a regular file. Restore it")
    message = f"{tmp_path}: cannot be read: Is a directory. Check the path, or restore the file"
    assert_user_error(lambda: read_file(tmp_path), message)
    missing = tmp_path / "missing"
    message = f"{missing}: cannot be read: No such file or directory. Check the path, or restore the file"
    assert_user_error(lambda: read_file(missing), message)
    assert_user_error(lambda: open_descriptor(missing), message)


def test_an_error_while_reading_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"")
    with pytest.raises(UserError, match=f"^{path}: cannot be read: Input/output error"), open_file(path):
        raise OSError(5, "Input/output error")


def test_a_larger_file_than_expected_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"12345")
    assert read_file(tmp_path / "a", max_bytes=5) == b"12345"
    message = f"{tmp_path / 'a'}: has 5 bytes, expected YAML of at most 4. Replace it with one, or remove it"
    assert_user_error(lambda: read_file(tmp_path / "a", max_bytes=4, content="YAML"), message)
    os.truncate(tmp_path / "a", 1 << 40)  # a sparse file
    with pytest.raises(UserError, match=r"has 1,099,511,627,776 bytes, expected a file of at most 1,073,741,824\."):
        read_file(tmp_path / "a")


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("a\0b", "'a\\x00b': cannot be the name of a file (embedded null byte)."),
        ("x" * 5000, f"{'x' * 5000}: cannot be read: File name too long."),
        ("\ud800", "'\\ud800': cannot be the name of a file ('utf-8' codec can't encode"),
    ],
)
def test_an_impossible_name_is_reported(name: str, problem: str) -> None:
    with pytest.raises(UserError) as caught:
        read_file(name)
    assert str(caught.value).startswith(problem)


def test_a_link_to_itself_is_reported(tmp_path: Path) -> None:
    path = tmp_path / "link"
    path.symlink_to("link")
    message = f"{path}: cannot be read: Too many levels of symbolic links. Check the path, or restore the file"
    assert_user_error(lambda: read_file(path), message)


def test_text_of_another_encoding_is_reported(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes("ä".encode())
    assert read_text(path) == "ä"
    path.write_bytes(b"\xe4")
    with pytest.raises(UserError, match=f"^{path}: is not UTF-8 text "):
        read_text(path)


def test_a_file_is_replaced_at_once(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_atomic(path, b"one\r\n")
    with path.open("rb") as old:
        write_atomic(path, b"two\n")
        assert (old.read(), path.read_bytes()) == (b"one\r\n", b"two\n")
    assert list(tmp_path.iterdir()) == [path]


def test_parent_directories_are_created(tmp_path: Path) -> None:
    write_atomic(tmp_path / "a" / "b" / "file", b"data")
    assert (tmp_path / "a" / "b" / "file").read_bytes() == b"data"


def test_a_streamed_file_has_its_name_when_it_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_atomic(path, b"old")
    with atomic_writer(path) as stream:
        stream.write(b"ne")
        stream.write(b"w")
        assert path.read_bytes() == b"old"
        (partial,) = set(tmp_path.iterdir()) - {path}
        assert partial.name.startswith(".file.")
        assert partial.name.endswith(files.PARTIAL_SUFFIX)
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("error", [DISK_IS_FULL, TypeError("no bytes"), KeyboardInterrupt()])
def test_an_error_leaves_the_previous_content_and_no_other_file(error: BaseException, tmp_path: Path) -> None:
    def fail_halfway() -> None:
        with atomic_writer(tmp_path / "file") as stream:
            stream.write(b"half")
            raise error

    write_atomic(tmp_path / "file", b"old")
    with pytest.raises(UserError if error is DISK_IS_FULL else type(error)):
        fail_halfway()
    assert {entry.name: entry.read_bytes() for entry in tmp_path.iterdir()} == {"file": b"old"}


def test_a_full_disk_is_reported_with_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(path: Path) -> None:
        raise DISK_IS_FULL

    monkeypatch.setattr(files, "fsync", fail)
    with pytest.raises(UserError) as caught:
        write_atomic(tmp_path / "file", b"data")
    reason = "cannot be written: No space left on device. Free space or fix its permissions, then run again"
    assert str(caught.value) == f"{tmp_path / 'file'}: {reason}"


def test_an_impossible_directory_is_reported_with_the_file(tmp_path: Path) -> None:
    write_atomic(tmp_path / "file", b"data")
    with pytest.raises(UserError, match="file/inside: cannot be written: "):
        write_atomic(tmp_path / "file" / "inside", b"data")


def test_processes_can_write_the_same_file_at_once(tmp_path: Path) -> None:
    def write(rounds: int) -> None:
        for _ in range(rounds):
            write_atomic(tmp_path / "features" / "chunk", b"the same", is_shared=True)

    processes = [get_context("fork").Process(target=write, args=(60,)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
    assert [path.name for path in (tmp_path / "features").iterdir()] == ["chunk"]


def test_too_little_disk_space_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**12, 0, 1_200_000_000))
    path = tmp_path / "run"
    check_disk_space(path, num_bytes=1_200_000_000)
    with pytest.raises(UserError) as caught:
        check_disk_space(path, num_bytes=3_400_000_000)
    assert str(caught.value) == (
        f"{path}: the checkpoints need 3.4 GB of disk space, but 1.2 GB are free. Free disk space, choose another "
        "--out, or lower saving.keep_last"
    )


def test_disk_space_is_that_of_the_nearest_existing_directory(tmp_path: Path) -> None:
    check_disk_space(tmp_path / "not" / "yet" / "there", num_bytes=1)
    with pytest.raises(UserError, match=r"^run: the checkpoints need 1000000000.0 GB"):
        check_disk_space(Path("run"), num_bytes=10**18)
