"""Builders of whole nets, each with its depth as an argument: for studies and for use."""

from steadygrad.nn.models.attention import Attention as Attention
from steadygrad.nn.models.convolutional import densenet as densenet
from steadygrad.nn.models.convolutional import resnet as resnet
from steadygrad.nn.models.mlp import dense_mlp as dense_mlp
from steadygrad.nn.models.mlp import highway_mlp as highway_mlp
from steadygrad.nn.models.mlp import mlp as mlp
from steadygrad.nn.models.mlp import residual_mlp as residual_mlp
from steadygrad.nn.models.recurrent import RecurrentNet as RecurrentNet
from steadygrad.nn.models.recurrent import residual_gru as residual_gru
from steadygrad.nn.models.recurrent import residual_lstm as residual_lstm
from steadygrad.nn.models.recurrent import residual_recurrent as residual_recurrent
from steadygrad.nn.models.recurrent import residual_rnn as residual_rnn
from steadygrad.nn.models.recurrent import stacked_recurrent as stacked_recurrent
from steadygrad.nn.models.transformer import TransformerNet as TransformerNet
from steadygrad.nn.models.transformer import transformer_decoder as transformer_decoder
from steadygrad.nn.models.transformer import transformer_encoder as transformer_encoder
