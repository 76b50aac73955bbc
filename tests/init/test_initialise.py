"""initialise: one conformance suite over schemes and models, then the statistics, the deep nets and the hard cases."""

from __future__ import annotations

import copy
import math
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations, parametrize

from steadygrad.init import SCHEMES, critical_point, forward_gain, initialise
from tests.init.nets import (
    HandLSTM,
    HandRNN,
    LanguageModel,
    Net,
    Recurrent,
    ResidualMLP,
    ResNet,
    call,
    encoder,
    plain,
    zoo,
)

GENERAL = [
    s for s in SCHEMES if s.startswith(("auto", "xavier", "he_", "lecun", "critical", "orthogonal", "delta"))
]
GENERAL = [s for s in GENERAL if s != "orthogonal_recurrent"] + ["lsuv", "gpt2", "mup"]
SPECIAL = {
    "fixup": ["conv", "residual", "language", "encoder", "enc_dec"],
    "skipinit": ["conv", "residual", "language", "encoder", "enc_dec"],
    "rezero": ["residual"],
    "t_fixup": ["language", "encoder", "enc_dec"],
    "deepnorm": ["language", "encoder", "enc_dec"],
    "orthogonal_recurrent": ["hand_rnn", "lstm"],
    "identity_recurrent": ["hand_rnn", "lstm"],
}
PAIRS = [(s, m) for s in GENERAL for m in ("mlp", "conv", "language", "lstm")]
PAIRS += [(s, m) for s, models in SPECIAL.items() for m in models] + [
    ("auto", m) for m in ("hand_rnn", "enc_dec")
]


def options(scheme: str, model: nn.Module) -> dict:
    return {"base": copy.deepcopy(model)} if scheme == "mup" else {}


def weights(model: nn.Module) -> dict[str, torch.Tensor]:
    return {k: v.detach().clone() for k, v in model.state_dict().items()}


def equal(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_every_scheme_is_in_the_suite():
    assert {s for s, _ in PAIRS} == set(SCHEMES)


@pytest.mark.parametrize(("scheme", "kind"), PAIRS)
def test_conformance(scheme, kind):
    model, example = zoo()[kind]
    before = weights(model)
    twin, rng = copy.deepcopy(model), torch.get_rng_state()
    report = initialise(model, example, scheme, seeded(), **options(scheme, model))
    after = weights(model)
    assert all(torch.equal(before[n], after[n]) for n, _ in model.named_buffers())
    assert torch.equal(rng, torch.get_rng_state())  # the global stream is untouched
    initialise(twin, example, scheme, seeded(), **options(scheme, twin))
    assert equal(after, weights(twin))  # deterministic under the generator
    initialise(twin, example, scheme, seeded(1), **options(scheme, twin))
    random = [r for r in report.rows if r.method not in ("zeros", "identity")]
    changed = {r.weight for r in random if not torch.equal(twin.state_dict()[r.weight], after[r.weight])}
    assert changed == {r.weight for r in random}
    written = {r.weight for r in report.rows}
    assert written | set(report.kept) >= {x.weight for x in report.followed}
    assert all(torch.equal(before[w], after[w]) for w in report.kept)
    assert all(math.isfinite(r.std) for r in report.rows)
    assert torch.isfinite(call(model, example)).all()
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert len(str(report).splitlines()) >= 3 + len(report.rows)


@pytest.mark.parametrize("scheme", [s for s in GENERAL if s != "mup"])
def test_bfloat16(scheme):
    model, example = zoo()["mlp"]
    model, example = model.bfloat16(), example.bfloat16()
    full = copy.deepcopy(model).float()
    report = initialise(model, example, scheme, seeded())
    initialise(full, example.float(), scheme, seeded())
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    for row in report.rows:  # drawn in float32, then rounded
        torch.testing.assert_close(
            model.get_parameter(row.weight).float(), full.get_parameter(row.weight), rtol=0.02, atol=1e-3
        )


@pytest.mark.parametrize(
    ("scheme", "theirs"),
    [
        ("xavier_uniform", nn.init.xavier_uniform_),
        ("xavier_normal", nn.init.xavier_normal_),
        (
            "he_normal",
            lambda w, generator: nn.init.kaiming_normal_(w, nonlinearity="linear", generator=generator),
        ),
        (
            "he_uniform",
            lambda w, generator: nn.init.kaiming_uniform_(w, nonlinearity="linear", generator=generator),
        ),
        ("orthogonal", nn.init.orthogonal_),
    ],
)
def test_equals_torch_given_the_same_generator(scheme, theirs):
    layers = [nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 12), nn.Tanh(), nn.Linear(12, 5)]
    layers = [x for x in layers if scheme != "orthogonal" or x is not layers[2]][
        :3
    ]  # ours fills up tall matrices
    model = nn.Sequential(*layers)
    initialise(model, torch.randn(2, 8), scheme, seeded(7), gain=1.0)
    generator = seeded(7)
    for layer in model:
        if isinstance(layer, nn.Linear):
            assert torch.equal(layer.weight, theirs(torch.empty_like(layer.weight), generator=generator))
            assert not layer.bias.any()


