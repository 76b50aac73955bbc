"""One front door for a whole model: which group each parameter is in, and what its step is."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import steadygrad as sg
from steadygrad.optim import LAMB, Steady, parameter_blocks, steady
from tests.optim.oracles import newton_schulz


class Everything(nn.Module):
    """A little of each kind of layer."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(12, 8)
        self.lstm = nn.LSTM(8, 6, bidirectional=True, batch_first=True)
        self.gru = nn.GRU(12, 8, batch_first=True)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.grouped = nn.Conv1d(8, 6, 3, padding=1, groups=2)
        self.depthwise = nn.Conv1d(6, 6, 3, padding=1, groups=6)
        self.norm = nn.LayerNorm(6)
        self.head = nn.Linear(6, 12)

    def forward(self, tokens):
        x = self.gru(self.lstm(self.embed(tokens))[0])[0]
        x = x + self.attention(x, x, x)[0]
        x = self.depthwise(self.grouped(x.mT)).mT
        return self.head(self.norm(x)).flatten(0, 1)


def learn(model, optimizer, tokens, steps):
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(tokens), tokens.flatten())
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.fixture
def model():
    torch.manual_seed(0)
    return Everything()


def test_every_parameter_is_in_the_group_that_suits_it(model):
    groups = {
        (g["role"], g["blocks"]): g["param_names"] for g in steady(model, weight_decay=0.1).param_groups
    }
    assert groups == {
        ("hidden", 1): ["attention.out_proj.weight"],
        ("hidden", 4): [f"lstm.weight_{x}_l0{d}" for d in ("", "_reverse") for x in ("ih", "hh")],
        ("hidden", 3): ["gru.weight_ih_l0", "gru.weight_hh_l0", "attention.in_proj_weight"],
        ("hidden", 2): ["grouped.weight"],
        ("hidden", 6): ["depthwise.weight"],
        ("embedding", 1): ["embed.weight"],
        ("output", 1): ["head.weight"],
        ("vector", 1): [n for n, p in model.named_parameters() if p.ndim < 2],
    }
    decays = {g["role"]: g["weight_decay"] for g in steady(model, weight_decay=0.1).param_groups}
    assert decays == {"hidden": 0.1, "embedding": 0.1, "output": 0.1, "vector": 0.0}


def test_every_block_of_every_weight_moves_by_the_learning_rate(model):
    tokens = torch.randint(10, (16, 5))  # words 10 and 11 never occur
    optimizer = steady(model, lr=0.02)
    learn(model, optimizer, tokens, 3)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    learn(model, optimizer, tokens, 1)
    for group in optimizer.param_groups:
        for name, p in zip(group["param_names"], group["params"], strict=True):
            blocks = len(p) if group["role"] == "embedding" else group["blocks"]
            old, moved = (x.reshape(blocks, -1).norm(dim=1) for x in (before[name], p - before[name]))
            if group["role"] == "embedding":
                assert torch.equal(p[10:], before[name][10:])
                old, moved = old[:10], moved[:10]
            if group["role"] == "vector":
                assert (moved < 0.03 * old.clamp(min=0.1 * len(p) ** 0.5)).all(), name
            else:
                torch.testing.assert_close(moved / old, torch.full_like(old, 0.02), rtol=0.03, atol=0)


def test_a_step_at_right_angles_keeps_the_length_of_the_weights():
    w = nn.Parameter(torch.tensor([[3.0, 0.0], [0.0, 0.0]]))
    w.grad = torch.tensor([[0.0, 0.0], [0.0, 1.0]])
    Steady([w], lr=1.0, max_ratio=math.inf).step()
    torch.testing.assert_close(w.detach(), torch.tensor([[3.0, 0.0], [0.0, -3.0]]) / 2**0.5)


def test_the_direction_of_a_matrix_is_that_of_torchs_muon():
    torch.manual_seed(0)
    ours, theirs = nn.Parameter(torch.randn(12, 7)), nn.Parameter(torch.zeros(12, 7))
    a = Steady([ours], lr=1e-4, max_growth=math.inf)
    b = torch.optim.Muon([theirs], lr=1.0, weight_decay=0.0)
    for _ in range(5):
        g = torch.randn(12, 7)
        ours.grad, theirs.grad = g, g
        old = ours.detach().double(), theirs.detach().double().clone()
        old = old[0].clone(), old[1]
        a.step()
        b.step()
    pair = torch.stack([(ours - old[0]).flatten(), (theirs - old[1]).flatten().double()]).detach()
    assert torch.corrcoef(pair)[0, 1] > 0.999  # torch works in bfloat16


def test_a_vector_takes_torchs_adamw_and_the_output_layer_lamb():
    torch.manual_seed(0)
    bias, theirs = nn.Parameter(torch.zeros(9)), nn.Parameter(torch.zeros(9))
    a = Steady([bias], lr=0.01, max_growth=math.inf)
    b = torch.optim.AdamW([theirs], lr=0.001, betas=(0.9, 0.95), weight_decay=0.0)
    for _ in range(20):  # it stays below 0.1, and is counted as 0.1
        bias.grad = torch.randn(9)
        theirs.grad = bias.grad.clone()
        a.step()
        b.step()
    torch.testing.assert_close(bias, theirs, rtol=1e-5, atol=1e-8)
    weight = torch.randn(5, 4)
    head, twin = nn.Parameter(weight.clone()), nn.Parameter(weight.clone())
    head.grad = twin.grad = torch.randn(5, 4)
    Steady([head], lr=0.01, role="output").step()
    LAMB([twin], lr=0.01, weight_decay=0.0).step()
    torch.testing.assert_close(head * math.sqrt(1 + 1e-4), twin.detach(), rtol=1e-4, atol=1e-6)


