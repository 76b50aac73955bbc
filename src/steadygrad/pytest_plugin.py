"""For pytest: the fixture ``assert_steady``. Loaded with every pytest, so nothing is imported before it is used."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest


@pytest.fixture
def assert_steady() -> Iterator[Callable[..., None]]:
    """:func:`steadygrad.testing.assert_steady`, in a test that draws the same random numbers each time.

    torch's generators are seeded with 0 when the test begins, and put back when it is over.

    Example::

        def test_it_trains(assert_steady):
            model = Net()
            optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
            assert_steady(model, torch.nn.CrossEntropyLoss(), (x, y), optimizer)
    """
    import torch

    from steadygrad import testing

    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield testing.assert_steady
