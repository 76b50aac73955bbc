"""Each test starts from the same random stream and leaves the stream as it was."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture(autouse=True)
def one_random_stream():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield
