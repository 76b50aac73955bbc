"""What remedies must know of a run before they can be written down: surveyors look on while the twin trains."""

from __future__ import annotations

from steadygrad.repair.survey.clearing import Clearing
from steadygrad.repair.survey.cuts import Cuts
from steadygrad.repair.survey.inputs import Inputs
from steadygrad.repair.survey.rates import Rates
from steadygrad.repair.survey.sites import Sites
from steadygrad.repair.survey.structure import Structure
from steadygrad.repair.survey.surveyor import Surveyor as Surveyor
from steadygrad.repair.survey.targets import TargetsOf
from steadygrad.repair.survey.unowned import UnownedParameters

SURVEYORS: tuple[type[Surveyor], ...] = (
    Rates,
    Sites,
    Structure,
    Inputs,
    TargetsOf,
    Clearing,
    UnownedParameters,
    Cuts,
)