def test_he_equals_torch_before_relu_and_in_convolutions():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3), nn.LeakyReLU(0.1))
    initialise(model, torch.randn(1, 3, 9, 9), "he_normal", seeded(3))
    generator = seeded(3)
    first = nn.init.kaiming_normal_(torch.empty(8, 3, 3, 3), nonlinearity="relu", generator=generator)
    second = nn.init.kaiming_normal_(
        torch.empty(4, 8, 3, 3), 0.1, nonlinearity="leaky_relu", generator=generator
    )
    torch.testing.assert_close(model[0].weight.detach(), first, rtol=1e-6, atol=0)
    torch.testing.assert_close(model[2].weight.detach(), second, rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    ("scheme", "activation", "std"),
    [
        ("auto", nn.ReLU, math.sqrt(2 / 512)),
        ("auto", nn.Tanh, math.sqrt(2 / (512 + 256))),
        ("auto", nn.Sigmoid, 4 * math.sqrt(2 / (512 + 256))),
        ("auto", nn.SELU, math.sqrt(1 / 512)),
        ("auto", nn.GELU, 1.5335 / math.sqrt(512)),
        ("he_normal", nn.SiLU, 1.6765 / math.sqrt(512)),
        ("he_uniform", nn.ReLU, math.sqrt(2 / 512)),
        ("xavier_normal", nn.Softsign, math.sqrt(2 / (512 + 256))),
        ("lecun_normal", nn.ReLU, math.sqrt(1 / 512)),
        ("critical", nn.GELU, 1.40821 / math.sqrt(512)),
        ("gpt2", nn.ReLU, 0.02),
    ],
)
def test_statistics_are_the_formula(scheme, activation, std):
    model = nn.Sequential(nn.Linear(512, 256), activation(), nn.Linear(256, 8))
    report = initialise(model, torch.zeros(1, 512), scheme, seeded())
    assert model[0].weight.std().item() == pytest.approx(std, rel=0.01)
    assert abs(model[0].weight.mean().item()) < 0.02 * std
    assert report.rows[0].std == pytest.approx(std, rel=0.01)
    uniform = model[0].weight.abs().max() < 1.74 * std
    assert bool(uniform) == report.rows[0].method.endswith("uniform")
    if scheme == "critical":
        assert model[0].bias.std().item() == pytest.approx(critical_point("gelu").sigma_b, rel=0.15)
    else:
        assert not model[0].bias.any()


def measured(model: nn.Sequential, x: torch.Tensor) -> tuple[float, float]:
    """Signal, last hidden pre-activation over first; gradient norm, first over last."""
    outs = []
    for layer in model:
        x = layer(x)
        if isinstance(layer, nn.Linear):
            x.retain_grad()
            outs.append(x)
    (x * torch.randn(x.shape, generator=seeded(5))).sum().backward()
    return (outs[-2].std() / outs[0].std()).item(), (outs[0].grad.norm() / outs[-2].grad.norm()).item()


