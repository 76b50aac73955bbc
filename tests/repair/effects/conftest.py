"""For the tests of effects."""

import gc

import pytest


@pytest.fixture
def apart():
    """Models are looked for among all objects of the process: leave out those of the test runner and of other tests."""
    gc.freeze()
    yield
    gc.unfreeze()
