"""The zoo: small trainings that fail, each with a twin without the fault, and healthy ones that look alarming.

``families()`` has them all. ``python -m benchmarks.zoo`` runs each and prints how it ended.
"""

from benchmarks.zoo.family import Family as Family
from benchmarks.zoo.family import families as families
from benchmarks.zoo.training import Outcome as Outcome
from benchmarks.zoo.training import Training as Training
from benchmarks.zoo.training import outcome as outcome