def test_gates_are_made_orthogonal_one_by_one():
    torch.manual_seed(0)
    weight, grad = torch.randn(12, 5, dtype=torch.float64), torch.randn(12, 5, dtype=torch.float64)
    grad[:4] *= 1e6  # one gate outshouts the others
    together, apart = nn.Parameter(weight.clone()), [nn.Parameter(w.clone()) for w in weight.split(4)]
    together.grad = grad
    Steady([together], lr=0.01, blocks=3).step()
    for p, g in zip(apart, grad.split(4), strict=True):
        p.grad = g.clone()
        Steady([p], lr=0.01).step()
        u = torch.tensor(newton_schulz(g.numpy()))
        assert torch.linalg.matrix_norm(u, 2) < 1.3
    torch.testing.assert_close(together.detach(), torch.cat([p.detach() for p in apart]))


def test_a_convolution_is_stepped_as_its_matrix():
    torch.manual_seed(0)
    conv = nn.Parameter(torch.randn(6, 3, 2, 2))
    matrix = nn.Parameter(conv.detach().flatten(1).clone())
    a, b = Steady([conv]), Steady([matrix])
    for _ in range(3):
        conv.grad = torch.randn(6, 3, 2, 2)
        matrix.grad = conv.grad.flatten(1)
        a.step()
        b.step()
    torch.testing.assert_close(conv.detach().flatten(1), matrix.detach())


def direction_after_a_spike(max_growth, steps=5):
    torch.manual_seed(0)
    usual, spike = torch.randn(6, 6), torch.randn(6, 6)
    w = nn.Parameter(torch.randn(6, 6))
    optimizer = Steady([w], max_growth=max_growth)
    for g in [usual] * 30 + [1e5 * spike] + [usual] * steps:
        old = w.detach().clone()
        w.grad = g.clone()
        optimizer.step()
    moved, straight = (
        (w.detach() - old).flatten(),
        torch.tensor(newton_schulz(usual.double().numpy())).float(),
    )
    return -torch.nn.functional.cosine_similarity(moved, straight.flatten(), dim=0).item()


def test_one_gradient_a_hundred_thousand_times_too_long_does_not_steer_the_next_steps():
    assert direction_after_a_spike(2.0) > 0.9
    assert direction_after_a_spike(math.inf) < 0.5


def test_a_rate_beyond_the_bound_steps_by_the_bound(model):
    tokens = torch.randint(12, (4, 5))
    found = []
    for lr in (0.03, 7.0, torch.tensor(7.0)):
        torch.manual_seed(0)
        twin = Everything()
        learn(twin, steady(twin, lr=lr, weight_decay=0.1), tokens, 2)
        found.append(torch.cat([p.detach().flatten() for p in twin.parameters()]))
    assert torch.equal(found[0], found[1])
    torch.testing.assert_close(found[0], found[2])


def test_the_probe_sees_the_same_update_ratio_in_every_layer(model, tmp_path):
    tokens = torch.randint(12, (32, 5))
    optimizer = steady(model, lr=0.02)
    with sg.watch(model, optimizer, runs=tmp_path, guard="off") as watcher:
        losses = learn(model, optimizer, tokens, 64)
    assert losses[-1] < 0.6 * losses[0]
    run = sg.Run(watcher.run_dir)
    seen = [
        run.series("update_ratio", name)[1].tolist() for name, p in model.named_parameters() if p.ndim > 1
    ]
    ratios = [x for values in seen for x in values]
    assert len(seen) == 12 and all(seen) and max(ratios) < 1.1 * min(ratios)


def test_a_checkpoint_goes_on_bit_for_bit(model):
    tokens = torch.randint(12, (4, 5))
    optimizer = steady(model, lr=0.02)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.1, total_iters=6)
    learn(model, optimizer, tokens, 3)
    schedule.step()
    twin = Everything()
    twin.load_state_dict(model.state_dict())
    resumed = steady(twin, lr=0.5)
    resumed.load_state_dict(optimizer.state_dict())
    assert learn(model, optimizer, tokens, 3) == learn(twin, resumed, tokens, 3)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), twin.parameters(), strict=True))


def test_blocks_by_name():
    model = nn.ModuleDict({"qkv": nn.Linear(4, 12), "rnn": nn.RNN(4, 6), "cell": nn.GRUCell(4, 6)})
    assert parameter_blocks(model, {"qkv": 3}) == {
        "qkv.weight": 3,
        "rnn.weight_ih_l0": 1,
        "rnn.weight_hh_l0": 1,
        "cell.weight_ih": 3,
        "cell.weight_hh": 3,
    }
    assert parameter_blocks(model, {"qkv.weight": 2})["qkv.weight"] == 2
    with pytest.raises(ValueError, match='stacked names "kqv"'):
        parameter_blocks(model, {"kqv": 3})
    with pytest.raises(ValueError, match="holds 5 matrices, and it has 12 rows"):
        steady(model, stacked={"qkv": 5})


def test_what_cannot_be_optimised_is_refused(model):
    with pytest.raises(ValueError, match="nothing to optimise"):
        steady(nn.ReLU())
    with pytest.raises(ValueError, match='outputs names "tail"'):
        steady(model, outputs=["tail"])
    with pytest.raises(ValueError, match='role "output" needs two dimensions'):
        Steady([nn.Parameter(torch.ones(3))], role="output")
    with pytest.raises(ValueError, match="blocks must divide the rows"):
        steady(model).add_param_group({"params": [nn.Parameter(torch.ones(3, 2))], "blocks": 2})
