"""Gradient clipping to one standard.

A rule is called with the gradients, changes them in place, and returns `ClipStats`:

    params = list(model.parameters())
    rule = chain(ZClip(), partial(clip_by_global_norm_, max_norm=1.0))
    ...
    loss.backward()
    stats = rule([p.grad for p in params])
    if stats.finite:
        optimizer.step()

`FoldedClip` does it all inside the step of a fused optimizer, for a rule with one joint factor.

With a GradScaler call ``scaler.unscale_(optimizer)`` first: a memory must not see the loss scale. The steps that
the scaler skips for an overflow leave no trace in a memory.
"""

from steadygrad.clip.adaptive import AdaGC as AdaGC
from steadygrad.clip.adaptive import AutoClip as AutoClip
from steadygrad.clip.adaptive import ZClip as ZClip
from steadygrad.clip.chain import Chain as Chain
from steadygrad.clip.chain import chain as chain
from steadygrad.clip.fixed import clip_by_block_rms_ as clip_by_block_rms_
from steadygrad.clip.fixed import clip_by_global_norm_ as clip_by_global_norm_
from steadygrad.clip.fixed import clip_by_tensor_norm_ as clip_by_tensor_norm_
from steadygrad.clip.fixed import clip_by_value_ as clip_by_value_
from steadygrad.clip.folded import FoldedClip as FoldedClip
from steadygrad.clip.spike import SPAM as SPAM
from steadygrad.clip.spike import clip_by_second_moment_ as clip_by_second_moment_
from steadygrad.clip.spike import reset_momentum_ as reset_momentum_
from steadygrad.clip.spike import warmup_factor as warmup_factor
from steadygrad.clip.stats import ClipStats as ClipStats
from steadygrad.clip.transform import centralise_ as centralise_
from steadygrad.clip.transform import normalise_by_global_norm_ as normalise_by_global_norm_
from steadygrad.clip.transform import normalise_by_tensor_norm_ as normalise_by_tensor_norm_
from steadygrad.clip.unitwise import clip_by_unit_norm_ as clip_by_unit_norm_
from steadygrad.clip.unitwise import unit_norm as unit_norm
from steadygrad.clip.update import clip_update_ as clip_update_
from steadygrad.clip.update import clipped_updates as clipped_updates
from steadygrad.clip.update import update_rms as update_rms
