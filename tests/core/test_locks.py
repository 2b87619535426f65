import errno
import fcntl
import logging
import os
import threading
import time
from pathlib import Path

import pytest

from c2fmae.core.errors import UserError
from c2fmae.core.locks import is_file_locked, lock_dir, lock_file


def test_a_second_process_waits_for_the_lock(tmp_path: Path) -> None:
    events: list[str] = []

    def work(name: str) -> None:
        with lock_dir(tmp_path):
            events.append(f"{name} in")
            time.sleep(0.05)
            events.append(f"{name} out")

    threads = [threading.Thread(target=work, args=(name,)) for name in "abc"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [event[2:] for event in events] == ["in", "out"] * 3
    assert all(events[i][0] == events[i + 1][0] for i in (0, 2, 4))


@pytest.mark.unchecked
def test_a_child_that_outlives_its_parent_does_not_hold_its_lock(tmp_path: Path) -> None:
    there, here = os.pipe()
    with lock_dir(tmp_path, busy_message="busy"):
        child = os.fork()
        if child == 0:
            os.write(here, b"!")
            time.sleep(60)
            os._exit(0)
        os.read(there, 1)
    try:
        with lock_dir(tmp_path, busy_message="busy"):
            pass
    finally:
        os.kill(child, 9)
        os.waitpid(child, 0)


def test_an_error_inside_the_block_is_not_taken_for_a_busy_lock(tmp_path: Path) -> None:
    with pytest.raises(BlockingIOError), lock_dir(tmp_path, busy_message="busy"):
        raise BlockingIOError


def test_a_second_process_is_rejected_with_a_busy_message(tmp_path: Path) -> None:
    with lock_dir(tmp_path), pytest.raises(UserError, match="^busy$"), lock_dir(tmp_path, busy_message="busy"):
        pass
    with lock_dir(tmp_path, busy_message="busy"):
        pass


def test_a_lock_file_exists_only_while_it_is_locked(tmp_path: Path) -> None:
    path = tmp_path / ".x.lock"
    with lock_file(path):
        assert is_file_locked(path)
        with pytest.raises(UserError, match=r"^busy$"), lock_file(path, busy_message="busy"):
            pass
        assert path.exists()
    assert not path.exists()


def test_the_lock_file_of_a_killed_process_is_taken_over(tmp_path: Path) -> None:
    path = tmp_path / ".x.lock"
    path.touch()
    assert not is_file_locked(path)
    with lock_file(path, busy_message="busy"):
        assert is_file_locked(path)
    assert not path.exists()


def test_a_file_that_its_holder_removes_while_another_waits_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, flock = tmp_path / ".x.lock", fcntl.flock
    num_locked = 0

    def remove_and_lock(descriptor: int, operation: int) -> None:
        nonlocal num_locked
        if num_locked < 2:
            path.unlink()
        if num_locked == 1:
            path.touch()  # a third process has made its own
        num_locked += 1
        flock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", remove_and_lock)
    with lock_file(path):
        assert num_locked == 3
        assert is_file_locked(path)
    assert not path.exists()


def test_nothing_is_locked_where_the_file_system_has_no_locks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with caplog.at_level(logging.WARNING), lock_file(tmp_path / ".x.lock", busy_message="busy"):
        pass
    assert caplog.messages == [
        f"{tmp_path}: this file system has no locks. Do not start the same command twice at once"
    ]