HOLDS = (1 / 30, 30)


@pytest.mark.parametrize(
    ("activation", "depth", "scheme", "extra", "signal", "gradient"),
    [
        (nn.ReLU, 50, "auto", {}, HOLDS, HOLDS),
        (nn.ReLU, 200, "orthogonal", {}, HOLDS, HOLDS),
        (nn.ReLU, 50, "xavier_normal", {"gain": 1.0}, (0, 1e-6), (0, 1e-6)),  # 2^(-25)
        (nn.ReLU, 50, "he_normal", {"gain": 2.0}, (1e6, 1e9), (1e6, 1e9)),  # 2^25
        (nn.Tanh, 50, "auto", {}, HOLDS, HOLDS),
        (nn.Tanh, 200, "critical", {}, (1e-2, 1), (1e-2, 1)),
        (nn.Tanh, 50, "xavier_normal", {"gain": 5 / 3}, HOLDS, (30, 1e4)),  # torch's gain: 1.1^50
        (nn.Tanh, 50, "lecun_normal", {}, HOLDS, HOLDS),
        (nn.SELU, 50, "auto", {}, (0.5, 2), HOLDS),
        (nn.GELU, 50, "auto", {}, HOLDS, HOLDS),  # at the critical point
        (nn.GELU, 100, "he_normal", {}, (30, 1e9), (30, 1e12)),  # an unstable fixed point
        (nn.SiLU, 50, "critical", {}, HOLDS, (1e-3, 30)),
        (nn.SiLU, 50, "lecun_normal", {}, (0, 1e-9), (0, 1e-9)),
        (nn.Sigmoid, 50, "auto", {}, HOLDS, HOLDS),  # at the critical point
        (nn.Sigmoid, 50, "xavier_normal", {}, HOLDS, (0, 1e-6)),
        (nn.Tanh, 50, "lsuv", {}, (0.9, 1.1), (5, 1e4)),  # unit variance is not unit gradient
    ],
)
def test_deep_plain_nets(activation, depth, scheme, extra, signal, gradient):
    torch.manual_seed(0)
    model, x = plain(activation, depth), torch.randn(64, 128)
    initialise(model, x, scheme, seeded(3), **extra)
    forward, backward = measured(model, x)
    assert signal[0] <= forward <= signal[1], forward
    assert gradient[0] <= backward <= gradient[1], backward


def test_auto_says_what_it_chose_for_deep_nets():
    x = torch.randn(4, 16)
    shallow = initialise(plain(nn.GELU, 5, 16), x)
    assert shallow.notes == () and {r.method for r in shallow.rows} == {"he_normal", "lecun_normal"}
    deep = initialise(plain(nn.GELU, 20, 16), x)
    assert deep.notes == ("20 plain gelu layers: at the critical point, biases N(0, 0.416^2)",)
    without = initialise(plain(nn.GELU, 20, 16, bias=False), x)
    assert "gelu needs biases for its critical point" in without.notes[0]
    assert (
        "softplus has no critical point: add norms or skips"
        in initialise(plain(nn.Softplus, 20, 16), x).notes[0]
    )
    normed = nn.Sequential(*[m for _ in range(20) for m in (nn.Linear(16, 16), nn.GELU(), nn.LayerNorm(16))])
    assert initialise(normed, x).notes == ()
    assert initialise(plain(nn.SELU, 60, 16), x).notes == ()  # holds itself


def test_residual_stream_of_auto_stays_bounded():
    x = torch.randn(64, 32)
    for scheme, low, high in (("auto", 0.3, 3.0), ("he_normal", 1e3, 1e12)):
        model = ResidualMLP(30)
        initialise(model, x, scheme, seeded())
        assert low < (model.stream(x).std() / model.stem(x).std()).item() < high


def test_resnet_scales_the_norm_that_ends_a_branch():
    model, example = zoo()["conv"]
    report = initialise(model, example)
    for block in model.blocks:
        assert torch.allclose(block.norm2.weight, torch.tensor(3**-0.5))
        assert torch.equal(block.norm1.weight, torch.ones_like(block.norm1.weight))
    assert len(report.notes) == 3
    with torch.no_grad():
        model.blocks[0].norm2.weight.zero_()  # the user's own zero stays
    initialise(model, example)
    assert not model.blocks[0].norm2.weight.any()


