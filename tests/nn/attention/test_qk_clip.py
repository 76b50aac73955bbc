"""QK-clip: the function, and the projections it finds."""

from __future__ import annotations

import copy
import math
import os
import pickle
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from torch import nn

from steadygrad.nn.attention import QKClip, max_attention_logit, qk_clip_, qk_norm, soft_cap
from tests.nn.attention.attentions import DIM, HEADS, WIDTH, Fused, Written, inputs
from tests.nn.attention.test_following import net


def parameters(model):
    return {n: p.detach().clone() for n, p in model.named_parameters()}


def changed(before, model):
    return {n for n, p in model.named_parameters() if not torch.equal(before[n], p)}


def hot(model, factor=30.0):
    """Large queries and keys, so that every head is above a tau of 1."""
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(factor)
    return model


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_function_equals_the_formula(dtype):
    g = torch.Generator().manual_seed(0)
    query = [torch.randn(6, 4, generator=g).to(dtype), torch.randn(6, generator=g).to(dtype)]
    key = [torch.randn(6, 4, generator=g).to(dtype)]
    before = [t.clone() for t in (*query, *key)]
    gamma = qk_clip_(query, key, torch.tensor([250.0, 99.0, math.nan]), tau=100.0)
    np.testing.assert_allclose(gamma, [0.4, 1.0, 1.0])
    for old, new in zip(before, (*query, *key), strict=True):
        want = old.double()
        want[:2] *= math.sqrt(0.4)
        torch.testing.assert_close(new.double(), want, rtol=8e-3 if dtype == torch.bfloat16 else 1e-6, atol=0)
        assert torch.equal(new[2:], old[2:])


def test_function_with_shared_keys_leaves_them():
    query, key = torch.ones(8, 3), torch.ones(4, 3)
    qk_clip_([query], [key], torch.tensor([400.0, 1.0, 1.0, 200.0]), tau=100.0)
    assert query[:, 0].tolist() == [0.25, 0.25, 1, 1, 1, 1, 0.5, 0.5] and bool((key == 1).all())


@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
def test_function_changes_nothing_where_the_largest_logit_is_not_finite(bad):
    w = torch.randn(2, 3)
    old = w.clone()
    assert qk_clip_([w], [w.clone()], torch.tensor([bad]), tau=1.0).tolist() == [1.0]
    assert torch.equal(w, old)


def test_function_refuses():
    w = torch.ones(6, 2)
    for args, message in (
        (([w], [w], torch.ones(4)), "must divide into 4 heads"),
        (([w], [w], torch.tensor(1.0)), "one number for each head"),
        (([], [w], torch.ones(2)), "must each hold a weight"),
    ):
        with pytest.raises(ValueError, match=message):
            qk_clip_(*args)
    with pytest.raises(ValueError, match="tau must be positive"):
        qk_clip_([w], [w], torch.ones(2), tau=0.0)
    assert bool((w == 1).all())


class Packed(nn.Module):
    """One projection for all three, interleaved by head as in GPT-NeoX, rotated, queries pre-scaled."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)

    def forward(self, x):
        q, k, v = self.qkv(x).view(*x.shape[:2], HEADS, 3 * DIM).transpose(1, 2).chunk(3, -1)
        at = torch.arange(x.size(1)).unsqueeze(-1) * torch.tensor([1.0, 0.3])
        cos, sin = at.cos().repeat(1, 2), at.sin().repeat(1, 2)
        q, k = (t * cos + torch.cat([-t[..., 2:], t[..., :2]], -1) * sin for t in (q, k))
        return (q * 0.5 @ k.mT).softmax(-1) @ v


class GPT2(nn.Module):
    """Weights stored input by output, as in GPT-2."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias = (
            nn.Parameter(torch.randn(WIDTH, 3 * WIDTH)),
            nn.Parameter(torch.randn(3 * WIDTH)),
        )

    def forward(self, x):
        q, k, v = (
            torch.addmm(self.bias, x.flatten(0, 1), self.weight).view(*x.shape[:2], 3, HEADS, DIM).unbind(2)
        )
        q, k, v = (t.transpose(1, 2) for t in (q, k, v))
        return F.scaled_dot_product_attention(q, k, v)


