"""The code on the pages runs, does what the page says, and names what exists."""

import contextlib
import copy
import importlib
import io
import math
import re
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import TensorDataset

import steadygrad as sg
from steadygrad.knowledge import cause_page, causes

NAME = re.compile(r"\b(?:sg|steadygrad)((?:\.[A-Za-z_]\w*)+)")


def code(name: str) -> str:
    return "\n".join(re.findall(r"^```py\n(.*?)^```", cause_page(name), re.M | re.S))


def stage() -> dict:
    """What is the user's: a classifier with gradients, and the other things that pages speak of."""
    torch.manual_seed(0)
    x, y = torch.randn(32, 8), torch.randint(3, (32,))
    model = nn.Sequential(nn.Linear(8, 64), nn.Tanh(), nn.Linear(64, 3))
    loss_fn = nn.CrossEntropyLoss()
    loss_fn(model(x), y).backward()
    target = 1000.0 + 100.0 * torch.randn(32, 1)
    users = {
        "x": x, "y": y, "model": model, "loss_fn": loss_fn,
        "optimizer": torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.99),
        "resnet": sg.nn.models.residual_mlp(8, 3, width=16, depth=4),
        "rnn": nn.RNN(8, 16), "sequence": torch.randn(120, 4, 8),
        "transformer": sg.nn.models.transformer_encoder(
            num_classes=3, depth=2, d_model=16, num_heads=2, vocab_size=20
        ),
        "tokens": torch.randint(20, (4, 10)),
        "linear": nn.Linear(64, 1), "regressor": nn.Linear(8, 1), "target": target,
        "pair": torch.randn(32, 2, requires_grad=True), "goal": torch.randn(32, 1),
        "logits": torch.randn(40, 5), "labels": torch.randint(5, (40,)), "mask": torch.ones(40),
        "num_accumulated": 4,
        "target_net": copy.deepcopy(model), "reward": torch.randn(32, 1), "action": torch.randint(3, (32, 1)),
        "dataset": TensorDataset(x, y), "difficulty": torch.rand(32),
    }  # fmt: skip
    return users | {"sg": sg, "torch": torch, "nn": nn, "F": F, "partial": partial}


def played(name: str, **instead) -> dict:
    """The stage after the code of a page, and what it printed."""
    names = stage() | instead
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(code(name), name, "exec"), names)
    return names | {"printed": printed.getvalue()}


@pytest.mark.filterwarnings("ignore:Anomaly Detection has been enabled")
@pytest.mark.parametrize("name", causes())
def test_code_runs(name):
    assert code(name)
    played(name)


@pytest.mark.parametrize("name", causes())
def test_code_is_in_fences_that_are_run(name):
    """``py``: the documents' own test runs what is fenced as ``python`` by itself, without the user's names."""
    fences = re.findall(r"^```(.*)$", cause_page(name), re.M)
    assert fences == ["py", ""] * (len(fences) // 2)


@pytest.mark.parametrize("name", causes())
def test_names_of_ours_exist(name):
    for path in NAME.findall(cause_page(name)):
        here = sg
        for part in path.split(".")[1:]:
            here = getattr(here, part)


def test_calls_in_backquotes_compile():
    for name in causes():
        page = re.sub(r"```.*?```", "", cause_page(name), flags=re.S)
        for call in re.findall(r"`([^`]*\([^`]*\))`", page):
            compile(call.lstrip("."), name, "eval")


def test_calls_of_ours_in_backquotes_run():
    for name in causes():
        page = re.sub(r"```.*?```", "", cause_page(name), flags=re.S)
        for call in re.findall(r"`(sg\.[^`]*\([^`]*\))`", page):
            eval(call, stage())


def test_most_pages_name_a_method_of_ours():
    assert {name for name in causes() if not NAME.search(cause_page(name))} <= {
        *("loop_mistake", "loss_reduction", "low_precision", "saturation", "unsafe_op", "unscaled_targets"),
        *("bootstrapped_target", "unbounded_objective"),
    }  # there the cure is torch's


def test_rate_falls_to_a_tenth_for_good():
    after = played("lr_too_large")
    assert sg.schedule.effective_lr(after["optimizer"]) == pytest.approx([0.01])
    for _ in range(3):
        after["optimizer"].step()
    assert sg.schedule.effective_lr(after["optimizer"]) == pytest.approx([0.01])
    norms = [p.grad.norm() for p in after["model"].parameters()]
    assert torch.stack(norms).norm() <= 1.0001


def test_update_ratio_is_that_of_the_step():
    names = stage()
    names["optimizer"] = torch.optim.SGD(names["model"].parameters(), lr=0.1)
    before = [p.detach().clone() for p in names["model"].parameters() if p.ndim > 1]
    printed = played("lr_too_small", **names)["printed"].splitlines()
    names["optimizer"].step()
    moved = [p.detach() for p in names["model"].parameters() if p.ndim > 1]
    true = [((a - b).norm() / b.norm()).item() for a, b in zip(moved, before, strict=True)]
    assert list(map(float, printed)) == pytest.approx(true, rel=1e-3)


def test_momentum_is_forgotten():
    names = stage()
    names["optimizer"].step()
    assert names["optimizer"].state
    after = played("momentum_too_large", **names)
    assert not any(after["optimizer"].state.values())
    assert {group["momentum"] for group in after["optimizer"].param_groups} == {0.9}


def test_bad_batch_is_found_and_not_stepped():
    names = stage()
    with pytest.raises(AssertionError, match="3, 5"):
        bad = names["x"].clone()
        bad[3, 5] = math.nan
        played("bad_batch", x=bad)
    names["model"][0].weight.grad[0, 0] = math.inf
    before = copy.deepcopy(names["model"].state_dict())
    played("bad_batch", **names)
    assert all(torch.equal(value, before[key]) for key, value in names["model"].state_dict().items())


def test_safe_root_has_a_finite_gradient_and_is_the_root():
    z = torch.tensor([[-1.0, 0.0, 4.0]], requires_grad=True)
    names = stage() | {"z": z}
    (line,) = (line for line in code("unsafe_op").splitlines() if line.startswith("root = "))
    exec(line, names)
    assert names["root"].tolist() == [[0.0, 0.0, 2.0]]
    assert torch.autograd.grad(names["root"].sum(), z)[0].tolist() == [[0.0, 0.0, 0.25]]


def test_what_the_page_of_unsafe_operations_warns_of_is_so():
    z = torch.tensor([0.0, 4.0], requires_grad=True)
    for unsafe in (torch.where(z > 0, z.sqrt(), 0.0), torch.nan_to_num(torch.log(z))):
        assert torch.autograd.grad(unsafe.sum(), z)[0].isnan().tolist() == [True, False]
    ignored = torch.full((3,), -100)
    assert F.cross_entropy(torch.randn(3, 4), ignored).isnan()
    assert torch.softmax(torch.full((2,), -math.inf), 0).isnan().all()


def test_targets_are_turned_back():
    names = stage()
    after = played("unscaled_targets", **names)
    scaled = (names["target"] - after["mean"]) / after["std"]
    assert scaled.mean().abs() < 1e-5 and scaled.std().item() == pytest.approx(1.0)
    assert after["prediction"].mean().item() == pytest.approx(1000.0, rel=0.2)


def test_inputs_are_standardised():
    after = played("unscaled_inputs", x=1e4 + 100 * torch.randn(32, 8))
    assert after["x"].mean(0).abs().max() < 1e-2 and (after["x"].std(0) - 1).abs().max() < 1e-3


def test_sum_is_divided_into_the_mean():
    after = played("loss_reduction")
    wanted = F.cross_entropy(after["logits"], after["labels"])
    assert after["loss"].item() == pytest.approx(wanted.item())


def test_last_layer_at_zero_gives_the_trivial_loss():
    after = played("output_scale")
    z_loss = sg.nn.z_loss(after["logits"], coefficient=1e-4)
    assert (after["loss"] - z_loss).item() == pytest.approx(math.log(3), rel=0.01)


def test_dead_units_live_again():
    names = stage()
    names["model"] = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 3))
    nn.init.constant_(names["model"][0].bias, -50.0)
    hidden = names["model"][:2]
    assert not hidden(names["x"]).any()
    names["loss_fn"](names["model"](names["x"]), names["y"]).backward()
    played("dead_units", **names)
    assert (hidden(names["x"]) > 0).any(0).float().mean() > 0.9


