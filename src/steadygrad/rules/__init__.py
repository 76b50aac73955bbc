"""Detectors: step records in, findings out. Plain Python over numbers, no torch.

Families: L loss, G gradient (G1xx global, G2xx over depth), P parameters and precision, O optimizer, A
activations, D data, E embeddings of training without labels, F the graph of a sampled step, M mistakes in the loop;
x00 is what is not finite. ``alarm`` allows the guard to act, ``warning`` is told to the user, ``info`` is recorded
and drawn.
"""

from __future__ import annotations

from inspect import cleandoc

from steadygrad.rules.attention_logits import AttentionLogits
from steadygrad.rules.backward_decay import BackwardDecay
from steadygrad.rules.backward_growth import BackwardGrowth
from steadygrad.rules.bounded_output import BoundedOutput
from steadygrad.rules.broadcast_in_loss import BroadcastInLoss
from steadygrad.rules.clip_before_unscale import ClipBeforeUnscale
from steadygrad.rules.dead_units import DeadUnits
from steadygrad.rules.dimensional_collapse import DimensionalCollapse
from steadygrad.rules.divergence import Divergence
from steadygrad.rules.embedding_collapse import EmbeddingCollapse
from steadygrad.rules.eval_mode import EvalMode
from steadygrad.rules.exploding_gradient import ExplodingGradient
from steadygrad.rules.exploding_profile import ExplodingProfile
from steadygrad.rules.forward_growth import ForwardGrowth
from steadygrad.rules.frozen_second_moment import FrozenSecondMoment
from steadygrad.rules.half_headroom import HalfHeadroom
from steadygrad.rules.history import History as History
from steadygrad.rules.history import Reading as Reading
from steadygrad.rules.huge_gradient import HugeGradient
from steadygrad.rules.loss_blowup import LossBlowup
from steadygrad.rules.loss_scale_collapse import LossScaleCollapse
from steadygrad.rules.loss_spike import LossSpike
from steadygrad.rules.loss_sum import LossSum
from steadygrad.rules.loss_used_twice import LossUsedTwice
from steadygrad.rules.lost_progress import LostProgress
from steadygrad.rules.moving_target import MovingTarget
from steadygrad.rules.no_gradient import NoGradient
from steadygrad.rules.nonfinite_activation import NonfiniteActivation
from steadygrad.rules.nonfinite_gradient import NonfiniteGradient
from steadygrad.rules.nonfinite_loss import NonfiniteLoss
from steadygrad.rules.nonfinite_parameter import NonfiniteParameter
from steadygrad.rules.nonfinite_state import NonfiniteState
from steadygrad.rules.one_unit_softmax import OneUnitSoftmax
from steadygrad.rules.oscillation import Oscillation
from steadygrad.rules.recurrence_growth import RecurrenceGrowth
from steadygrad.rules.rule import Onset as Onset
from steadygrad.rules.rule import Rule as Rule
from steadygrad.rules.saturated_units import SaturatedUnits
from steadygrad.rules.scale_ignored import ScaleIgnored
from steadygrad.rules.softmax_before_cross_entropy import SoftmaxBeforeCrossEntropy
from steadygrad.rules.stale_second_moment import StaleSecondMoment
from steadygrad.rules.stall import Stall
from steadygrad.rules.start_loss import StartLoss
from steadygrad.rules.symmetric_units import SymmetricUnits
from steadygrad.rules.trend_to_overflow import TrendToOverflow
from steadygrad.rules.unscaled_inputs import UnscaledInputs
from steadygrad.rules.unscaled_targets import UnscaledTargets
from steadygrad.rules.update_ratio import UpdateRatio
from steadygrad.rules.vanishing_profile import VanishingProfile
from steadygrad.rules.worse_than_start import WorseThanStart
from steadygrad.rules.zero_grad_missing import ZeroGradMissing
from steadygrad.rules.zero_lr import ZeroLr

RULES: tuple[type[Rule], ...] = (
    NonfiniteLoss,  # L100, at worst alarm
    NonfiniteGradient,  # G100, at worst alarm
    NonfiniteParameter,  # P100, at worst alarm
    NonfiniteState,  # O100, at worst alarm
    NonfiniteActivation,  # A100, at worst info
    ExplodingGradient,  # G101, at worst alarm
    TrendToOverflow,  # G102, at worst warning
    HugeGradient,  # G103, at worst alarm
    LossBlowup,  # L101, at worst alarm
    LossSpike,  # L102, at worst info
    LostProgress,  # L103, at worst warning
    WorseThanStart,  # L104, at worst warning
    Divergence,  # L105, at worst warning
    Stall,  # L106, at worst info
    Oscillation,  # L107, at worst info
    ExplodingProfile,  # G201, at worst info
    VanishingProfile,  # G202, at worst info
    UpdateRatio,  # O101, at worst info
    StaleSecondMoment,  # O102, at worst info
    FrozenSecondMoment,  # O103, at worst warning
    DeadUnits,  # A101, at worst warning
    SaturatedUnits,  # A102, at worst info
    LossScaleCollapse,  # P101, at worst alarm
    UnscaledInputs,  # D101, at worst info
    EmbeddingCollapse,  # E101, at worst warning
    DimensionalCollapse,  # E102, at worst warning
    ForwardGrowth,  # F101, at worst info
    BackwardGrowth,  # F102, at worst info
    BackwardDecay,  # F103, at worst info
    RecurrenceGrowth,  # F104, at worst info
    AttentionLogits,  # F105, at worst info
    StartLoss,  # F106, at worst info
    HalfHeadroom,  # F107, at worst info
    UnscaledTargets,  # F108, at worst info
    SymmetricUnits,  # F109, at worst info
    ZeroGradMissing,  # M101, at worst warning
    ClipBeforeUnscale,  # M102, at worst warning
    EvalMode,  # M103, at worst info
    LossUsedTwice,  # M104, at worst info
    NoGradient,  # M105, at worst info
    SoftmaxBeforeCrossEntropy,  # M106, at worst info
    OneUnitSoftmax,  # M107, at worst info
    BroadcastInLoss,  # M108, at worst warning
    BoundedOutput,  # M109, at worst info
    LossSum,  # M110, at worst info
    ZeroLr,  # M111, at worst info
    ScaleIgnored,  # M112, at worst warning
    MovingTarget,  # M113, at worst info
)


def page(code: str) -> str:
    """The page of a rule: what it measures, why it matters, when it is silent, remedies, source.

    Example:
        >>> print(page("G101").splitlines()[0])
        G101 exploding_gradient (alarm)
    """
    for rule in RULES:
        if rule.code == code:
            return f"{code} {rule.name} ({rule.severity})\n\n{cleandoc(rule.__doc__ or '')}\n"
    raise ValueError(f"no rule has the code {code!r}; there are {', '.join(sorted(r.code for r in RULES))}")


from steadygrad.rules.engine import RuleSet as RuleSet  # noqa: E402  its default is the table above
