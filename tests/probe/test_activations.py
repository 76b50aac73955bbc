"""Activations on sampled steps, against slow references; and that nobody notices the hooks."""

import copy
import gc
import io
import math
import pickle
import subprocess
import sys
import weakref

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from steadygrad.probe.activations import ActivationSampler


def sample(model, *args, calls=1, **kwargs):
    sampler = ActivationSampler([model])
    sampler.arm()
    for _ in range(calls):
        model(*args, **kwargs)
    sampler.disarm()
    assert no_hooks(model)
    return {a.module: a for a in sampler.take()}


def no_hooks(model):
    return not any(
        m._forward_hooks or m._forward_pre_hooks or m._forward_hooks_with_kwargs for m in model.modules()
    )


def rms(tensor):
    return float(tensor.detach().double().square().mean().sqrt())


class Functional(nn.Module):
    """Convolutions and linear layers with functional activations between them."""

    def __init__(self):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 8, 3), nn.Conv2d(8, 8, 3)
        self.norm = nn.BatchNorm2d(8)
        self.fc1, self.fc2, self.fc3 = nn.Linear(8 * 100, 32), nn.Linear(32, 16), nn.Linear(16, 10)

    def forward(self, x):
        x = F.relu(self.conv1(x))
        x = F.relu(self.norm(self.conv2(x)))
        x = F.relu(self.fc1(x.flatten(1)))
        return self.fc3(torch.tanh(self.fc2(x)))


def kill(layer, units):
    with torch.no_grad():
        layer.bias[:units] = -1e4


# ---------------------------------------------------------------------- the numbers
def test_rms_of_outputs_and_of_the_raw_batch():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6), nn.Linear(6, 2))
    x = torch.randn(32, 4)
    seen = sample(model, x)
    values = x
    for i, layer in enumerate(model):
        values = layer(values)
        assert seen[str(i)].rms == pytest.approx(rms(values), rel=1e-6)
        assert seen[str(i)].module_type == type(layer).__name__
    assert seen["0"].input_rms == pytest.approx(rms(x), rel=1e-6)
    assert math.isnan(seen["1"].input_rms) and math.isnan(seen["2"].input_rms)
    assert all(math.isnan(a.dead) and math.isnan(a.saturated) for a in seen.values())


def test_dead_units_behind_functional_relus_are_reported_under_the_layer_that_made_them():
    torch.manual_seed(0)
    model = Functional()
    kill(model.conv1, 2)
    kill(model.norm, 4)
    kill(model.fc1, 8)
    with torch.no_grad():
        model.fc1.bias[8:] = 100.0
    seen = sample(model, torch.randn(20, 1, 14, 14))
    assert seen["conv1"].dead == pytest.approx(2 / 8)
    assert seen["norm"].dead == pytest.approx(4 / 8, rel=1e-6)  # seen at fc1, behind flatten
    assert seen["fc1"].dead == pytest.approx(8 / 32)
    assert math.isnan(seen["fc2"].dead) and math.isnan(seen["fc3"].dead)


def test_dead_units_equal_a_slow_count():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv1d(2, 6, 3), nn.ReLU(), nn.Conv1d(6, 4, 1))
    with torch.no_grad():
        model[0].bias[3:] = -50.0
    x = torch.randn(16, 2, 9)
    out = model[1](model[0](x))
    expected = sum(bool((out[:, c] == 0).all()) for c in range(6)) / 6
    assert expected >= 0.5
    assert sample(model, x)["1"].dead == pytest.approx(expected)


@pytest.mark.parametrize("shape", [(64, 8), (4, 16, 8), (2, 4, 8, 8)])
def test_units_of_linear_layers_lie_on_the_last_axis(shape):
    model = nn.Sequential(nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 2))
    kill(model[0], 3)
    with torch.no_grad():
        model[0].bias[3:] = 100.0
    assert sample(model, torch.randn(shape))["1"].dead == pytest.approx(3 / 12)


