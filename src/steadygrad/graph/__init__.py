"""The autograd graph of a loss, read just before ``backward``: operations, layers, the loss and its targets."""

from steadygrad.graph.walk import Graph as Graph
from steadygrad.graph.walk import op as op
from steadygrad.graph.walk import saved as saved
