"""Recurrences that keep their gradients, and what keeps torch's own from exploding through time."""

from steadygrad.nn.recurrent.antisymmetric import AntisymmetricRNN as AntisymmetricRNN
from steadygrad.nn.recurrent.chrono import chrono_bias_ as chrono_bias_
from steadygrad.nn.recurrent.dropout import VariationalDropout as VariationalDropout
from steadygrad.nn.recurrent.dropout import Zoneout as Zoneout
from steadygrad.nn.recurrent.dropout import zoneout as zoneout
from steadygrad.nn.recurrent.independent import IndRNN as IndRNN
from steadygrad.nn.recurrent.independent import recurrent_bound as recurrent_bound
from steadygrad.nn.recurrent.lru import LRU as LRU
from steadygrad.nn.recurrent.lru import linear_scan as linear_scan
from steadygrad.nn.recurrent.norm_penalty import gradient_norm_penalty as gradient_norm_penalty
from steadygrad.nn.recurrent.norm_penalty import recurrent_norm_penalty as recurrent_norm_penalty
from steadygrad.nn.recurrent.norm_penalty import rnn_norm_penalty as rnn_norm_penalty
from steadygrad.nn.recurrent.orthogonal import ModReLU as ModReLU
from steadygrad.nn.recurrent.orthogonal import OrthogonalRNN as OrthogonalRNN
from steadygrad.nn.recurrent.orthogonal import mod_relu as mod_relu
from steadygrad.nn.recurrent.orthogonal import orthogonal_recurrence as orthogonal_recurrence
from steadygrad.nn.recurrent.spectral import SpectralNormBound as SpectralNormBound
from steadygrad.nn.recurrent.spectral import bound_recurrent_spectral_norm as bound_recurrent_spectral_norm
from steadygrad.nn.recurrent.spectral import clamp_spectral_norm_ as clamp_spectral_norm_
from steadygrad.nn.recurrent.spectral import recurrent_spectral_norms as recurrent_spectral_norms
from steadygrad.nn.recurrent.spectral import spectral_norms as spectral_norms
from steadygrad.nn.recurrent.truncated import Chunk as Chunk
from steadygrad.nn.recurrent.truncated import detach as detach
from steadygrad.nn.recurrent.truncated import tbptt as tbptt