def test_units_behind_a_residual_and_a_norm():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm, self.act, self.end = (
                nn.Conv2d(4, 4, 1),
                nn.GroupNorm(1, 4),
                nn.ReLU(),
                nn.Conv2d(4, 1, 1),
            )

        def forward(self, x):
            return self.end(self.act(self.norm(self.conv(x)) + x))

    x = torch.rand(16, 4, 3, 3)
    x[:, 0] = -1e4
    x[:, 1:] += 100
    assert sample(Block(), x)["act"].dead == pytest.approx(1 / 4)


@pytest.mark.parametrize(
    "between",
    [
        lambda y: y.flatten(1),
        lambda y: F.max_pool2d(y, 2).flatten(1),
        lambda y: F.avg_pool2d(y, 2).reshape(len(y), -1),
        lambda y: F.adaptive_avg_pool2d(y, 2).flatten(2).flatten(1),
    ],
)
def test_channels_are_seen_through_pooling_and_flattening(between):
    class Tail(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.fc = nn.Conv2d(1, 6, 1), nn.LazyLinear(3)

        def forward(self, x):
            return self.fc(between(F.relu(self.conv(x))))

    model, x = Tail(), torch.rand(16, 1, 4, 4)
    model(x)
    with torch.no_grad():
        model.conv.weight.fill_(1.0)
        model.conv.bias.copy_(torch.tensor([-50.0, -50.0, 0.0, 0.0, 0.0, 0.0]))
        x[:, :, :2] = 0.0  # places that are always 0 do not make a channel dead
    assert sample(model, x)["conv"].dead == pytest.approx(2 / 6)


def test_dead_is_over_the_whole_batch_of_all_micro_batches():
    model = nn.Sequential(nn.Linear(1, 2, bias=False), nn.ReLU())
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0], [-1.0]]))
    sampler = ActivationSampler([model])
    sampler.arm()
    model(torch.ones(16, 1))
    model(-torch.ones(16, 1))
    assert {a.module: a.dead for a in sampler.take()}["1"] == 0.0
    model(torch.ones(16, 1))
    assert {a.module: a.dead for a in sampler.take()}["1"] == 0.5
    model(torch.ones(8, 1))
    assert math.isnan({a.module: a.dead for a in sampler.take()}["1"])  # too few rows to tell
    sampler.disarm()