def test_lstm():
    model, example = zoo()["lstm"]
    initialise(model, example, generator=seeded())
    for layer in (0, 1):
        hidden = getattr(model.rnn, f"weight_hh_l{layer}")
        for gate in hidden.chunk(4):
            torch.testing.assert_close(gate @ gate.T, torch.eye(8), rtol=0, atol=1e-5)
        bias = getattr(model.rnn, f"bias_ih_l{layer}") + getattr(model.rnn, f"bias_hh_l{layer}")
        assert bias.tolist() == [0.0] * 8 + [1.0] * 8 + [0.0] * 16
        inner = getattr(model.rnn, f"weight_ih_l{layer}")
        assert inner.abs().max() <= math.sqrt(
            6 / (inner.shape[1] + 8)
        )  # Xavier gate by gate: 8 outputs, not 32
    relu = Recurrent(nn.RNN, nonlinearity="relu")
    initialise(relu, example)
    assert torch.equal(relu.rnn.weight_hh_l0, torch.eye(8))


def test_recurrences_by_hand():
    x = torch.randn(4, 6, 4)
    model = HandRNN()
    initialise(model, x)
    torch.testing.assert_close(model.recurrent @ model.recurrent.T, torch.eye(8), rtol=0, atol=1e-5)
    relu = HandRNN(function=torch.relu)
    initialise(relu, x)
    torch.testing.assert_close(relu.recurrent @ relu.recurrent.T, torch.eye(8), rtol=0, atol=1e-5)
    gates = initialise(HandRNN(function=torch.sigmoid), x)
    assert {r.weight: r.gain for r in gates.rows}["inner.weight"] == 1.0  # not 4, time after time
    initialise(model, x, "identity_recurrent", scale=0.5)
    assert torch.equal(model.recurrent, torch.eye(8) / 2)


def test_lstm_by_hand_is_orthogonal_gate_by_gate():
    model = HandLSTM()
    report = initialise(model, torch.randn(2, 5, 4), generator=seeded())
    for gate in model.recurrent.chunk(4, 1):
        torch.testing.assert_close(gate @ gate.T, torch.eye(6), rtol=0, atol=1e-5)
    assert {r.weight: (r.method, r.gain) for r in report.rows}["recurrent"] == ("orthogonal", 1.0)
    assert report.rows[0].gain == 1.0 and model.inner.weight.std() < 0.6


def test_identity_recurrent_is_irnn():
    model = Recurrent(nn.RNN, nonlinearity="relu")
    initialise(model, torch.randn(5, 3, 4), "identity_recurrent", seeded())
    assert torch.equal(model.rnn.weight_hh_l1, torch.eye(8)) and not model.rnn.bias_hh_l0.any()
    assert model.rnn.weight_ih_l1.std().item() == pytest.approx(0.001, rel=0.3)


def test_tied_weights_are_written_once():
    model, example = zoo()["language"]
    report = initialise(model, example, generator=seeded())
    assert model.head.weight is model.tokens.weight
    assert [r.weight for r in report.rows if "tokens" in r.weight or "head" in r.weight] == ["tokens.weight"]
    assert model.tokens.weight.std().item() == pytest.approx(1 / 4, rel=0.15)
    shared = nn.Linear(8, 8)
    twice = nn.Sequential(shared, nn.ReLU(), shared, nn.Tanh(), nn.Linear(8, 2))
    assert [r.weight for r in initialise(twice, torch.zeros(1, 8), "auto").rows] == [
        "0.weight",
        "4.weight",
    ]


