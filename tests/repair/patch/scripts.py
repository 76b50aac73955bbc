"""Small trainings, each written in another way."""

from __future__ import annotations

PLAIN = """\
import torch
from torch import nn

model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1))
x = 3 * torch.randn(16, 4)
y = x.sum(1, keepdim=True)
losses = []
optimizer = {optimizer}
{more}for step in range(12):
    optimizer.zero_grad()
    loss = ((model(x) - y) ** 2).mean()
    loss.backward()
    optimizer.step()
    {after}losses.append(loss.item())
"""


def plain(
    optimizer: str = "torch.optim.SGD(model.parameters(), lr=1e-3)", more: str = "", after: str = ""
) -> str:
    """A loop at the top of a script; ``more`` before it, ``after`` behind each step."""
    more = f"{more}\n" if more else ""
    return PLAIN.format(optimizer=optimizer, more=more, after=f"{after}\n    " if after else "")
