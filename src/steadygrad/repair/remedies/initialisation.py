"""Other weights to start from."""

from __future__ import annotations

from collections.abc import Iterator

from steadygrad.repair.case import Case
from steadygrad.repair.remedies._layers import RECTIFYING, layers, loaded, named, plain
from steadygrad.repair.remedy import Remedy

GAIN = ("init_gain_large", "init_gain_small")
OUTPUT = 0.05
RADIUS = 0.95


def reinitialise(case: Case) -> Iterator[Remedy]:
    """LSUV, He or Xavier by what follows, and orthogonal weights, for linear layers and convolutions."""
    chosen = plain(case)
    if loaded(case) or not any(not layer["head"] for layer in chosen):
        return
    gains = {layer["module"]: layer["gain"] for layer in chosen}
    follows = {layer["activation"] for layer in chosen if not layer["head"]}
    rectified = bool(follows & set(RECTIFYING))
    schemes = [
        ("lsuv", (*GAIN, "unscaled_inputs", "vanishing", "saturation", "dead_units", "output_scale"), 0.3),
        ("he", (*GAIN, "dead_units", "vanishing"), 0.3) if rectified else None,
        ("xavier", (*GAIN, "saturation", "vanishing"), 0.3) if follows - set(RECTIFYING) else None,
        ("orthogonal", (*GAIN, "vanishing"), 0.35),
    ]
    for scheme in schemes:
        if scheme is not None:
            name, serves, intrusiveness = scheme
            yield Remedy(
                name=f"{name} initialisation",
                plan={"reinitialise": {"scheme": name, "modules": gains, "seed": 0}},
                serves=serves,
                safety="surgery",
                intrusiveness=intrusiveness,
                advice=f"initialise {named(gains)} with {ADVICE[name]}, biases 0, before the optimizer is built",
                family="init",
            )


ADVICE = {
    "lsuv": "steadygrad.init.initialise(model, batch, 'lsuv')",
    "he": "steadygrad.init.initialise(model, batch, 'he_normal')",
    "xavier": "steadygrad.init.initialise(model, batch, 'xavier_uniform')",
    "orthogonal": "steadygrad.init.initialise(model, batch, 'orthogonal')",
}


def small_output(case: Case) -> Iterator[Remedy]:
    """The last layer starts small."""
    heads = [layer["module"] for layer in plain(case) if layer["head"] and not layer["tied"]]
    if heads:
        yield Remedy(
            name=f"output weights x {OUTPUT:g}",
            plan={"output_scale": {"modules": heads, "factor": OUTPUT}},
            serves=("output_scale", "init_gain_large"),
            safety="surgery",
            intrusiveness=0.2,
            advice=f"multiply the weight of {named(heads)} by {OUTPUT:g} before the optimizer is built",
            family="output scale",
        )


def zero_bias(case: Case) -> Iterator[Remedy]:
    """Biases of 0, where units may have been born dead."""
    biased = [layer["module"] for layer in plain(case) if layer["bias"]]
    if biased and not loaded(case) and not case.exploded:
        yield Remedy(
            name="biases start at 0",
            plan={"zero_bias": {"modules": biased}},
            serves=("dead_units", "saturation"),
            safety="surgery",
            intrusiveness=0.3,
            advice=f"set the biases of {named(biased)} to 0 before the optimizer is built",
            family="init",
        )


def recurrent_weights(case: Case) -> Iterator[Remedy]:
    """Hidden-to-hidden weights with singular values of 1, or below."""
    portrait = case.facts.portrait
    chained = {row.name for row in portrait.recurrences} if portrait is not None else set()
    names = [
        layer["weight"]
        for layer in layers(case)
        if (layer["recurrent"] or layer["weight"] in chained)
        and len(layer["shape"]) == 2
        and layer["shape"][0] % layer["shape"][1] == 0
    ]
    if not names:
        return
    yield Remedy(
        name=f"recurrent weights within {RADIUS:g}",
        plan={"recurrent_radius": {"weights": names, "radius": RADIUS}},
        serves=("recurrent_growth", "init_gain_large"),
        safety="surgery",
        intrusiveness=0.25,
        advice=f"call steadygrad.nn.clamp_spectral_norm_ on {named(names)} with max_norm {RADIUS:g} before training",
        family="recurrent weights",
    )
    yield Remedy(
        name="orthogonal recurrent weights",
        plan={"orthogonal_recurrent": {"weights": names, "gain": 1.0, "seed": 0}},
        serves=("recurrent_growth", "vanishing", *GAIN),
        safety="surgery",
        intrusiveness=0.35,
        advice=f"initialise {named(names)} with steadygrad.init.orthogonal_blocks_, gate by gate",
        family="recurrent weights",
    )
