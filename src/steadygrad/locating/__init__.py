"""Find the producer of the first NaN or infinity: the operation, its module, its line of code, the sample.

``sg.locate(model, loss_fn, batch)`` runs one step and says.
"""

from __future__ import annotations

from steadygrad.locating.api import locate as locate
from steadygrad.locating.autopsy import Suspect as Suspect
from steadygrad.locating.autopsy import autopsy as autopsy
from steadygrad.locating.autopsy import suspects_of_gradient as suspects_of_gradient
from steadygrad.locating.exact import Locator as Locator
from steadygrad.locating.recompute import Recompute as Recompute
from steadygrad.locating.recompute import Recomputed as Recomputed
from steadygrad.locating.stacks import capture_stacks as capture_stacks
from steadygrad.locating.stacks import line_of as line_of
from steadygrad.records import FirstNonFinite as FirstNonFinite