class ByName(nn.Module):
    """Weights of one's own, named as operands."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k = (nn.Parameter(torch.randn(WIDTH, WIDTH)) for _ in range(2))

    def forward(self, x):
        q, k = (
            torch.matmul(input=x, other=w).unflatten(-1, (HEADS, DIM)).transpose(1, 2)
            for w in (self.q, self.k)
        )
        return F.scaled_dot_product_attention(q, k, q)


class Grouped(nn.Module):
    def __init__(self, repeat: bool) -> None:
        super().__init__()
        self.q_proj, self.k_proj = nn.Linear(WIDTH, 4 * DIM), nn.Linear(WIDTH, 2 * DIM)
        self.repeat = repeat

    def forward(self, x):
        q, k = (m(x).view(*x.shape[:2], -1, DIM).transpose(1, 2) for m in (self.q_proj, self.k_proj))
        if self.repeat:
            k = k.repeat_interleave(2, 1)
        return F.scaled_dot_product_attention(q, k, k.detach(), enable_gqa=not self.repeat)


class Latent(nn.Module):
    """A shared rotary key beside the keys of each head, as in multi-head latent attention."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.down = nn.Linear(WIDTH, HEADS * 6), nn.Linear(WIDTH, 5)
        self.up, self.shared = nn.Linear(5, HEADS * 4), nn.Linear(WIDTH, 2)

    def forward(self, x):
        q = self.q(x).view(*x.shape[:2], HEADS, 6).transpose(1, 2)
        own = self.up(self.down(x)).view(*x.shape[:2], HEADS, 4).transpose(1, 2)
        shared = self.shared(x).unsqueeze(1).expand(-1, HEADS, -1, -1)
        k = torch.cat([own, shared], -1)
        return F.scaled_dot_product_attention(q, k, x.unsqueeze(1).expand(-1, HEADS, -1, -1))


MODELS = {
    "packed": Packed,
    "gpt2": GPT2,
    "grouped": lambda: Grouped(False),
    "grouped_repeated": lambda: Grouped(True),
    "latent": Latent,
    "by_name": ByName,
    "multihead_with_extra_keys": lambda: nn.MultiheadAttention(
        WIDTH, HEADS, add_bias_kv=True, add_zero_attn=True
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_every_logit_of_a_hot_head_shrinks_by_gamma_and_the_others_stay(name):
    torch.manual_seed(1)
    model = hot(MODELS[name](), 3.0)
    x = inputs()
    args = (x, x, x) if isinstance(model, nn.MultiheadAttention) else (x,)
    clip = QKClip(model, tau=1e6, example_input=args)
    with max_attention_logit(model) as before:
        model(*args)
    clip.tau = float(before[""].sort().values[-2:].mean())  # between the two hottest heads
    assert clip.tau > 0
    gamma = clip.step()[""]
    with max_attention_logit(model) as after:
        model(*args)
    assert bool((gamma < 1).sum() == 1)
    torch.testing.assert_close(after[""], before[""] * gamma, rtol=1e-4, atol=1e-5)
    clip.remove()


def test_values_and_other_layers_stay_bit_for_bit():
    model = hot(net(Fused, Written))
    before = parameters(model)
    clip = QKClip(model, tau=1.0, example_input=inputs())
    assert changed(before, model) == set()
    model(inputs())
    gammas = clip.step()
    assert list(gammas) == ["blocks.0.attn", "blocks.1.attn"] and clip.sites == tuple(gammas)
    names = {f"blocks.{i}.attn.{p}_proj.{kind}" for i in (0, 1) for p in "qk" for kind in ("weight", "bias")}
    assert changed(before, model) == names


def test_by_name_is_the_same_as_by_running():
    model = hot(net(Fused, Written))
    twin = copy.deepcopy(model)
    a = QKClip(model, tau=1.0, example_input=inputs())
    b = QKClip(twin, tau=1.0, query="*.q_proj", key="*.k_proj", num_heads=HEADS)
    for m, clip in ((model, a), (twin, b)):
        m(inputs())
        clip.step()
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), twin.parameters(), strict=True))


