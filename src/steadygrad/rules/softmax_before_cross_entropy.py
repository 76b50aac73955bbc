from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from steadygrad.records import Severity
from steadygrad.rules.oddity_rule import OddityRule


@dataclass
class SoftmaxBeforeCrossEntropy(OddityRule):
    """A softmax comes before a cross entropy that has one of its own.

    What it measures: in the graph of the loss, a cross entropy whose input is the output of a softmax or of a
    log-softmax followed by others.

    Why it matters: the input then lies between 0 and 1, so that the loss of C classes cannot fall below ln(1 +
    (C - 1) / e), and the gradient is a product of two softmaxes that dies as the model grows sure.

    Stays silent on: `nll_loss` on a log-softmax; a softmax in an attention.

    Remedies: give the logits to the loss; take the softmax for predictions only.

    Source: PyTorch documentation, CrossEntropyLoss (input: unnormalised logits); Humbatova et al., Taxonomy of
    Real Faults (ICSE 2020).
    """

    code: ClassVar[str] = "M106"
    severity: ClassVar[Severity] = "info"
    kinds: ClassVar[tuple[str, ...]] = ("softmax_before_cross_entropy",)
