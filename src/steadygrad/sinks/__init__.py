"""Where else the numbers of a run go: TensorBoard, Weights & Biases, MLflow, Trackio, or an object of your own.

Nothing of theirs is imported unless it is asked for.
"""

from steadygrad.sinks.names import PACKAGES as PACKAGES
from steadygrad.sinks.names import SinkNotInstalled as SinkNotInstalled
from steadygrad.sinks.names import UnknownSink as UnknownSink
from steadygrad.sinks.names import checked_sinks as checked_sinks
from steadygrad.sinks.sink import Event as Event
from steadygrad.sinks.sink import Sink as Sink
