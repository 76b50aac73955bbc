"""Quantum layers in torch models: whether their gradient vanishes, and what helps.

They need PennyLane: ``pip install "steadygrad[quantum]"``.

    layer = sg.quantum.QuantumLayer(n_qubits=6, depth=12)  # small angles, local readout
    model = nn.Sequential(nn.Linear(64, 6), layer, nn.Linear(6, 10))
    with sg.watch(model, optimizer) as run:
        ...

    print(sg.quantum.barren_plateau(lambda n_qubits, depth: sg.quantum.QuantumLayer(n_qubits, depth)))
"""

from steadygrad.quantum.initialisers import identity_blocks_ as identity_blocks_
from steadygrad.quantum.initialisers import small_angles_ as small_angles_
from steadygrad.quantum.initialisers import uniform_angles_ as uniform_angles_
from steadygrad.quantum.layer import QuantumLayer as QuantumLayer
from steadygrad.quantum.layer import run_together as run_together
from steadygrad.quantum.layerwise import LayerwiseTraining as LayerwiseTraining
from steadygrad.quantum.plateau import barren_plateau as barren_plateau
from steadygrad.quantum.plateau import gradient_samples as gradient_samples
from steadygrad.quantum.result import Decay as Decay
from steadygrad.quantum.result import PlateauForecast as PlateauForecast
from steadygrad.quantum.result import Sampled as Sampled