def test_tied_weights_under_lsuv_are_scaled_once():
    model = Net(lambda m, x: m.b((m.a(x) - m.a(3 * x)).tanh()), a=nn.Linear(16, 16), b=nn.Linear(16, 2))
    x = torch.randn(64, 16)
    report = initialise(model, x, "lsuv", seeded())
    assert report.followed["a.weight"].uses == 2
    assert model.a(x).var(correction=0).item() == pytest.approx(1.0, abs=0.02)
    assert model(x).var(correction=0).item() == pytest.approx(1.0, abs=0.02)


def test_parametrised_weights_are_assigned():
    model = nn.Sequential(parametrizations.weight_norm(nn.Linear(64, 64)), nn.ReLU(), nn.Linear(64, 4))
    report = initialise(model, torch.zeros(1, 64), generator=seeded())
    assert model[0].weight.std().item() == pytest.approx(math.sqrt(2 / 64), rel=0.05)
    assert report.rows[0].weight == "0.weight" and report.rows[0].note == ""
    fixed = nn.Sequential(parametrizations.orthogonal(nn.Linear(8, 8)), nn.ReLU(), nn.Linear(8, 4))
    report = initialise(fixed, torch.zeros(1, 8), "orthogonal", seeded())
    assert report.rows[0].note == "its parametrization changed the values"  # gain sqrt(2) is not orthogonal
    torch.testing.assert_close(fixed[0].weight @ fixed[0].weight.T, torch.eye(8), rtol=0, atol=1e-5)


def test_a_weight_used_transposed_is_written_transposed():
    model = Net(lambda m, x: F.linear(x, m.w.t()), w=nn.Parameter(torch.zeros(8, 4)))
    initialise(model, torch.randn(2, 8), "orthogonal", seeded(), gain=1.0)
    torch.testing.assert_close(model.w.T @ model.w, torch.eye(4), rtol=0, atol=1e-5)


def test_weights_that_cannot_be_set_are_kept_and_named():
    class Half(nn.Module):
        def forward(self, w):
            return w / 2

    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    parametrize.register_parametrization(model[0], "weight", Half())
    before = weights(model)["0.parametrizations.weight.original"]
    report = initialise(model, torch.zeros(1, 4))
    assert "without a way to set it" in report.kept["0.weight"]
    assert torch.equal(before, model[0].parametrizations.weight.original)


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_old_weight_norm():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        old = nn.utils.weight_norm(nn.Linear(64, 64))
    model = nn.Sequential(old, nn.ReLU(), nn.Linear(64, 4))
    report = initialise(model, torch.zeros(1, 64), generator=seeded())
    model(torch.zeros(1, 64))
    assert report.rows[0].weight == "0.weight"
    assert model[0].weight.std().item() == pytest.approx(math.sqrt(2 / 64), rel=0.05)


def test_frozen_and_kept_parameters_stay():
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    model[0].weight.requires_grad_(False)
    before = weights(model)
    report = initialise(model, torch.zeros(1, 4), keep=["2."])
    assert report.kept == {"0.weight": "frozen: requires_grad is False", "2.weight": "named in keep"}
    after = weights(model)
    assert {k for k in before if not torch.equal(before[k], after[k])} == {"4.weight", "4.bias"}
    assert not model[0].weight.requires_grad


@pytest.mark.parametrize(
    ("prefix", "nearest"), [("blocks.O.", "'blocks.0.'"), ("block.0", "'blocks.0.'"), ("haed.", "'head.'")]
)
def test_a_prefix_in_keep_that_matches_nothing_is_refused(prefix, nearest):
    model, example = zoo()["conv"]
    before = weights(model)
    with pytest.raises(ValueError, match=f"keep: no parameter's name begins with '{prefix}'; .*{nearest}"):
        initialise(model, example, keep=["stem.", prefix])
    assert equal(before, weights(model))


def test_keep_takes_the_name_of_a_parametrised_weight_and_of_a_tied_one():
    model = nn.Sequential(parametrizations.weight_norm(nn.Linear(8, 8)), nn.ReLU(), nn.Linear(8, 2))
    assert initialise(model, torch.zeros(1, 8), keep=["0.weight", "2.bias"]).kept == {
        "0.weight": "named in keep"
    }
    language, example = zoo()["language"]
    assert initialise(language, example, keep=["head."]).kept["tokens.weight"] == "named in keep"


