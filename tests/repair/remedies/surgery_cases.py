"""Cases with a survey of their models, made by hand."""

from dataclasses import replace

from tests.repair.remedies.step_cases import case


def layer(module, **more):
    """A hidden linear layer of 8 units in front of a ReLU, without a norm."""
    known = {
        "weight": f"{module}.weight",
        "module": module,
        "kind": "linear",
        "shape": [8, 8],
        "width": 8,
        "gain": 1.4,
        "activation": "relu",
        "uses": 1,
        "plain": True,
        "head": False,
        "first": False,
        "normed": False,
        "recurrent": False,
        "attention": [],
        "trained": True,
        "bias": True,
        "tied": False,
    }
    return {**known, **more}


def surveyed(kind="stuck", *, layers=(), branches=(), hidden=None, output=None, unscaled=(), **more):
    """A case of this verdict whose twin was surveyed."""
    nothing = {"modules": {}, "calls": []}
    structure = {
        "layers": list(layers),
        "branches": [{"ends": list(ends), "normed": False, "depth": 2} for ends in branches],
        "activations": {"hidden": hidden or nothing, "output": output or nothing},
        "unscaled_attention": list(unscaled),
    }
    return replace(case(kind, **more), survey={"structure": structure})


HEAD = layer("head", head=True, activation="identity", width=2, shape=[2, 8])