def test_an_output_with_several_consumers_counts_once():
    class Fork(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc, self.left, self.right = nn.Linear(4, 8), nn.Linear(8, 1), nn.Linear(8, 1)

        def forward(self, x):
            y = F.relu(self.fc(x))
            return self.left(y) + self.right(y)

    assert math.isnan(sample(Fork(), torch.randn(8, 4))["fc"].dead)  # 8 rows, not 16
    assert not math.isnan(sample(Fork(), torch.randn(16, 4))["fc"].dead)


@pytest.mark.parametrize("activation", [nn.LeakyReLU(), nn.GELU(), nn.ELU(), nn.SiLU()])
def test_activations_without_a_dead_part(activation):
    model = nn.Sequential(nn.Linear(4, 4), activation, nn.Linear(4, 1))
    seen = sample(model, torch.randn(32, 4))
    assert all(math.isnan(a.dead) and math.isnan(a.saturated) for a in seen.values())


@pytest.mark.parametrize("inplace", [False, True])
def test_relu_modules_shared_relus_and_what_passes_through(inplace):
    model = nn.Sequential(
        nn.Linear(4, 8), nn.ReLU(inplace), nn.Identity(), nn.Dropout(0.0).eval(), nn.Linear(8, 2)
    )
    kill(model[0], 2)
    with torch.no_grad():
        model[0].bias[2:] = 100.0
    seen = sample(model, torch.randn(32, 4))
    assert seen["1"].dead == pytest.approx(0.25)
    assert [k for k, a in seen.items() if not math.isnan(a.dead)] == ["1"]


def test_saturation():
    torch.manual_seed(0)
    x = torch.randn(50, 4) * 4
    for activation, flat in [
        (nn.Tanh(), lambda y: y.abs() > 0.99),
        (nn.Sigmoid(), lambda y: (y < 0.01) | (y > 0.99)),
        (nn.Softmax(-1), lambda y: y.amax(-1) > 0.999),
        (nn.Softmax(0), lambda y: y.amax(0) > 0.999),
    ]:
        layer = nn.Linear(4, 4)
        with torch.no_grad():
            layer.weight.copy_(torch.eye(4) * 2)
        seen = sample(nn.Sequential(layer, activation), x)
        expected = float(flat(activation(layer(x))).float().mean())
        assert 0 <= expected < 1
        assert seen["1"].saturated == pytest.approx(expected), activation
        assert math.isnan(seen["1"].dead) and math.isnan(seen["0"].saturated)
    model = Functional()
    with torch.no_grad():
        model.fc2.weight.mul_(1e4)
    seen = sample(model, torch.randn(20, 1, 14, 14))
    assert seen["fc2"].saturated > 0.5  # functional tanh, seen at the input of fc3


def test_the_consumer_has_it_where_the_producer_is_not_known():
    class Free(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight, self.fc = nn.Parameter(torch.eye(4) * 1e4), nn.Linear(4, 2)

        def forward(self, x):
            return self.fc(torch.sigmoid(x @ self.weight))

    assert sample(Free(), torch.randn(20, 4))["fc"].saturated == pytest.approx(1.0)


@pytest.mark.parametrize("cell", [nn.RNN, nn.LSTM, nn.GRU])
def test_recurrent_modules_are_leaves(cell):
    model = nn.ModuleDict({"rnn": cell(4, 8, batch_first=True)})
    x = torch.randn(16, 5, 4)
    sampler = ActivationSampler([model])
    sampler.arm()
    out, _ = model["rnn"](x)
    (stats,) = sampler.take()
    packed = nn.utils.rnn.pack_padded_sequence(x, torch.full((16,), 5), batch_first=True)
    model["rnn"](packed)
    (of_packed,) = sampler.take()
    sampler.disarm()
    assert stats.rms == pytest.approx(rms(out), rel=1e-5) == pytest.approx(of_packed.rms, rel=1e-5)
    assert stats.input_rms == pytest.approx(rms(x), rel=1e-5) == pytest.approx(of_packed.input_rms, rel=1e-5)
    assert math.isnan(stats.saturated) == (cell is not nn.RNN)


def test_dead_units_of_a_relu_rnn():
    rnn = nn.RNN(4, 8, nonlinearity="relu")
    with torch.no_grad():
        rnn.bias_ih_l0[:2] = -1e4
        rnn.bias_ih_l0[2:] = 1e2
        rnn.weight_hh_l0.zero_()
    assert sample(nn.Sequential(rnn), torch.randn(5, 16, 4))["0"].dead == pytest.approx(0.25)


class Odd(nn.Module):
    def __init__(self, answer):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))
        self.answer = answer

    def forward(self, x):
        return self.answer(x * self.weight)


@pytest.mark.parametrize(
    "answer",
    [
        lambda y: {"count": torch.arange(3), "deep": [None, "text", (y,)]},
        lambda y: (torch.tensor([1]), y),
        lambda y: y.to(torch.complex64),
        lambda y: y.bfloat16(),
        lambda y: y.double(),
    ],
)
def test_kinds_of_output(answer):
    model = nn.Sequential(Odd(answer))
    x = torch.tensor([1.0, 2.0, 2.0])
    scale = 1 / math.sqrt(2) if answer(x) is not None and getattr(answer(x), "is_complex", bool)() else 1.0
    assert sample(model, x)["0"].rms == pytest.approx(math.sqrt(3) * scale, rel=1e-6)