@pytest.mark.parametrize("scheme", ["critical", "orthogonal", "delta_orthogonal"])
def test_a_critical_point_without_its_biases_is_noted(scheme):
    """60 GELU layers without biases shrink the signal a million times."""
    torch.manual_seed(0)
    x = torch.randn(16, 64)
    model = plain(nn.GELU, 60, 64, bias=False)
    report = initialise(model, x, scheme, seeded())
    assert report.notes == (
        "60 plain gelu layers have no bias, and gelu needs biases for its critical point: add norms or skips",
    )
    assert model(x).abs().median() < 1e-4
    assert report.notes[0] in str(report)
    auto = initialise(model, x, "auto", seeded()).notes[0]
    assert auto.endswith(report.notes[0].partition(", and ")[2])  # worded alike
    assert initialise(plain(nn.GELU, 60, 64), x, scheme).notes == ()
    assert initialise(plain(nn.Tanh, 60, 64, bias=False), x, scheme).notes == ()  # its sigma_b is 0
    normed = [m for _ in range(3) for m in (nn.Linear(64, 64, bias=False), nn.LayerNorm(64), nn.GELU())]
    assert initialise(nn.Sequential(*normed), x, scheme).notes == ()


def test_a_gain_of_ones_own_needs_no_biases():
    model = plain(nn.GELU, 4, 16, bias=False)
    assert initialise(model, torch.randn(2, 16), "orthogonal", gain=1.0).notes == ()
    assert initialise(model, torch.randn(2, 16), "lsuv").notes == ()


def test_complex_weights_are_kept():
    class Fourier(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.randn(4, 4, dtype=torch.complex64))
            self.out = nn.Linear(4, 2)

        def forward(self, x):
            return self.out(torch.fft.ifft(torch.fft.fft(x) @ self.w).real)

    report = initialise(Fourier(), torch.randn(2, 4))
    assert report.kept == {"w": "not a floating tensor"} and report.rows[0].weight == "out.weight"


def test_unused_weights_are_named():
    model = Net(lambda m, x: m.a(x), a=nn.Linear(4, 4), b=nn.Linear(4, 4))
    report = initialise(model, torch.zeros(1, 4))
    assert report.kept == {"b.weight": "not used in the run on example_input"}


def test_chosen_biases_stay():
    """A highway net's transform gate starts at -2."""
    model = Net(
        lambda m, x: (lambda t: t * F.relu(m.a(x)) + (1 - t) * x)(torch.sigmoid(m.gate(x))),
        a=nn.Linear(4, 4), gate=nn.Linear(4, 4),
    )  # fmt: skip
    nn.init.constant_(model.gate.bias, -2.0)
    report = initialise(model, torch.zeros(1, 4))
    assert model.gate.bias.tolist() == [-2.0] * 4 and model.a.bias.tolist() == [0.0] * 4
    assert report.notes == ("gate.bias is constant at -2: left as it was chosen",)


def test_an_activation_without_a_gain():
    def partly_nan(m, x):
        return torch.where(x < -1, x.new_zeros(()) / 0, x)

    def too_steep(m, x):
        return torch.exp(x**3)

    for function, note in (
        (partly_nan, ()),
        (too_steep, "has no gain (the activation or its slope is not finite at"),
    ):
        model = nn.Sequential(nn.Linear(4, 4), Net(function), nn.Linear(4, 2))
        report = initialise(model, torch.zeros(1, 4))
        assert report.rows[0].gain == 1.0 and report.rows[0].activation not in ("identity", "relu")
        assert report.notes == note or note in report.notes[0]


def test_embeddings():
    model = nn.Sequential(nn.Embedding(10, 64, padding_idx=3), nn.Linear(64, 2))
    index = torch.zeros(1, 2).long()
    before = model[0].weight.clone()
    report = initialise(model, index)
    assert torch.equal(model[0].weight, before) and report.kept == {"0.weight": "embedding"}
    initialise(model, index, "gpt2", std=0.5)
    assert not model[0].weight[3].any() and model[0].weight[0].std() > 0.3


