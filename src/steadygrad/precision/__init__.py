"""What low precision would lose: overflow, what flushes to zero, and the scale that each tensor wants, before any cast.

A number leaves a format because of its exponent, so a histogram of exponents is enough: one pass over a tensor answers
for every format and every scale that is a power of two.
"""

from steadygrad.precision.formats import FORMATS as FORMATS
from steadygrad.precision.formats import Format as Format
from steadygrad.precision.formats import emulated_cast as emulated_cast
from steadygrad.precision.histogram import CastCounts as CastCounts
from steadygrad.precision.histogram import ExponentHistogram as ExponentHistogram
from steadygrad.precision.histogram import exponent_histogram as exponent_histogram
from steadygrad.precision.measure import headroom as headroom
from steadygrad.precision.result import Headroom as Headroom
from steadygrad.precision.result import TensorHeadroom as TensorHeadroom
from steadygrad.precision.result import tensor_headroom as tensor_headroom