@pytest.mark.parametrize(
    "answer",
    [
        lambda y: None,
        lambda y: "text",
        lambda y: y.argmax(),
        lambda y: y[:0],
        lambda y: y.to("meta"),
        lambda y: torch.eye(3).to_sparse() * y.sum(),
    ],
)
def test_outputs_without_a_number_give_no_entry(answer):
    assert sample(nn.Sequential(Odd(answer)), torch.ones(3)) == {}


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_non_finite_values_show(value):
    x = torch.ones(20, 3)
    x[4, 1] = value
    seen = sample(nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 2)), x)
    assert not any(math.isfinite(a.rms) for a in seen.values())
    assert not math.isfinite(seen["0"].input_rms)


def test_large_finite_values_stay_finite():
    model = nn.Sequential(Odd(lambda y: y))
    assert sample(model, torch.full((4, 3), 2e38))["0"].rms == pytest.approx(2e38, rel=1e-5)


def same(width):
    """A layer that gives back what it is given."""
    layer = nn.Linear(width, width, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.eye(width))
    return layer


@pytest.mark.parametrize("size", [1e-30, 1e-15, 1.0, 1e15, 1e30])
def test_values_whose_float32_squares_would_not_fit_have_their_rms(size):
    x = size * torch.randn(16, 8)
    seen = sample(nn.Sequential(same(8)), x)["0"]
    assert seen.input_rms == seen.rms == pytest.approx(rms(x), rel=1e-5)


def test_of_a_large_output_the_flat_share_is_that_of_evenly_spread_rows():
    x = torch.linspace(-8, 8, 20_000)[:, None].expand(20_000, 10).contiguous()  # rows from flat to flat
    for kind, flat in (
        (nn.Tanh(), lambda y: y.abs() > 0.99),
        (nn.Sigmoid(), lambda y: (y - 0.5).abs() > 0.49),
    ):
        share = float(flat(kind(x)).float().mean())
        assert 0.1 < share < 0.9
        assert sample(nn.Sequential(same(10), kind), x)["1"].saturated == pytest.approx(share, abs=0.002)


def test_a_unit_that_is_nan_is_not_dead():
    layer = nn.Linear(4, 4)
    with torch.no_grad():
        layer.bias.copy_(torch.tensor([0.0, math.nan, 1.0, -1.0]))
    assert sample(nn.Sequential(layer, nn.ReLU()), torch.zeros(32, 4))["1"].dead == 0.5


def test_calls_are_summed():
    model = nn.Sequential(nn.Linear(2, 2))
    sampler = ActivationSampler([model])
    sampler.arm()
    a, b = torch.randn(4, 2), torch.randn(6, 2) * 10
    both = torch.cat([model(a), model(b)])
    (stats,) = sampler.take()
    assert stats.rms == pytest.approx(rms(both), rel=1e-5)
    assert sampler.take() == ()
    sampler.disarm()


def test_order_is_that_of_the_first_call_and_keywords_count_as_input():
    class Backwards(nn.Module):
        def __init__(self):
            super().__init__()
            self.last, self.first = nn.Linear(2, 2), nn.Linear(2, 2)

        def forward(self, x):
            return self.last(self.first(input=x))

    seen = sample(Backwards(), torch.full((3, 2), 2.0))
    assert list(seen) == ["first", "last"] and seen["first"].input_rms == pytest.approx(2.0)


def test_token_ids_and_parameters_are_no_raw_batch():
    model = nn.ModuleList([nn.Embedding(5, 4), nn.Linear(4, 2)])
    sampler = ActivationSampler([model])
    sampler.arm()
    model[0](torch.arange(5))
    model[1](model[0].weight)
    assert all(math.isnan(a.input_rms) for a in sampler.take())
    sampler.disarm()


# ---------------------------------------------------------------------- which modules, which steps
def test_due():
    sampler = ActivationSampler([], every=50)
    assert [s for s in range(160) if sampler.due(s)] == [0, 1, 2, 5, 10, 20, 50, 100, 150]
    with pytest.raises(ValueError, match="every must be at least 1, got 0"):
        ActivationSampler([], every=0)