def test_transposed_grouped_and_square_convolutions():
    model = nn.Sequential(
        nn.ConvTranspose2d(32, 64, 4, stride=2, padding=1), nn.ReLU(), nn.Conv2d(64, 64, 3, groups=64, padding=1),
        nn.ReLU(), nn.Conv2d(64, 64, 1, groups=4), nn.ReLU(),
    )  # fmt: skip
    x = torch.randn(8, 32, 16, 16)
    for scheme in ("he_normal", "orthogonal", "delta_orthogonal"):
        initialise(model, x, scheme, seeded())
        y = x
        for layer in model:
            y = layer(y)
            if isinstance(layer, nn.ReLU):  # He keeps E[relu^2] at 1 whatever the groups and the stride
                assert y.square().mean().item() == pytest.approx(1.0, abs=0.3), (scheme, layer)


def test_delta_orthogonal_keeps_every_image_through_a_deep_convolutional_net():
    x = torch.randn(8, 16, 6, 6, generator=seeded())
    for scheme, low, high in (("delta_orthogonal", 0.0, 1e-4), ("he_normal", 0.1, math.inf)):
        model = nn.Sequential(*[nn.Conv2d(16, 16, 3, padding=1, padding_mode="circular") for _ in range(100)])
        initialise(model, x, scheme, seeded(), gain=1.0)
        stretch = (model(x).flatten(1).norm(dim=1) / x.flatten(1).norm(dim=1)).log()
        assert low <= stretch.abs().max().item() < high, scheme


@pytest.mark.parametrize("training", [True, False])
def test_modes_and_buffers(training):
    model, example = zoo()["conv"]
    model.train(training)
    before = {k: v.clone() for k, v in model.named_buffers()}
    initialise(model, example)
    assert all(m.training == training for m in model.modules())
    assert all(torch.equal(before[k], v) for k, v in model.named_buffers())


def test_default_generator_comes_from_the_weights():
    def net(seed):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))

    x = torch.zeros(1, 4)
    a, b, c = net(0), net(0), net(1)
    for model in (a, b, c):
        initialise(model, x)
        torch.rand(1)
    assert equal(weights(a), weights(b)) and not equal(weights(a), weights(c))


def test_a_failure_on_the_way_puts_everything_back():
    model = nn.Sequential(
        nn.Linear(4, 4), nn.BatchNorm1d(4), nn.ReLU(), parametrizations.weight_norm(nn.Linear(4, 4))
    )
    before = weights(model)
    with pytest.raises(ValueError, match="output of '0.weight' has variance 0 on example_input"):
        initialise(model, torch.zeros(8, 4), "lsuv")
    assert equal(before, weights(model))
    half = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)).half()
    before = weights(half)
    with pytest.raises(ValueError, match="he_normal overflows the torch.float16 of '0.weight'"):
        initialise(half, torch.zeros(1, 4).half(), "he_normal", gain=1e6)
    assert equal(before, weights(half))


