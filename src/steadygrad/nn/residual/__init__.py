"""Connections around layers: residual, highway, dense, gated, hyper; their scales and stochastic depth."""

from steadygrad.nn.residual.dense_block import DenseBlock as DenseBlock
from steadygrad.nn.residual.drop_path import DropPath as DropPath
from steadygrad.nn.residual.drop_path import drop_path as drop_path
from steadygrad.nn.residual.drop_path import drop_path_rates as drop_path_rates
from steadygrad.nn.residual.gates import GRUGate as GRUGate
from steadygrad.nn.residual.gates import HighwayGate as HighwayGate
from steadygrad.nn.residual.gates import InputGate as InputGate
from steadygrad.nn.residual.gates import OutputGate as OutputGate
from steadygrad.nn.residual.gates import SigmoidTanhGate as SigmoidTanhGate
from steadygrad.nn.residual.highway import Highway as Highway
from steadygrad.nn.residual.highway import highway as highway
from steadygrad.nn.residual.highway import highway_conv2d as highway_conv2d
from steadygrad.nn.residual.highway import highway_linear as highway_linear
from steadygrad.nn.residual.hyper import HyperConnection as HyperConnection
from steadygrad.nn.residual.hyper import expand_streams as expand_streams
from steadygrad.nn.residual.hyper import reduce_streams as reduce_streams
from steadygrad.nn.residual.recurrence import ResidualRecurrence as ResidualRecurrence
from steadygrad.nn.residual.residual import Residual as Residual
from steadygrad.nn.residual.scale import LayerScale as LayerScale
from steadygrad.nn.residual.scale import SkipInit as SkipInit
