"""Normalisation that torch lacks: inside recurrences, of weights, with small batches, and without statistics."""

from steadygrad.nn.norm.adaptive_norm import AdaptiveNorm as AdaptiveNorm
from steadygrad.nn.norm.adaptive_norm import adapt_norms as adapt_norms
from steadygrad.nn.norm.batch_norm_lstm import BatchNormLSTM as BatchNormLSTM
from steadygrad.nn.norm.batch_renorm import BatchRenorm1d as BatchRenorm1d
from steadygrad.nn.norm.batch_renorm import BatchRenorm2d as BatchRenorm2d
from steadygrad.nn.norm.batch_renorm import BatchRenorm3d as BatchRenorm3d
from steadygrad.nn.norm.dyt import DyT as DyT
from steadygrad.nn.norm.dyt import replace_norms_with_dyt as replace_norms_with_dyt
from steadygrad.nn.norm.filter_response_norm import FilterResponseNorm as FilterResponseNorm
from steadygrad.nn.norm.layer_norm_gru import LayerNormGRU as LayerNormGRU
from steadygrad.nn.norm.layer_norm_gru import LayerNormGRUCell as LayerNormGRUCell
from steadygrad.nn.norm.layer_norm_lstm import LayerNormLSTM as LayerNormLSTM
from steadygrad.nn.norm.layer_norm_lstm import LayerNormLSTMCell as LayerNormLSTMCell
from steadygrad.nn.norm.sigma_reparam import SigmaReparam as SigmaReparam
from steadygrad.nn.norm.sigma_reparam import sigma_reparam as sigma_reparam
from steadygrad.nn.norm.switchable_norm import SwitchableNorm2d as SwitchableNorm2d
from steadygrad.nn.norm.weight_standardisation import WeightStandardisation as WeightStandardisation
from steadygrad.nn.norm.weight_standardisation import standardise_weight as standardise_weight
from steadygrad.nn.norm.weight_standardisation import weight_standardisation as weight_standardisation
