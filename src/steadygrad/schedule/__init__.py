"""Schedules and curricula: what changes with the step, and goes on exactly where it was.

Warm-up in front of any scheduler, and back-off after an incident:

    ramp = warmup(optimizer, warmup_steps=2000)      # the scheduler goes on unchanged
    back_off = BackOff(optimizer)                    # back_off.incident() lowers the rate for a while

torch's own schedulers chain with ``SequentialLR`` and ``ChainedScheduler``; the pure functions here
(`linear_warmup`, `warmup_stable_decay`, ...) go into ``LambdaLR`` with ``functools.partial``.

Data, resumable to the exact sample with any number of workers:

    loader = ResumableLoader(DataLoader(data, batch_size=32, sampler=ResumableSampler(data), num_workers=4))
    state = loader.state_dict()                      # after any step; loader.load_state_dict(state)

in which the sampler may be a curriculum, and the batches may grow in size and in sequence length.
"""

from steadygrad.schedule.backoff import BackOff as BackOff
from steadygrad.schedule.backoff import back_off_factor as back_off_factor
from steadygrad.schedule.batch_size import AccumulationRamp as AccumulationRamp
from steadygrad.schedule.batch_size import accumulation_steps as accumulation_steps
from steadygrad.schedule.batch_size import linear_batch_size as linear_batch_size
from steadygrad.schedule.batch_size import milestone_batch_size as milestone_batch_size
from steadygrad.schedule.batch_size import stepwise_batch_size as stepwise_batch_size
from steadygrad.schedule.batches import RampedBatchSampler as RampedBatchSampler
from steadygrad.schedule.curriculum import CurriculumSampler as CurriculumSampler
from steadygrad.schedule.curriculum import EpochCurriculumSampler as EpochCurriculumSampler
from steadygrad.schedule.curriculum import difficulties as difficulties
from steadygrad.schedule.cut import fold as fold
from steadygrad.schedule.cut import truncate as truncate
from steadygrad.schedule.factor import LRFactor as LRFactor
from steadygrad.schedule.factor import effective_lr as effective_lr
from steadygrad.schedule.factor import lr_factors as lr_factors
from steadygrad.schedule.factor import untuned_warmup as untuned_warmup
from steadygrad.schedule.factor import warmup as warmup
from steadygrad.schedule.length import FoldCollate as FoldCollate
from steadygrad.schedule.length import LengthSampler as LengthSampler
from steadygrad.schedule.length import TruncateCollate as TruncateCollate
from steadygrad.schedule.length import WithLength as WithLength
from steadygrad.schedule.length import sequence_length as sequence_length
from steadygrad.schedule.loader import ResumableLoader as ResumableLoader
from steadygrad.schedule.pacing import competence_pacing as competence_pacing
from steadygrad.schedule.pacing import exponential_pacing as exponential_pacing
from steadygrad.schedule.pacing import linear_pacing as linear_pacing
from steadygrad.schedule.pacing import root_pacing as root_pacing
from steadygrad.schedule.pacing import single_step_pacing as single_step_pacing
from steadygrad.schedule.run_shapes import cosine_cooldown as cosine_cooldown
from steadygrad.schedule.run_shapes import inverse_sqrt as inverse_sqrt
from steadygrad.schedule.run_shapes import linear_cooldown as linear_cooldown
from steadygrad.schedule.run_shapes import sqrt_cooldown as sqrt_cooldown
from steadygrad.schedule.run_shapes import warmup_cosine as warmup_cosine
from steadygrad.schedule.run_shapes import warmup_linear as warmup_linear
from steadygrad.schedule.run_shapes import warmup_stable_decay as warmup_stable_decay
from steadygrad.schedule.sampler import ResumableSampler as ResumableSampler
from steadygrad.schedule.self_paced import self_paced_weights as self_paced_weights
from steadygrad.schedule.warmup_shapes import constant_warmup as constant_warmup
from steadygrad.schedule.warmup_shapes import cosine_warmup as cosine_warmup
from steadygrad.schedule.warmup_shapes import exponential_warmup as exponential_warmup
from steadygrad.schedule.warmup_shapes import linear_warmup as linear_warmup
from steadygrad.schedule.warmup_shapes import sqrt_warmup as sqrt_warmup
from steadygrad.schedule.warmup_shapes import untuned_exponential_warmup as untuned_exponential_warmup
from steadygrad.schedule.warmup_shapes import untuned_linear_warmup as untuned_linear_warmup
