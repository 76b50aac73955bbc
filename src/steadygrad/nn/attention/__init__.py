"""Attention that stays bounded, in a model that exists: QK-norm, soft cap, QK-clip, z-loss, the largest logit."""

from steadygrad.nn.attention.logits import max_logit_per_head as max_logit_per_head
from steadygrad.nn.attention.logits import soft_cap_logits as soft_cap_logits
from steadygrad.nn.attention.logits import soft_capped_attention as soft_capped_attention
from steadygrad.nn.attention.normalise import cosine_scale as cosine_scale
from steadygrad.nn.attention.normalise import l2_normalise as l2_normalise
from steadygrad.nn.attention.normalise import layer_normalise as layer_normalise
from steadygrad.nn.attention.normalise import rms_normalise as rms_normalise
from steadygrad.nn.attention.qk_clip import QKClip as QKClip
from steadygrad.nn.attention.qk_clip import qk_clip_ as qk_clip_
from steadygrad.nn.attention.qk_norm import qk_norm as qk_norm
from steadygrad.nn.attention.signal import max_attention_logit as max_attention_logit
from steadygrad.nn.attention.soft_cap import soft_cap as soft_cap
from steadygrad.nn.attention.z_loss import z_loss as z_loss