def test_containers_are_not_sampled_and_parametrised_layers_are():
    layer = nn.utils.parametrizations.weight_norm(nn.Linear(2, 2))
    model = nn.Sequential(nn.Sequential(), layer, nn.ModuleList(), nn.MultiheadAttention(2, 1))
    sampler = ActivationSampler([model])
    sampler.arm()
    assert sorted(sampler._handles) == ["1", "3"]
    sampler.disarm()
    assert sample(nn.Sequential(layer), torch.ones(1, 2))["0"].module_type == "Linear"


def test_a_shared_module_is_sampled_once():
    inner = nn.Linear(2, 2)
    assert list(sample(nn.Sequential(inner, inner), torch.ones(3, 2))) == ["0"]


def test_names_of_a_gan_are_those_of_its_parameters():
    class Critic(nn.Sequential):
        pass

    g, c = nn.Sequential(nn.Linear(2, 2)), Critic(nn.Linear(2, 1))
    optimizers = [torch.optim.SGD(m.parameters(), lr=0.1) for m in (g, c)]
    sampler = ActivationSampler([g, c])
    sampler.arm()
    c(g(torch.ones(3, 2)))
    assert [a.module for a in sampler.take()] == ["sequential.0", "critic.0"]
    sampler.disarm()
    del optimizers


def test_evaluation_is_not_seen():
    model = nn.Sequential(nn.Linear(2, 2))
    sampler = ActivationSampler([model])
    sampler.arm()
    with torch.no_grad():
        model(torch.ones(1, 2))
    with torch.inference_mode():
        model(torch.ones(1, 2))
    assert sampler.take() == ()
    sampler.disarm()


def test_arming_twice_leaves_one_hook_and_disarming_none():
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    sampler = ActivationSampler([model])
    sampler.arm()
    sampler.arm()
    assert len(model[0]._forward_hooks) == 1
    sampler.disarm()
    sampler.disarm()
    assert no_hooks(model)


def test_the_users_own_hooks_stay():
    model = nn.Sequential(nn.Linear(2, 2))
    calls = []
    model[0].register_forward_hook(lambda m, a, o: calls.append(m) or o * 2)
    x = torch.randn(8, 2)
    sampler = ActivationSampler([model])
    sampler.arm()
    out = model(x)
    sampler.disarm()
    assert [a.rms for a in sampler.take()] == pytest.approx([rms(out)], rel=1e-6)  # what the next module gets
    assert len(model[0]._forward_hooks) == len(calls) == 1


def test_a_module_that_cannot_be_read_is_dropped_with_a_note():
    class Trap(dict):
        def values(self):
            raise RuntimeError("not for you\nsecond line")

    model = nn.Sequential(nn.Linear(3, 3), Odd(lambda y: Trap()))
    sampler = ActivationSampler([model])
    for _ in range(2):
        sampler.arm()
        model(torch.ones(3))
        assert [a.module for a in sampler.take()] == ["0"]
    assert sampler.notes == ["activations of 1 cannot be read: RuntimeError: not for you"]
    assert "1" not in sampler._handles
    sampler.disarm()
    assert no_hooks(model)


# ---------------------------------------------------------------------- compiled models
def compiled_counts(model, call, roots):
    from torch._dynamo.utils import counters

    torch._dynamo.reset()
    counters.clear()
    sampler = ActivationSampler(roots)
    results = []
    for step in range(4):
        if step != 2:
            sampler.arm()
        out = call(torch.ones(2, 4))
        out.sum().backward()
        results.append(out.detach())
        seen = sampler.take()
        sampler.disarm()
    assert no_hooks(model)
    counts = dict(counters["stats"]), dict(counters["graph_break"]), dict(counters["frames"])
    torch._dynamo.reset()
    return counts, results, seen, sampler.notes


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(4, 4), nn.Linear(4, 1)

    def forward(self, x):
        return self.fc2(torch.relu(self.fc1(x)))