def test_by_name_finds_the_attention_in_a_module_inside():
    class Core(nn.Module):
        def forward(self, q, k, v):
            return F.scaled_dot_product_attention(q, k, v)

    class Outer(Fused):
        def __init__(self):
            super().__init__()
            self.core = Core()

        def mix(self, q, k, v, allowed, bias):
            return self.core(q, k, v)

    model = hot(Outer())
    clip = QKClip(model, tau=1.0, query="q_proj", key="k_proj", num_heads=HEADS)
    model(inputs())
    gammas = clip.step()
    assert list(gammas) == ["core"] and bool((gammas["core"] < 1).all())


def test_grouped_by_name():
    model = hot(Grouped(False))
    clip = QKClip(model, tau=1.0, query="q_proj", key="k_proj", num_heads=4)
    before = parameters(model)
    model(inputs())
    clip.step()
    assert changed(before, model) == {"q_proj.weight", "q_proj.bias"}


def test_a_norm_between_is_refused():
    class Normed(Fused):
        def mix(self, q, k, v, allowed, bias):
            return super().mix(F.rms_norm(q, (DIM,)), F.rms_norm(k, (DIM,)), v, None, None)

    class Biased(Fused):
        """As in Transformer-XL: a learned term is added behind the projection."""

        def __init__(self):
            super().__init__()
            self.u = nn.Parameter(torch.ones(DIM))

        def mix(self, q, k, v, allowed, bias):
            return super().mix(q + self.u, k, v, None, None)

    for model in (Normed(), Biased()):
        with pytest.raises(ValueError, match="is not linear in its projection"):
            QKClip(model, example_input=inputs())
        assert "forward" not in vars(model)
    model = Fused()
    qk_norm(model, example_input=inputs())
    with pytest.raises(ValueError, match="is not linear in its projection"):
        QKClip(model, example_input=inputs())
    model = nn.MultiheadAttention(WIDTH, HEADS)
    clip = QKClip(model)
    qk_norm(model, learned=False)
    with pytest.raises(ValueError, match="no effect behind the QK-norm"):
        model(inputs(), inputs(), inputs())
    assert clip.step() == {}


def test_what_it_cannot_find_is_refused():
    class Free(nn.Module):
        def forward(self, x):
            return F.scaled_dot_product_attention(x, x, x)

    class SharedRows(Fused):
        def mix(self, q, k, v, allowed, bias):
            return super().mix(q, q, v, None, None)

    with pytest.raises(ValueError, match="found no nn.MultiheadAttention"):
        QKClip(Fused())
    with pytest.raises(ValueError, match="no linear layer was found"):
        QKClip(Free(), example_input=inputs().unsqueeze(1))
    with pytest.raises(ValueError, match="come from the same rows"):
        QKClip(SharedRows(), example_input=inputs())
    with pytest.raises(ValueError, match="belong together"):
        QKClip(Fused(), query="q_proj")
    with pytest.raises(ValueError, match="no module is named like"):
        QKClip(Fused(), query="queries", key="k_proj", num_heads=2)
    with pytest.raises(ValueError, match="do not divide into 3 heads"):
        QKClip(Fused(), query="q_proj", key="k_proj", num_heads=3)
    with pytest.raises(ValueError, match="must each match one nn.Linear"):
        QKClip(net(Fused), query="*.attn", key="*.k_proj", num_heads=2)
    with pytest.raises(ValueError, match="every must be at least 1"):
        QKClip(nn.MultiheadAttention(8, 2), every=0)
    model = nn.MultiheadAttention(WIDTH, HEADS)
    nn.utils.parametrizations.weight_norm(model, "in_proj_weight")
    with pytest.raises(ValueError, match="computed from other parameters"):
        QKClip(model)
    mixed = net(lambda: nn.Sequential(Fused()), Written)
    mixed.extra = nn.MultiheadAttention(WIDTH, HEADS)
    clip = QKClip(mixed)
    mixed(inputs())
    with pytest.raises(RuntimeError, match="does not know the projections of the attention in"):
        clip.step()
    wrong = Fused()
    clip = QKClip(wrong, query="q_proj", key="k_proj", num_heads=4)
    wrong(inputs())
    with pytest.raises(RuntimeError, match="has 2 heads, its projections 4"):
        clip.step()


