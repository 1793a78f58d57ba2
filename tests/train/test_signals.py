"""The first signal is noted, the second acts as always, and handlers are put back."""

import os
import signal
import threading

import pytest

from cook.train.signals import Signals


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_first_is_noted_and_the_second_acts(number):
    before = signal.getsignal(number)
    caught = []
    signal.signal(number, lambda *_: caught.append(number))
    try:
        with Signals() as signals:
            assert not signals.received
            os.kill(os.getpid(), number)
            assert signals.received
            assert caught == []
            os.kill(os.getpid(), number)
            assert caught == [number]
        os.kill(os.getpid(), number)
        assert caught == [number, number]
    finally:
        signal.signal(number, before)


def test_handlers_are_put_back_on_any_exception():
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)

    def broken() -> None:
        with Signals():
            assert signal.getsignal(signal.SIGTERM) is not before[0]
            raise KeyError("inside")

    with pytest.raises(KeyError):
        broken()
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


def test_ctrl_c_twice_interrupts():
    def twice() -> None:
        with Signals():
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)

    # What is started in the background may be told to ignore it.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            twice()
    finally:
        signal.signal(signal.SIGINT, before)


def test_other_threads_catch_nothing():
    seen = []

    def work() -> None:
        with Signals() as signals:
            seen.append((signals.received, signal.getsignal(signal.SIGTERM)))

    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [(False, before)]
