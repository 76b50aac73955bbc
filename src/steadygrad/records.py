"""The few records that all rooms share. Plain numbers and names, no tensors, no behaviour.

``step`` counts the steps of one optimizer from 0; with several optimizers (a GAN) each has its own count.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np

Severity = Literal["info", "warning", "alarm"]
"""``info`` is recorded and drawn; ``warning`` is told to the user; ``alarm`` allows the guard to act."""

ActionKind = Literal["skip", "clip", "rollback", "lr_backoff", "remedy", "stop", "disarm"]

NAN = float("nan")


@dataclass(frozen=True, slots=True)
class ParamInfo:
    """One trained tensor, named as the module tree names it."""

    index: int  # position in the tables of the trace
    name: str
    shape: tuple[int, ...]
    dtype: str  # "float32", ...
    optimizer: int
    module: str  # dotted path of the module that owns it, "" for the root or unknown
    module_type: str  # class name of that module, "" if unknown
    aliases: tuple[str, ...] = ()  # further names of a shared tensor

    @property
    def numel(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True, slots=True)
class TensorStats:
    """Signals of one parameter, taken on a rotating sixteenth of them each step."""

    param: int
    grad_max_abs: float
    weight_norm: float  # L2, before the update
    update_ratio: float  # ||update|| / ||weight||; nan if the step was not applied or the weight is 0
    adam_rms: float = (
        NAN  # sqrt(mean(g^2 / v_hat)): 1 is healthy, >> 1 stale, << 1 frozen; nan without a second moment
    )
    state_finite: bool = (
        True  # of the share of the optimizer state looked at; all of it if weights are not finite
    )
    weight_finite: bool = True


@dataclass(frozen=True, slots=True)
class ActivationStats:
    """Signals of one module's output, on sampled steps only."""

    module: str
    module_type: str
    rms: float  # root mean square of the output; nan or inf if it holds such a value
    dead: float = NAN  # fraction of units that are exactly 0 on the whole batch, for outputs of a ReLU
    saturated: float = NAN  # fraction of values at the flat ends, for outputs of tanh, sigmoid or softmax
    input_rms: float = NAN  # of the first tensor argument


@dataclass(frozen=True, slots=True)
class LayerStats:
    """One weight at work in a backward pass, in the order of execution. All uses of the weight together."""

    name: str  # of the parameter
    op: str  # "Addmm", "Convolution", "Embedding", ...
    uses: int
    input_rms: float  # of what the layer was given at its first use; nan if it is not known
    input_max: float  # largest absolute value over the uses looked at, 64 at most
    output_rms: float  # of what it put out at its last use; nan if it is not known
    grad_rms: float  # of the gradient with respect to its output, at its first use
    dtype: str  # of what it put out: "float16" under autocast
    same_units: bool = (
        False  # all rows of the weight are equal: its units compute the same, and will for ever
    )


@dataclass(frozen=True, slots=True)
class RecurrenceStats:
    """A weight that is used again on what came out of its last use: a step of time, or of depth."""

    name: str
    steps: int  # number of uses
    forward_decades: float  # log10 growth of the state from the first quarter of the steps to the last
    backward_decades: float  # log10 growth of the gradient from the last quarter to the first
    state_rms: float  # of the state, mean over the last quarter
    gain: float  # largest singular value of the weight if it is square; nan if not known


@dataclass(frozen=True, slots=True)
class AttentionStats:
    """A softmax over keys."""

    name: str  # of the parameter next above it
    max_logit: float  # largest |logit| that is no mask; nan where only the probabilities were kept
    entropy: (
        float  # mean over rows of entropy / log(number of keys); masked rows and rows with one key left out
    )
    keys: int


@dataclass(frozen=True, slots=True)
class LossTerm:
    """One part of a loss that is a known function of a prediction and a target."""

    kind: (
        str  # "cross_entropy", "bce", "bce_logits", "mse", "l1", "smooth_l1", "huber", "kl_div", "nll", "ctc"
    )
    value: float  # as its mean over elements, whatever its reduction
    trivial: float  # the same for the best constant prediction on the targets seen so far; nan if not known
    weight: float  # what one unit of ``value`` adds to the loss; nan if not known
    reduction: str  # "mean", "sum", "none"
    elements: int  # number of target elements
    prediction_rms: float
    target_rms: float  # nan for class indices
    target_mean: float
    target_std: float  # over all elements; the mean over columns for targets of several columns
    classes: int = 0  # of a cross entropy
    repeats: int = 1  # terms of the same kind and size merged into this one: the steps of a sequence
    output: str = ""  # bounded function whose values are the prediction: "Softmax", "Sigmoid", "Tanh", "Relu"
    out_of_range: float = 0.0  # fraction of the targets that such a function cannot reach
    target_moves: bool = False  # the target was computed by the model itself, or by a copy of it


@dataclass(frozen=True, slots=True)
class Oddity:
    """Something in the graph or in the loop that is almost never meant."""

    kind: str  # e.g. "softmax_before_cross_entropy"
    where: str
    message: str
    evidence: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Portrait:
    """What the graph of a backward pass showed, on sampled steps only."""

    layers: tuple[LayerStats, ...] = ()
    recurrences: tuple[RecurrenceStats, ...] = ()
    attention: tuple[AttentionStats, ...] = ()
    terms: tuple[LossTerm, ...] = ()
    oddities: tuple[Oddity, ...] = ()
    normalised: int = 0  # normalisation layers in the graph
    post_normalised: int = 0  # those of them that stand on the skip path itself
    residual: int = 0  # additions of a hidden value and something computed from it
    nodes: int = 0  # size of the graph
    complete: bool = True  # False: cut off, compiled, or recomputed parts were not seen
    loss: float = NAN  # of its step, per backward; filled in by whoever knows both