@pytest.mark.parametrize(
    "how",
    [
        "wrapper",
        *(
            pytest.param(how, marks=pytest.mark.slow)
            for how in ("wrapper, inner model given", "compile()", "forward")
        ),
    ],
)
def test_compiled_models_are_left_alone(how):
    torch.manual_seed(0)
    model = Net()
    call, roots = model, [model]
    if how.startswith("wrapper"):
        call = torch.compile(model, backend="eager")
        roots = [model] if "inner" in how else [call]
    elif how == "compile()":
        model.compile(backend="eager")
    else:
        model.forward = torch.compile(model.forward, backend="eager")
    expected, outputs, _, _ = compiled_counts(model, call, [])
    counts, same, seen, notes = compiled_counts(model, call, roots)
    assert counts == expected and counts[1] == {} and counts[0]["unique_graphs"] == 1
    assert all(torch.equal(a, b) for a, b in zip(outputs, same, strict=True))
    assert seen == ()
    assert notes == ["activations of the model are not sampled: it is compiled"]


def test_a_compiled_function_around_the_model_gets_no_graph_break():
    model = Net()

    def forward(x):
        return model(x)

    counts, _, seen, _ = compiled_counts(model, torch.compile(forward, backend="eager"), [model])
    assert counts[1] == {} and seen == ()


def test_the_part_that_is_not_compiled_is_seen():
    model = nn.Sequential(torch.compile(nn.Linear(4, 4), backend="eager"), nn.Linear(4, 2))
    sampler = ActivationSampler([model])
    sampler.arm()
    model(torch.ones(2, 4))
    assert [a.module for a in sampler.take()] == ["1"]
    assert sampler.notes == ["activations of 0 are not sampled: it is compiled"]
    sampler.disarm()
    torch._dynamo.reset()


# ---------------------------------------------------------------------- do no harm
def train(model, batch, watch, context=None):
    torch.manual_seed(3)
    model = copy.deepcopy(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    sampler = ActivationSampler([model], every=2)
    left = []
    for step in range(8):
        if watch and sampler.due(step):
            sampler.arm()
        optimizer.zero_grad()
        out = model(*batch) if context is None else context(model, *batch)
        out = out[0] if isinstance(out, tuple) else out
        out.float().square().mean().backward()
        with torch.no_grad():
            model.eval()
            left.append(model(*batch))
            model.train()
        optimizer.step()
        left.append(out.detach())
        if watch:
            assert sampler.take() or not sampler.due(step)
            sampler.disarm()
    left = [t[0] if isinstance(t, tuple) else t for t in left]
    return [*left, *model.parameters(), *model.buffers(), torch.get_rng_state()]


def autocast(model, *batch):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return model(*batch)


def reentrant(model, x):
    return checkpoint(model, x.requires_grad_(), use_reentrant=True)


def selective(model, x):
    return checkpoint(model, x, use_reentrant=False)


@pytest.mark.parametrize("context", [None, autocast, reentrant, selective])
@pytest.mark.parametrize("kind", ["mlp", "cnn", "transformer", "lstm"])
def test_watched_training_is_bit_identical(kind, context):
    torch.manual_seed(0)
    model, x = {
        "mlp": (
            nn.Sequential(nn.Linear(4, 16), nn.ReLU(inplace=True), nn.Dropout(0.3), nn.Linear(16, 2)),
            (8, 4),
        ),
        "cnn": (
            nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout2d(0.2)),
            (4, 1, 8, 8),
        ),
        "transformer": (
            nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 2),
            (4, 5, 8),
        ),
        "lstm": (nn.LSTM(4, 8, num_layers=2, dropout=0.2), (5, 3, 4)),
    }[kind]
    batch = (torch.randn(x),)
    plain, watched = train(model, batch, False, context), train(model, batch, True, context)
    assert len(plain) == len(watched)
    for a, b in zip(plain, watched, strict=True):
        assert torch.equal(a, b)


