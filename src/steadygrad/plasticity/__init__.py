"""Nets that regulate themselves: gains held by synaptic scaling, units kept alive, features from the data alone."""

from steadygrad.plasticity.continual import ContinualBackprop as ContinualBackprop
from steadygrad.plasticity.continual import contribution as contribution
from steadygrad.plasticity.dormant import DormantReset as DormantReset
from steadygrad.plasticity.dormant import dormant_scores as dormant_scores
from steadygrad.plasticity.hebbian import hebbian_pretrain_ as hebbian_pretrain_
from steadygrad.plasticity.hebbian import soft_winner_update as soft_winner_update
from steadygrad.plasticity.homeostasis import Homeostasis as Homeostasis
from steadygrad.plasticity.homeostasis import Reading as Reading
from steadygrad.plasticity.intrinsic import IntrinsicPlasticity as IntrinsicPlasticity
from steadygrad.plasticity.scaling import nearest_orthogonal_ as nearest_orthogonal_
from steadygrad.plasticity.scaling import recurrent_factor as recurrent_factor
from steadygrad.plasticity.scaling import synaptic_factor as synaptic_factor
from steadygrad.plasticity.shrink_perturb import shrink_and_perturb_ as shrink_and_perturb_