def test_small_gain_is_cured():
    x, model = torch.randn(64, 8), sg.nn.models.mlp(8, 3, width=32, depth=20)
    before = sg.init.audit(model, x)
    after = played("init_gain_small", model=model, x=x)
    assert before.gradient_growth < 1e-5
    assert 0.1 < sg.init.audit(after["model"], x).gradient_growth < 10


def test_large_gain_is_cured():
    x, model = torch.randn(64, 8), sg.nn.models.mlp(8, 3, width=32, depth=20)
    for p in model.parameters():
        if p.ndim > 1:
            nn.init.normal_(p)
    assert sg.init.audit(model, x).growth > 1e6
    assert sg.init.audit(played("init_gain_large", model=model, x=x)["model"], x).growth < 10


def test_skipinit_begins_as_the_identity():
    after = played("residual_accumulation")
    h = torch.randn(5, 64)
    assert torch.equal(after["block"](h), h)


def test_attention_is_looked_at_and_normalised():
    after = played("attention_logit_growth")
    assert "tensor" in after["printed"] and len(after["largest"]) == 2
    with sg.nn.max_attention_logit(after["transformer"]) as now:
        after["transformer"](after["tokens"])
    assert len(now) == 2 and all(value.isfinite().all() for value in now.values())


def test_target_net_follows_slowly_and_has_no_gradient():
    names = stage()
    with torch.no_grad():
        for p in names["model"].parameters():
            p.add_(1.0)
    apart = [
        p - q for p, q in zip(names["model"].parameters(), names["target_net"].parameters(), strict=True)
    ]
    after = played("bootstrapped_target", **names)
    closer = [
        p - q for p, q in zip(after["model"].parameters(), after["target_net"].parameters(), strict=True)
    ]
    for a, b in zip(apart, closer, strict=True):
        torch.testing.assert_close(b, 0.995 * a)
    assert not after["goal"].requires_grad and after["loss"].requires_grad


def test_loop_that_is_right_moves_every_parameter():
    names = stage()
    before = [p.detach().clone() for p in names["model"].parameters()]
    played("loop_mistake", **names)
    assert all(not torch.equal(p, b) for p, b in zip(names["model"].parameters(), before, strict=True))
    other = torch.optim.SGD(names["model"][0].parameters(), lr=0.1)
    with pytest.raises(AssertionError):
        played("loop_mistake", **names | {"optimizer": other})


def test_rooms_that_pages_may_name_are_public():
    for room in ("clip", "init", "nn", "optim", "recipes", "schedule"):
        assert importlib.import_module(f"steadygrad.{room}") is getattr(sg, room)
