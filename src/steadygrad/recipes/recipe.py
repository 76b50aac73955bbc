"""What a recipe gives: model, optimizer, clip rule and schedule, and the step that puts them together."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.amp import GradScaler
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import DataLoader, Dataset

from steadygrad.clip import ClipStats
from steadygrad.init import InitReport
from steadygrad.recipes.rows import NORMS
from steadygrad.schedule import CurriculumSampler, ResumableLoader, ResumableSampler, competence_pacing

ClipRule = Callable[[Sequence[Tensor | None]], ClipStats]


@dataclass(frozen=True, eq=False)
class Recipe:
    """A model made ready, and what to train it with. Each part can be used alone; ``str()`` says what was done."""

    model: nn.Module  # the one that was given, unless that was itself replaced
    optimizer: Optimizer
    clip: ClipRule  # called with the gradients in the order of ``model.parameters()``
    scheduler: LRScheduler
    total_steps: int
    changes: tuple[str, ...]  # what was changed in the model, and what was left
    init: InitReport = field(repr=False)

    def step(self, scaler: GradScaler | None = None) -> ClipStats:
        """Clip, step, move the schedule on, and zero the gradients: call it after the last ``backward()`` of a step.

        A step with a non-finite gradient is left out whole: weights, moments and schedule stay, the gradients are
        zeroed, and ``finite`` of the result is False.

        Args:
            scaler: the ``torch.amp.GradScaler`` that scaled the loss, if one did; it unscales before the clipping and
                is updated after the step.
        """
        if scaler is not None:
            scaler.unscale_(self.optimizer)
        stats = self.clip([p.grad for p in self.model.parameters()])
        if bool(stats.finite):  # host sync
            if scaler is None:
                self.optimizer.step()
            else:
                scaler.step(self.optimizer)
            self.scheduler.step()
        if scaler is not None:
            scaler.update()
        self.optimizer.zero_grad()
        return stats

    def loader(
        self,
        dataset: Dataset[Any],
        batch_size: int,
        *,
        difficulty: Sequence[float] | Tensor | None = None,
        seed: int = 0,
        **options: Any,
    ) -> ResumableLoader:
        """Batches of the dataset in an order that can be resumed, easy samples first if a difficulty is given.

        Args:
            dataset: map-style, with a length.
            batch_size: samples in a batch, at least 1.
            difficulty: one number for each sample, small is easy (``schedule.difficulties``). The curriculum is
                open after a third of ``total_steps``, by ``schedule.competence_pacing``.
            seed: of the order.
            options: of ``torch.utils.data.DataLoader``.
        """
        sampler: CurriculumSampler | ResumableSampler
        if difficulty is None:
            sampler = ResumableSampler(dataset, seed=seed)  # type: ignore[arg-type]
        else:
            pacing = partial(competence_pacing, total_steps=max(1, self.total_steps // 3), start=0.1)
            sampler = CurriculumSampler(difficulty, pacing, samples_per_step=batch_size, seed=seed)
        return ResumableLoader(DataLoader(dataset, batch_size, sampler=sampler, **options))

    def state_dict(self) -> dict[str, Any]:
        """Everything but the data's place, which the loader has: model, optimizer, schedule, the clip rule's memory."""
        state = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
        }
        if hasattr(self.clip, "state_dict"):
            state["clip"] = self.clip.state_dict()
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was taken, with a recipe made by the same call."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        if hasattr(self.clip, "load_state_dict"):
            self.clip.load_state_dict(state["clip"])

    def __str__(self) -> str:
        chosen = [
            f"init {self.init.scheme}",
            f"optimizer {type(self.optimizer).__name__}",
            f"clip {_named(self.clip)}",
            f"schedule over {self.total_steps} steps",
        ]
        return "\n".join([*(f"model: {change}" for change in self.changes), *chosen])


def _named(rule: Any) -> str:
    if isinstance(rule, partial):
        settings = ", ".join(f"{k}={v}" for k, v in rule.keywords.items())
        return f"{rule.func.__name__}({settings})"
    return ", then ".join(_named(r) for r in rule.rules) if hasattr(rule, "rules") else repr(rule)


def decayed_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Weight decay for matrices and kernels, none for biases, norms and scales."""
    trained = [p for p in model.parameters() if p.requires_grad]
    if not trained:
        raise ValueError(
            f"{type(model).__name__} has no parameter with requires_grad: unfreeze what is to train"
        )
    norms = {p for m in model.modules() if isinstance(m, NORMS) for p in m.parameters()}
    decayed = [p.ndim >= 2 and p not in norms for p in trained]
    return [
        {"params": [p for p, d in zip(trained, decayed, strict=True) if d], "weight_decay": weight_decay},
        {"params": [p for p, d in zip(trained, decayed, strict=True) if not d], "weight_decay": 0.0},
    ]