def test_twice_is_refused():
    model = nn.MultiheadAttention(WIDTH, HEADS)
    clip = QKClip(model)
    with pytest.raises(ValueError, match="in force on this model already"):
        QKClip(model)
    clip.remove()
    QKClip(model)


def test_it_measures_training_passes_since_the_last_step_only():
    model = hot(nn.MultiheadAttention(WIDTH, HEADS), 2.0)
    x = inputs()
    clip = QKClip(model, tau=1e-3)
    assert clip.step() == {}
    model.eval()(x, x, x)
    assert clip.step() == {}
    model.train()
    with max_attention_logit(model) as seen:
        model(x, x, x)
        model(2 * x, 2 * x, 2 * x)
    torch.testing.assert_close(clip.step()[""], 1e-3 / seen[""], rtol=1e-5, atol=0)


def test_every():
    model = nn.MultiheadAttention(WIDTH, HEADS)
    x = inputs()
    clip = QKClip(model, every=3)
    acted = []
    for _ in range(7):
        model(x, x, x)
        acted.append(bool(clip.step()))
    assert acted == [True, False, False, True, False, False, True]


def test_a_step_with_a_nan_or_an_overflow_is_as_if_it_had_not_been():
    model = hot(nn.MultiheadAttention(WIDTH, HEADS), 2.0)
    clip = QKClip(model, tau=0.5)
    before = parameters(model)
    for bad in (math.nan, math.inf, 1e30):
        x = inputs() * bad
        model(x, x, x)
        assert clip.step()[""].tolist() == [1.0, 1.0]
    assert changed(before, model) == set()
    x = inputs()
    model(x, x, x)
    assert bool((clip.step()[""] < 1).all())


def test_bfloat16_comes_out_at_tau():
    model = hot(nn.MultiheadAttention(WIDTH, HEADS), 5.0).bfloat16()
    x = inputs(torch.bfloat16)
    clip = QKClip(model, tau=1.0)
    model(x, x, x)
    clip.step()
    with max_attention_logit(model) as seen:
        model(x, x, x)
    np.testing.assert_allclose(seen[""].tolist(), 1.0, rtol=0.05)


def test_state_and_copies():
    model = hot(nn.MultiheadAttention(WIDTH, HEADS), 3.0)
    x = inputs()
    clip = QKClip(model, tau=0.5, every=2)
    model(x, x, x)
    state = pickle.loads(pickle.dumps(clip.state_dict()))
    twin, its_clip = copy.deepcopy((model, clip))
    clip.step()
    its_clip.step()
    assert torch.equal(model.in_proj_weight, twin.in_proj_weight)
    other = QKClip(nn.MultiheadAttention(WIDTH, HEADS), tau=0.5, every=2)
    other.load_state_dict(state)
    assert other.num_steps == 0 and torch.equal(other.listener.largest[""], state["largest"][""])
    other.load_state_dict(clip.state_dict())
    assert other.num_steps == 1 and not other.listener.on and other.listener.largest == {}


def test_in_a_training_loop_the_logits_stay_below_tau():
    torch.manual_seed(0)
    model = net(Fused, Written)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
    clip = QKClip(model, tau=2.0, example_input=inputs())
    for _ in range(5):
        optimizer.zero_grad()
        F.nll_loss(model(inputs()).log(), torch.tensor([0, 1])).backward()
        optimizer.step()
        model(inputs())  # measured with the weights that are clipped
        clip.step()
    with max_attention_logit(model) as seen:
        model(inputs())
    # the lower layer's clip changes what the upper one sees
    assert bool((seen["blocks.0.attn"] <= 2.001).all())


