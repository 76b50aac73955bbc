"""Every builder keeps the same contract: one suite over the table in builders.py."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn

from steadygrad.init import initialise
from tests.nn.models.builders import BUILDERS

every = pytest.mark.parametrize("case", BUILDERS, ids=lambda c: c.name)
# At depth 200 these take long and differ from others of the table in what depth does not touch.
HEAVY = (
    "dense_mlp_recomputed resnet_skipinit resnet_layer_scale encoder_numbers encoder_sandwich encoder_sub_norm "
    "decoder decoder_tied decoder_numbers residual_rnn_relu residual_layer_norm_gru"
).split()
DEEP = [
    pytest.param(c, id=c.name, marks=[pytest.mark.slow] if c.name in HEAVY else [])
    for c in BUILDERS
    if c.deep
]


def finite_step(net, example):
    """Forward and backward; the output. Everything in it is finite."""
    out = net(*example)
    (out - 1).square().mean().backward()
    assert out.isfinite().all()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
    return out


@every
def test_depth_is_what_was_asked_for(case):
    for depth in (3, 7):
        net = case.net(depth)
        assert sum(p.dim() >= 2 for p in net.parameters()) == case.layers(depth)
        assert finite_step(net, case.example).shape == (len(case.example[0]), *case.out)


@pytest.mark.parametrize("case", [c for c in BUILDERS if c.activates], ids=lambda c: c.name)
def test_activation_is_the_one_that_was_asked_for(case):
    for activation in (nn.Softsign, lambda: nn.LeakyReLU(0.3)):
        net, default = case.net(activation=activation), case.net()
        made = [m for m in net.modules() if isinstance(m, type(activation()))]
        plain = [m for m in default.modules() if isinstance(m, (nn.ReLU, nn.GELU))]
        assert len(made) == len(plain) > 0
        assert not any(isinstance(m, (nn.ReLU, nn.GELU)) for m in net.modules())


@pytest.mark.parametrize("case", DEEP)
def test_two_hundred_deep_is_finite_and_reaches_the_input(case):
    net = case.net(200)
    numbers = [x.clone().requires_grad_() if x.is_floating_point() else x for x in case.example]
    finite_step(net, numbers)
    reached = [x.grad for x in numbers if x.is_floating_point()] or [net.embedding.weight.grad]
    assert all(g.isfinite().all() and g.abs().max() > 1e-12 for g in reached)


THOUSAND = {
    "mlp": False,
    "residual_mlp": False,
    "residual_lstm": False,
    "resnet": True,
    "encoder": True,
}  # slow?


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(c, id=c.name, marks=[pytest.mark.slow] if THOUSAND[c.name] else [])
        for c in BUILDERS
        if c.name in THOUSAND
    ],
)
def test_a_thousand_layers_are_built(case):
    net = case.net(1000)
    assert sum(p.dim() >= 2 for p in net.parameters()) == case.layers(1000)


@pytest.mark.parametrize(
    ("case", "scheme"), [pytest.param(c, s, id=f"{c.name}-{s}") for c in BUILDERS for s in c.schemes]
)
def test_initialise_understands_it(case, scheme):
    net = case.net()
    report = initialise(net, case.example, scheme=scheme)
    kept = set(report.kept.values())
    assert len(report.rows) + len(report.kept) == case.layers(3) and kept <= {"embedding"}
    assert not report.followed.unused
    if case.branches is not None:
        assert len(report.followed.branches) == 3 * case.branches
    finite_step(net, case.example)


@every
def test_copies_and_reloads_bit_for_bit(case):
    net = case.net().eval()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter += 0.1
    other = case.net().eval()
    wanted = net(*case.example)
    assert not torch.equal(other(*case.example), wanted)
    other.load_state_dict(net.state_dict())
    for same in (other, copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert torch.equal(same(*case.example), wanted)


@every
def test_empty_batch_gives_an_empty_one(case):
    empty = [x[:0] for x in case.example]
    assert case.net().eval()(*empty).shape == (0, *case.out)


@pytest.mark.parametrize(
    "case", [c for c in BUILDERS if c.example[-1].is_floating_point()], ids=lambda c: c.name
)
def test_a_nan_stays_visible_in_its_example_only(case):
    net = case.net().eval()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter += 0.1  # off the zero scales
    wanted = net(*case.example)
    bad = [x.clone() for x in case.example]
    bad[-1][1].view(-1)[-1] = float("nan")
    out = net(*bad)
    assert out[1].isnan().any()
    keep = torch.arange(len(out)) != 1
    torch.testing.assert_close(out[keep], wanted[keep])


@every
def test_bfloat16_is_close(case):
    net = case.net().eval()
    numbers = [x.bfloat16() if x.is_floating_point() else x for x in case.example]
    out = copy.deepcopy(net).bfloat16()(*numbers)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.float(), net(*case.example), rtol=0.1, atol=0.1)


COMPILED = ("resnet_layer_scale", "decoder_memory")


@pytest.mark.parametrize("case", [c for c in BUILDERS if c.name in COMPILED], ids=lambda c: c.name)
def test_compiles_whole(case):
    torch.compiler.reset()
    net = case.net(3).eval()
    out = torch.compile(net, backend="eager", fullgraph=True)(*case.example)
    torch.testing.assert_close(out, net(*case.example))


@every
@pytest.mark.parametrize("depth", [0, -1, 2.0])
def test_refuses_a_depth_that_is_none(case, depth):
    with pytest.raises((ValueError, TypeError), match="depth must be"):
        case.net(depth)
