"""Optimizers whose step keeps its scale in every layer, and where to get those that others have in good order.

`CHOICES` says of every candidate whether to take torch's, pytorch_optimizer's or the one here, and why.
"""

from steadygrad.optim.adam_atan2 import AdamAtan2 as AdamAtan2
from steadygrad.optim.adam_atan2 import atan2_direction as atan2_direction
from steadygrad.optim.blocks import parameter_blocks as parameter_blocks
from steadygrad.optim.choices import CHOICES as CHOICES
from steadygrad.optim.choices import Choice as Choice
from steadygrad.optim.fromage import Fromage as Fromage
from steadygrad.optim.fromage import relative_rates as relative_rates
from steadygrad.optim.lamb import LAMB as LAMB
from steadygrad.optim.lamb import trust_ratios as trust_ratios
from steadygrad.optim.lars import LARS as LARS
from steadygrad.optim.lars import lars_rates as lars_rates
from steadygrad.optim.muon import MuonAdamW as MuonAdamW
from steadygrad.optim.muon import muon_groups as muon_groups
from steadygrad.optim.nero import Nero as Nero
from steadygrad.optim.nero import balance_ as balance_
from steadygrad.optim.novograd import NovoGrad as NovoGrad
from steadygrad.optim.orthogonal import orthogonalise as orthogonalise
from steadygrad.optim.roles import parameter_roles as parameter_roles
from steadygrad.optim.scion import Scion as Scion
from steadygrad.optim.scion import scion_groups as scion_groups
from steadygrad.optim.steady_optimizer import Steady as Steady
from steadygrad.optim.steady_optimizer import steady as steady
from steadygrad.optim.update_ratio import BoundedUpdates as BoundedUpdates
from steadygrad.optim.update_ratio import clip_update_ratio_ as clip_update_ratio_
