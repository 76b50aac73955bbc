"""What is asked of torch, and how much memory that reads: for promises about cost that no clock can keep."""

from collections import Counter

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Counting(TorchDispatchMode):
    """Counts operations and the bytes of the tensors given to them, by name; views and allocations read nothing."""

    def __init__(self):
        super().__init__()
        self.calls = Counter()
        self.bytes_read = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func._schema.name.removeprefix("aten::")
        self.calls[name] += 1
        if not func.is_view:
            given = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
            self.bytes_read[name] += sum(x.numel() * x.element_size() for x in given)
        return func(*args, **(kwargs or {}))
