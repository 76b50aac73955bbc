"""Activations that torch lacks; their gains stand in ``steadygrad.init.gain_table``."""

from steadygrad.init.gain import squared_relu as squared_relu
from steadygrad.nn.activations.gated import SwiGLU as SwiGLU
from steadygrad.nn.activations.gated import swiglu as swiglu
from steadygrad.nn.activations.groupwise import GroupSort as GroupSort
from steadygrad.nn.activations.groupwise import MaxMin as MaxMin
from steadygrad.nn.activations.groupwise import Maxout as Maxout
from steadygrad.nn.activations.groupwise import group_sort as group_sort
from steadygrad.nn.activations.groupwise import max_min as max_min
from steadygrad.nn.activations.groupwise import maxout as maxout
from steadygrad.nn.activations.rectified import CReLU as CReLU
from steadygrad.nn.activations.rectified import SquaredReLU as SquaredReLU
from steadygrad.nn.activations.rectified import crelu as crelu