def test_the_fast_path_of_a_transformer_is_taken_while_armed(monkeypatch):
    model = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    calls = []
    fast = torch._transformer_encoder_layer_fwd
    monkeypatch.setattr(torch, "_transformer_encoder_layer_fwd", lambda *a: calls.append(1) or fast(*a))
    sampler = ActivationSampler([nn.Sequential(model)])
    sampler.arm()
    model.eval()
    with torch.no_grad():
        model(torch.randn(2, 3, 8))
    assert calls == [1] and no_hooks(model)
    sampler.arm()
    model.train()
    model(torch.randn(2, 3, 8))
    assert {"0.linear1", "0.self_attn"} <= {a.module for a in sampler.take()}
    sampler.disarm()
    assert no_hooks(model)


def test_checkpointed_layers_have_the_numbers_of_plain_ones():
    torch.manual_seed(0)
    model = Functional()
    kill(model.fc1, 8)
    x = torch.randn(20, 1, 14, 14)
    plain = sample(model, x)
    sampler = ActivationSampler([model])
    for use_reentrant in (True, False):
        sampler.arm()
        checkpoint(model, x.clone().requires_grad_(), use_reentrant=use_reentrant).sum().backward()
        for stats in sampler.take():
            assert stats.rms == pytest.approx(plain[stats.module].rms, rel=1e-5)
            assert stats.dead == pytest.approx(plain[stats.module].dead, nan_ok=True)
        sampler.disarm()


def test_graphs_and_activations_are_not_kept():
    class Marker:
        pass

    class Double(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.marker = Marker()  # lives as long as the graph
            kept.append(weakref.ref(ctx.marker))
            return x * 2

        @staticmethod
        def backward(ctx, grad):
            return grad * 2

    kept = []
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), Odd(Double.apply))
    model[2].weight = nn.Parameter(torch.ones(8))
    model[1].register_forward_hook(lambda m, a, o: kept.append(weakref.ref(o)))
    sampler = ActivationSampler([model])
    sampler.arm()
    out = model(torch.ones(20, 4))
    assert len(kept) == 2 and kept[1]() is not None
    out.sum().backward()
    del out
    gc.collect()
    assert [ref() for ref in kept] == [None, None]
    assert len(sampler.take()) == 3
    sampler.disarm()


def test_copies_and_files_of_an_armed_model_carry_nothing_of_ours(tmp_path):
    model = nn.Sequential(nn.Linear(2, 2), nn.TransformerEncoderLayer(2, 1, 4, batch_first=True))
    sampler = ActivationSampler([model])
    sampler.arm()
    copies = [copy.deepcopy(model), pickle.loads(pickle.dumps(model))]
    torch.save(model, tmp_path / "model.pt")
    file = io.BytesIO()
    torch.save(model, file)
    for twin in copies:
        twin(torch.ones(1, 3, 2))
        with torch.no_grad():
            twin(torch.ones(1, 3, 2))
    assert sampler.take() == ()  # the copies do not report to us
    sampler.disarm()
    assert b"steadygrad" not in file.getvalue()
    load = f"import sys, torch; torch.load({str(tmp_path / 'model.pt')!r}, weights_only=False)(torch.ones(1, 3, 2));"
    check = "assert not [m for m in sys.modules if m.startswith('steadygrad')]"
    subprocess.run([sys.executable, "-W", "ignore", "-c", load + check], check=True, cwd=tmp_path)


def test_functional_transforms_run_while_armed():
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    sampler = ActivationSampler([model])
    sampler.arm()
    params = dict(model.named_parameters())
    x = torch.randn(3, 2)

    def loss(p, row):
        return torch.func.functional_call(model, p, (row,)).sum()

    per_sample = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(params, x)
    assert per_sample["0.weight"].shape == (3, 2, 2)
    assert sampler.take() == () and sampler.notes == []
    sampler.disarm()
