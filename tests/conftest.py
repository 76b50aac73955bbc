"""For all tests."""

import gc
import signal

import pytest


@pytest.fixture
def apart():
    """Models are looked for among all objects of the process: leave out those of the test runner and of other tests."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


def pytest_configure():
    """A shell that runs us in the background has told us to ignore Ctrl-C, and our children would inherit that."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:  # nohup
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