@dataclass(frozen=True, slots=True)
class EmbeddingStats:
    """What a batch of embeddings looked like, in a training without labels; on sampled steps only."""

    samples: int  # that were measured
    dims: int
    spread: float = NAN  # sqrt(sum of variances) at unit length: 1 in all directions, 0: all one vector
    effective_rank: float = NAN  # of the centred ones, 0 to min(samples - 1, dims); 0: all one vector
    alignment: float = NAN  # mean squared distance of two views at unit length, 0 to 4; nan: one view
    uniformity: float = NAN  # log mean Gaussian potential: 0 if all are one vector, down to about -4


@dataclass(frozen=True, slots=True)
class StepStats:
    """Every signal of one optimizer step."""

    step: int
    optimizer: int
    loss: float | None  # sum of the roots of `backward` since the last step, unscaled; None if none was seen
    grad_norm: float  # joint L2 norm before the user's clipping, unscaled
    clipped_grad_norm: float  # what reached the optimizer (before any clipping of ours)
    grad_norms: np.ndarray  # float32, one per parameter of this optimizer; nan where there was no gradient
    lr: float  # of the first group, with the factors of ``schedule.warmup`` and its kin
    params: Sequence[ParamInfo] = ()
    applied: bool = True  # False: the guard skipped the step
    loss_scale: float | None = None  # GradScaler's
    amp_skips: int = 0  # steps that the GradScaler skipped since the last record
    num_backwards: int = 1
    tensors: tuple[TensorStats, ...] = ()
    activations: tuple[ActivationStats, ...] = ()
    seconds: float = NAN  # since the previous step of this optimizer
    portrait: Portrait | None = None  # on sampled steps
    embedding: EmbeddingStats | None = None  # on sampled steps, where embeddings were shown

    @property
    def finite(self) -> bool:
        """Whether the gradient that reached the optimizer is finite throughout."""
        return math.isfinite(self.grad_norm) and math.isfinite(self.clipped_grad_norm)

    def with_outcome(
        self,
        applied: bool,
        tensors: tuple[TensorStats, ...],
        activations: tuple[ActivationStats, ...],
        seconds: float,
        portrait: Portrait | None,
    ) -> StepStats:
        """The same step with what is known when it is over. In full: ``replace`` takes three times as long."""
        return StepStats(
            self.step,
            self.optimizer,
            self.loss,
            self.grad_norm,
            self.clipped_grad_norm,
            self.grad_norms,
            self.lr,
            self.params,
            applied,
            self.loss_scale,
            self.amp_skips,
            self.num_backwards,
            tensors,
            activations,
            seconds,
            portrait,
            self.embedding,
        )


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that a rule noticed, with the numbers it rests on."""

    code: str  # stable, e.g. "G101"
    rule: str  # name of the rule's function or class in snake case
    step: int
    where: str  # a parameter, a module, "loss", or "model"
    message: str
    evidence: Mapping[str, float] = field(default_factory=dict)
    severity: Severity = "warning"
    optimizer: int = 0

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Action:
    """One thing that the guard did."""

    step: int
    action: ActionKind
    reason: str  # a sentence
    code: str  # code of the finding it answers, "" if none
    optimizer: int = 0
    details: Mapping[str, float] = field(default_factory=dict)  # e.g. {"to_step": 30, "max_norm": 1.1}

    @property
    def prescribed(self) -> bool:
        """Whether it was in force from the first step: it answers no incident."""
        return self.action == "remedy" and not self.code

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Cause:
    """Why it happened: one entry of a ranking."""

    cause: str  # one of the names in docs/causes
    probability: float
    where: str
    supporting: tuple[str, ...]  # codes of the findings for it
    contradicting: tuple[str, ...]
    advice: str
    message: str = ""  # the cause in a sentence, with its numbers

    def to_json(self) -> dict[str, Any]:
        return {
            "cause": self.cause,
            "probability": self.probability,
            "where": self.where,
            "for": list(self.supporting),
            "against": list(self.contradicting),
            "advice": self.advice,
            "message": self.message,
        }


@dataclass(frozen=True, slots=True)
class FirstNonFinite:
    """Where the first NaN or infinity was made: the operation whose inputs were still finite."""

    step: int
    kind: Literal["forward", "backward", "loss", "optimizer", "data"]
    module: str  # dotted path, "" outside of every module
    op: str  # "log", "addcdiv", ...; of a backward pass the operation whose derivative it is
    file: str  # relative to the working directory, or the file's name alone
    line: int  # of the user's code; 0 if there is none
    batch: int  # backward passes since the start of the training
    sample: int | None  # position on axis 0, where only some samples are hit
    value: Literal["nan", "inf", "-inf"]
    detail: str  # a sentence: "log of 0 in 12 of 640 values"
    growth: str = ""  # the operation with the largest growth before an overflow that was prepared elsewhere

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, slots=True)
class RunSummary:
    """What a watched run came to: the terminal's last words and the object of ``--json``."""

    run_dir: str | None
    steps: int
    seconds: float
    loss_first: float | None
    loss_last: float | None  # median of the last 20 losses
    loss_best: float | None
    skipped: int
    amp_skips: int
    stopped_by_guard: bool
    findings: tuple[Finding, ...] = ()
    actions: tuple[Action, ...] = ()
    causes: tuple[Cause, ...] = ()
    notes: tuple[str, ...] = ()  # what the user should know about the watching itself
    verdict: str = ""  # how the run went, a sentence
    first_nonfinite: FirstNonFinite | None = None
    forecast: Mapping[str, Any] | None = None  # what the first ten steps said of the rest