def test_projections_that_serve_two_attentions_shrink_once_by_the_larger():
    class Twice(Fused):
        def mix(self, q, k, v, allowed, bias):
            return F.scaled_dot_product_attention(q, k, v, scale=1.0) + super().mix(q, k, v, None, None)

    for options in ({"example_input": inputs()}, {"query": "q_proj", "key": "k_proj", "num_heads": HEADS}):
        model = hot(Twice(), 3.0)
        clip = QKClip(model, tau=0.2, **options)
        with max_attention_logit(model) as seen:
            model(inputs())
        gammas = clip.step()
        assert list(gammas) == list(seen) == ["", "[1]"]
        with max_attention_logit(model) as after:
            model(inputs())
        torch.testing.assert_close(after[""], torch.full((HEADS,), 0.2), rtol=1e-4, atol=0)


def test_what_was_measured_under_another_every_is_dropped():
    """A step that does not measure exchanges nothing between ranks, so that it must not clip either."""
    model = hot(nn.MultiheadAttention(WIDTH, HEADS), 3.0)
    clip = QKClip(model, tau=0.5, every=2)
    clip.load_state_dict({"num_steps": 1, "largest": {"": torch.full((HEADS,), 9.0)}})
    before = parameters(model)
    assert clip.step() == {} and changed(before, model) == set()


def test_settings_do_not_pass_for_an_example_input():
    model = nn.MultiheadAttention(WIDTH, HEADS)
    for call in (
        lambda: QKClip(model, 50.0, query="q", key="k", num_heads=2),
        lambda: soft_cap(model, 50.0),
        lambda: qk_norm(model, True),
    ):
        with pytest.raises(TypeError, match="example_input must be a tensor.*settings are given by name"):
            call()
    assert "forward" not in vars(model)
    x = (inputs(), inputs(), inputs())
    clip = QKClip(model, x)
    assert list(clip.projections) == [""]
    clip.remove()
    assert soft_cap(model, x).sites == qk_norm(model, x).sites == ("",)


def one_rank(rank: int, folder: str) -> None:
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2")
    dist.init_process_group(
        "gloo", f"file://{folder}/meet", timeout=timedelta(seconds=30), rank=rank, world_size=2
    )
    torch.manual_seed(0)
    model = nn.ModuleDict({name: nn.MultiheadAttention(WIDTH, HEADS) for name in ("a", "b")})
    clip = QKClip(model, tau=0.01)
    kept = [clip.step()]  # nobody ran
    x = inputs() * (1 + rank)
    model["a"](x, x, x)
    kept.append(clip.step())  # both ran
    if rank == 0:
        model["b"](x, x, x)
    kept.append(clip.step())  # one ran: the other must not leave it waiting
    model.eval() if rank == 0 else model.train()
    model["a"](x, x, x)
    kept.append(clip.step())  # one measured, the other ran in eval
    torch.save((kept, model.state_dict()), Path(folder, f"rank{rank}"))
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_ranks_clip_by_the_larger_of_both_whoever_ran(tmp_path):
    mp.spawn(one_rank, (str(tmp_path),), nprocs=2)
    (kept, weights), (others, its_weights) = (torch.load(tmp_path / f"rank{r}") for r in (0, 1))
    assert all(torch.equal(weights[n], its_weights[n]) for n in weights)
    for gammas, its_gammas in zip(kept, others, strict=True):
        assert gammas.keys() == its_gammas.keys() == {"a", "b"}
        assert all(torch.equal(gammas[n], its_gammas[n]) for n in gammas)
    torch.manual_seed(0)
    model = nn.ModuleDict({name: nn.MultiheadAttention(WIDTH, HEADS) for name in ("a", "b")})
    with max_attention_logit(model) as seen:
        model["a"](2 * inputs(), 2 * inputs(), 2 * inputs())
        model["b"](inputs(), inputs(), inputs())
    one = torch.ones(HEADS)
    acted = [[bool((gammas[n] < 1).any()) for n in "ab"] for gammas in kept]
    assert acted[:3] == [[False, False], [True, False], [False, True]]
    torch.testing.assert_close(kept[1], {"a": 0.01 / seen["a"], "b": one})
    torch.testing.assert_close(kept[2], {"a": one, "b": 0.01 / seen["b"]})
    # by the first clip the logits of rank 1 came down to tau, but for their rounding
    torch.testing.assert_close(kept[3], {"a": one, "b": one}, rtol=1e-4, atol=0)
