"""What a planted training is, and the loop that all of them share."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

HERE = Path(__file__).parent
LossFn = Callable[[nn.Module, Any], Tensor]


@dataclass
class Training:
    """One training, ready to run."""

    model: nn.Module
    loss_fn: LossFn
    batches: Sequence[Any]
    optimizer: torch.optim.Optimizer
    backward: Callable[[Tensor], None] = Tensor.backward

    def step(self, batch: Any) -> Tensor:
        self.optimizer.zero_grad()
        loss = self.loss_fn(self.model, batch)
        self.backward(loss)
        self.optimizer.step()
        return loss.detach()


@dataclass(frozen=True)
class Planted:
    """A training and where its first non-finite value is made."""

    name: str
    build: Callable[[], Training]
    module: str
    ops: frozenset[str]
    kinds: frozenset[str]
    by_oracle: bool  # module and line are found by brute force, because no single line is the mistake
    b8: bool  # one of the twelve of reliability.md
    sample: int | None  # where the data are at fault

    def marked_line(self) -> tuple[str, int]:
        """File and line of the comment ``# PLANTED <name>``."""
        found = [
            (path.name, number)
            for path in sorted(HERE.glob("*.py"))
            for number, text in enumerate(path.read_text().splitlines(), 1)
            if re.search(rf"# PLANTED {self.name}$", text)
        ]
        assert len(found) == 1, f"{self.name} is marked {len(found)} times"
        return found[0]


@dataclass
class Corpus:
    cases: list[Planted] = field(default_factory=list)

    def __call__(
        self,
        *ops: str,
        kind: str,
        module: str = "",
        by_oracle: bool = False,
        b8: bool = False,
        sample: int | None = None,
    ) -> Callable[[Callable[[], Training]], Callable[[], Training]]:
        """Register the function below as a planted training of its name."""

        def register(build: Callable[[], Training]) -> Callable[[], Training]:
            kinds = frozenset(kind.split("|"))
            self.cases.append(
                Planted(build.__name__, build, module, frozenset(ops), kinds, by_oracle, b8, sample)
            )
            return build

        return register


planted = Corpus()


def sgd(model: nn.Module, lr: float = 1e-2) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=lr)


def adam(model: nn.Module, lr: float = 1e-3) -> torch.optim.Optimizer:
    return torch.optim.Adam(model.parameters(), lr=lr)


def regression(num: int = 3, rows: int = 16, inputs: int = 4, seed: int = 0) -> list[tuple[Tensor, Tensor]]:
    """Batches of a linear problem."""
    made = torch.Generator().manual_seed(seed)
    w = torch.randn(inputs, 1, generator=made)
    xs = [torch.randn(rows, inputs, generator=made) for _ in range(num)]
    return [(x, x @ w) for x in xs]


def labels(num: int = 3, rows: int = 16, inputs: int = 4, classes: int = 3) -> list[tuple[Tensor, Tensor]]:
    """Batches of a classification problem."""
    made = torch.Generator().manual_seed(1)
    w = torch.randn(inputs, classes, generator=made)
    xs = [torch.randn(rows, inputs, generator=made) for _ in range(num)]
    return [(x, (x @ w).argmax(1)) for x in xs]


def mlp(inputs: int = 4, hidden: int = 16, outputs: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, hidden), nn.Tanh(), nn.Linear(hidden, outputs))


def mse(model: nn.Module, batch: Any) -> Tensor:
    x, y = batch
    return (model(x) - y).square().mean()
