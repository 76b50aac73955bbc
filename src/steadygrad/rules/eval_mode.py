from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from steadygrad.records import Severity
from steadygrad.rules.oddity_rule import OddityRule


@dataclass
class EvalMode(OddityRule):
    """The model is trained in evaluation mode.

    What it measures: three steps in a row in which the whole model was in evaluation mode at every backward
    pass, where it holds dropout or batch norms that work on trained weights.

    Why it matters: without dropout nothing regularises. Batch norms then normalise with the running averages of
    the start, which no longer move: the activations grow, and the evaluation is wrong as well.

    Stays silent on: frozen batch norms in a model that is in training mode; models of which only a frozen part
    has such layers; models without any; an evaluation between steps.

    Remedies: `model.train()` at the head of each epoch, after every evaluation.

    Source: PyTorch documentation, Module.train; `from_pretrained` of Hugging Face transformers returns a model
    in evaluation mode.
    """

    code: ClassVar[str] = "M103"
    severity: ClassVar[Severity] = "info"
    kinds: ClassVar[tuple[str, ...]] = ("eval_mode",)
