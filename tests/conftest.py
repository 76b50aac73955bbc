"""For all tests."""

import gc
import signal

import pytest


def put_away() -> None:
    """What lives now is no longer looked through: not by the garbage collector, nor in a search for models.

    It is never taken back: the objects of the test runner and of all modules of tests are many, and each full
    collection and each search would cost more than most tests do.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture
def apart():
    """Models are looked for among all objects of the process: leave out those of the test runner and of other tests."""
    put_away()


def pytest_collection_finish():
    put_away()


def pytest_configure():
    """A shell that runs us in the background has told us to ignore Ctrl-C, and our children would inherit that."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:  # nohup
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
