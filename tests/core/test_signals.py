import signal
import threading

import pytest

from c2fmae.core.signals import catch_signals

NUMBERS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 75), (signal.SIGUSR1, 75), (signal.SIGINT, 130)])
def test_a_signal_is_recorded_with_its_exit_code(number: signal.Signals, code: int) -> None:
    with catch_signals() as stop:
        assert not stop
        signal.raise_signal(number)
        assert stop
        assert (stop.signal, stop.exit_code) == (number, code)


def test_the_second_ctrl_c_interrupts() -> None:
    with catch_signals() as stop:
        signal.raise_signal(signal.SIGINT)
        assert stop.exit_code == 130
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_other_signals_can_be_repeated() -> None:
    with catch_signals() as stop:
        for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
            signal.raise_signal(number)
        assert stop.exit_code == 130


def test_handlers_are_restored_after_an_error() -> None:
    before = [signal.getsignal(number) for number in NUMBERS]
    with catch_signals():
        during = [signal.getsignal(number) for number in NUMBERS]
        assert all(mine != theirs for mine, theirs in zip(during, before, strict=True))
    assert [signal.getsignal(number) for number in NUMBERS] == before
    with pytest.raises(ValueError, match="^boom$"), catch_signals():
        raise ValueError("boom")
    assert [signal.getsignal(number) for number in NUMBERS] == before


def test_other_threads_than_the_main_one_are_supported() -> None:
    before, found = [signal.getsignal(number) for number in NUMBERS], list[bool]()

    def work() -> None:
        with catch_signals() as stop:
            found.append(bool(stop))
            found.append([signal.getsignal(number) for number in NUMBERS] == before)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [False, True]
