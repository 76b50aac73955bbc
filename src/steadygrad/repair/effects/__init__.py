"""Every change that a plan can ask for, by its key."""

from steadygrad.repair.effects.activation import ActivationSwap, RemoveOutputActivation
from steadygrad.repair.effects.attention import QKNorm, QKScale, SoftCap
from steadygrad.repair.effects.clearing import ClearAfterStep
from steadygrad.repair.effects.clip import AdaptiveClip, ClipNorm, ClipValue
from steadygrad.repair.effects.cuts import PassGradients
from steadygrad.repair.effects.effect import Effect
from steadygrad.repair.effects.hold import HoldTargets
from steadygrad.repair.effects.inputs import StandardiseInputs
from steadygrad.repair.effects.loop import ZeroGradients
from steadygrad.repair.effects.loss_calls import LossCalls
from steadygrad.repair.effects.loss_factor import GradientFactor
from steadygrad.repair.effects.momentum import Momentum, WeightDecay
from steadygrad.repair.effects.norms import BatchNormBehind, LayerNormBehind
from steadygrad.repair.effects.optimizer import OtherOptimizer
from steadygrad.repair.effects.ownership import OwnParameters
from steadygrad.repair.effects.plasticity import ContinualRenewal, DormantUnits, ShrinkAndPerturb
from steadygrad.repair.effects.precision import Precision
from steadygrad.repair.effects.rate import LrCap, LrDecay, LrFactor, LrFloor, Rewarm, Warmup
from steadygrad.repair.effects.reinitialise import Reinitialise
from steadygrad.repair.effects.residual import ResidualGate
from steadygrad.repair.effects.safe import SafeOps
from steadygrad.repair.effects.scale import (
    BranchScale,
    OrthogonalRecurrent,
    OutputScale,
    QueryKeyScale,
    RecurrentRadius,
    ZeroBias,
)
from steadygrad.repair.effects.second_moment import AdamEps, Beta2, UpdateClip
from steadygrad.repair.effects.skip import SkipAbove, SkipNonfinite
from steadygrad.repair.effects.targets import ScaleTargets
from steadygrad.repair.effects.train_mode import TrainMode
from steadygrad.repair.effects.units import BiasClamp, DeadUnitReset
from steadygrad.repair.effects.weight_clip import WeightClip

ALL: tuple[type[Effect], ...] = (
    ActivationSwap,
    RemoveOutputActivation,
    QKNorm,
    QKScale,
    SoftCap,
    AdaptiveClip,
    ClipNorm,
    ClipValue,
    HoldTargets,
    ZeroGradients,
    ClearAfterStep,
    GradientFactor,
    Momentum,
    WeightDecay,
    BatchNormBehind,
    LayerNormBehind,
    OtherOptimizer,
    OwnParameters,
    LrCap,
    LrDecay,
    LrFactor,
    LrFloor,
    Rewarm,
    Warmup,
    Reinitialise,
    ResidualGate,
    BranchScale,
    OrthogonalRecurrent,
    OutputScale,
    QueryKeyScale,
    RecurrentRadius,
    ZeroBias,
    AdamEps,
    Beta2,
    UpdateClip,
    SkipAbove,
    SkipNonfinite,
    BiasClamp,
    DeadUnitReset,
    DormantUnits,
    ContinualRenewal,
    ShrinkAndPerturb,
    WeightClip,
    StandardiseInputs,
    SafeOps,
    ScaleTargets,
    TrainMode,
    PassGradients,
    Precision,
    LossCalls,
)

EFFECTS: dict[str, type[Effect]] = {effect.key: effect for effect in ALL}