def test_an_interrupt_puts_everything_back(monkeypatch):
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    before = weights(model)

    def interrupted(job):
        SCHEMES["he_normal"](job)
        assert not equal(before, weights(model))
        raise KeyboardInterrupt

    monkeypatch.setitem(SCHEMES, "interrupted", interrupted)
    with pytest.raises(KeyboardInterrupt):
        initialise(model, torch.zeros(1, 4), "interrupted")
    assert equal(before, weights(model))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"scheme": "heh"}, ValueError, "unknown scheme 'heh': use one of auto, xavier_uniform"),
        ({"scheme": "auto", "gain": 2.0}, TypeError, "'auto' has no option gain: it takes no options"),
        ({"scheme": "he_normal", "std": 2.0}, TypeError, "'he_normal' has no option std: it takes gain"),
        ({"scheme": "he_normal", "gain": math.nan}, ValueError, "option gain must be finite, got nan"),
        ({"scheme": "gpt2", "std": math.inf}, ValueError, "option std must be finite, got inf"),
        ({"generator": 3}, TypeError, "generator must be a torch.Generator, got int"),
        ({"keep": "0."}, TypeError, "keep must be a sequence of name prefixes"),
        ({"scheme": "fixup"}, ValueError, "needs residual branches"),
        ({"scheme": "t_fixup"}, ValueError, "t_fixup needs a Transformer"),
        ({"scheme": "deepnorm"}, ValueError, "deepnorm needs a Transformer"),
        ({"scheme": "orthogonal_recurrent"}, ValueError, "needs recurrent weights"),
        ({"scheme": "mup"}, TypeError, "mup needs base=.*got NoneType"),
        ({"scheme": "mup", "base": nn.Linear(4, 4)}, ValueError, "base must have the parameters of model"),
        ({"scheme": "lsuv", "tol": 0.0}, ValueError, "tol must be positive, got 0.0"),
        ({"scheme": "lsuv", "max_iter": 0}, ValueError, "max_iter must be at least 1, got 0"),
        ({"example_input": torch.zeros(1, 5)}, ValueError, "does not run on example_input"),
        ({"example_input": None}, ValueError, "does not run on example_input"),
    ],
)
def test_bad_input_changes_nothing(arguments, error, message):
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2))
    before = weights(model)
    with pytest.raises(error, match=message):
        initialise(model, **{"example_input": torch.randn(8, 4), **arguments})
    assert equal(before, weights(model))


def test_models_that_cannot_be_initialised():
    with pytest.raises(ValueError, match="no weights"):
        initialise(nn.ReLU(), torch.zeros(1))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        lazy = nn.Sequential(nn.LazyLinear(4), nn.ReLU())
    with pytest.raises(ValueError, match="lazy"):
        initialise(lazy, torch.zeros(1, 4))
    assert isinstance(lazy[0].weight, nn.parameter.UninitializedParameter)


def test_compiled_model_is_initialised_in_place():
    inner = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 2))
    report = initialise(torch.compile(inner, backend="eager"), torch.zeros(1, 64))
    assert report.rows[0].weight == "0.weight"
    assert inner[0].weight.std().item() == pytest.approx(math.sqrt(2 / 64), rel=0.05)


def test_report():
    model, example = zoo()["language"]
    text = str(initialise(model, example))
    assert "scheme auto" in text and "branch end: x 1/sqrt(2)" in text and "tied to the output" in text
    line = next(x for x in text.splitlines() if x.startswith("gate.0.weight"))
    assert "silu" in line and "he_normal" in line and f"{forward_gain('silu'):.4f}" in line


def test_groups_without_multipliers_are_one_group():
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    report = initialise(model, torch.zeros(1, 4))
    groups = report.adam_groups(model, 0.1, weight_decay=0.01)
    assert len(groups) == 1 and groups[0]["lr"] == 0.1 and groups[0]["weight_decay"] == 0.01
    torch.optim.AdamW(groups)


def test_encoder_defaults_are_sane_for_training():
    """A few steps on a toy task: auto trains an encoder, a ResNet and a language model without a spike."""
    torch.manual_seed(0)
    for model, x in ((encoder(2, dropout=0.0), torch.randn(8, 5, 16)), (ResNet(), torch.randn(8, 3, 16, 16))):
        initialise(model, x)
        target = torch.randn_like(model(x)).detach()
        optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
        losses = []
        for _ in range(20):
            optimizer.zero_grad()
            loss = (model(x) - target).square().mean()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        assert losses[-1] < 0.9 * losses[0] and max(losses) < 1.5 * losses[0]


def test_language_model_starts_near_the_uniform_loss():
    torch.manual_seed(0)
    model, x = LanguageModel(64, 50, layers=3), torch.randint(0, 50, (16, 8))
    for scheme in ("auto", "gpt2", "t_fixup", "fixup"):
        initialise(model, x, scheme, seeded())
        loss = F.cross_entropy(model(x)[:, :-1].flatten(0, 1), x[:, 1:].flatten())
        assert abs(loss.item() - math.log(50)) < 1.2, scheme
