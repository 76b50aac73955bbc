import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode, _len_torch_function_stack

from steadygrad.repair.effects.effect import NotApplicable
from steadygrad.repair.effects.safe import SafeOps

EVERYWHERE = {"everywhere": True}
FILE = Path(__file__).name


@pytest.fixture
def safe():
    """Puts ``safe_ops`` in force until the test ends."""
    effects = []

    def put(value: object) -> SafeOps:
        effects.append(SafeOps(value))
        effects[-1].install()
        return effects[-1]

    yield put
    for effect in effects:
        effect.remove()
    assert _len_torch_function_stack() == 0


def line_of(text: str) -> int:
    """The one line of this file that ends so."""
    lines = Path(__file__).read_text().splitlines()
    return next(i for i, line in enumerate(lines, 1) if line.rstrip().endswith(text))


def roots(x: Tensor) -> tuple[Tensor, Tensor]:
    first = torch.sqrt(x)  # first root
    second = torch.sqrt(x)  # second root
    return first, second


def test_named_lines_alone(safe) -> None:
    x = torch.zeros(1, requires_grad=True)
    safe({"sites": [{"file": f"some/folder/{FILE}", "line": line_of("# second root"), "op": "sqrt"}]})
    first, second = roots(x)
    assert torch.autograd.grad(first, x)[0].isinf()
    assert torch.autograd.grad(second, x)[0].item() == 0.0


def test_everywhere_and_gone_when_removed(safe) -> None:
    x = torch.zeros(1)
    effect = safe(EVERYWHERE)
    assert x.log().isfinite() and F.softmax(x - math.inf, 0).item() == 0.0
    effect.remove()
    effect.remove()
    assert x.log().isinf()


def test_a_log_of_probabilities_that_rounded_to_zero_is_taken_of_the_scores(safe) -> None:
    safe(EVERYWHERE)
    z = torch.tensor([[0.0, 200.0], [300.0, 0.0]], requires_grad=True)
    target = torch.tensor([0, 1])
    picked = torch.softmax(z, 1).gather(1, target[:, None]).squeeze(1)
    loss = -picked.log().mean()
    plain = F.cross_entropy(z, target)
    assert loss.item() == plain.item() == 250.0
    assert torch.equal(torch.autograd.grad(loss, z)[0], torch.autograd.grad(plain, z)[0])


@pytest.mark.parametrize("target", [0.0, 1.0])
@pytest.mark.parametrize("score", [-150.0, 150.0])
def test_a_cross_entropy_written_by_hand(safe, score: float, target: float) -> None:
    safe(EVERYWHERE)
    z, t = torch.tensor([score], requires_grad=True), torch.tensor([target])
    p = z.sigmoid()
    loss = (-t * torch.log(p) - (1 - t) * torch.log(1 - p)).sum()
    plain = F.binary_cross_entropy_with_logits(z, t)
    assert loss.item() == pytest.approx(plain.item())
    assert torch.autograd.grad(loss, z)[0].item() == pytest.approx(torch.autograd.grad(plain, z)[0].item())


def test_a_link_makes_scores_probabilities(safe) -> None:
    z = torch.tensor([-3.0, 0.5, 4.0], requires_grad=True)
    t = torch.tensor([0.0, 1.0, 1.0])

    def entropy() -> Tensor:
        return (-t * torch.log(z) - (1 - t) * torch.log(1 - z + 1e-8)).sum()  # entropy of scores

    assert entropy().isnan()
    safe({"sites": [{"file": FILE, "line": line_of("# entropy of scores"), "op": "log", "as": "logsigmoid"}]})
    assert entropy().item() == pytest.approx(F.binary_cross_entropy_with_logits(z, t, reduction="sum").item())


def test_a_link_over_classes(safe) -> None:
    z, labels = torch.randn(4, 3), torch.tensor([0, 2, 1, 1])

    def entropy() -> Tensor:
        return -(F.one_hot(labels, 3) * torch.log(z + 1e-8)).sum(1).mean()  # entropy of classes

    safe(
        {"sites": [{"file": FILE, "line": line_of("# entropy of classes"), "op": "log", "as": "log_softmax"}]}
    )
    assert entropy().item() == pytest.approx(F.cross_entropy(z, labels).item())


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int = 8) -> list[float]:
    """Losses of a training that takes logs, roots, quotients, norms and softmaxes, and nothing unsafe."""
    torch.manual_seed(1)
    losses = []
    for _ in range(steps):
        x, y = torch.randn(8, 5), torch.randint(3, (8,))
        optimizer.zero_grad()
        z = model(x)
        p = F.softmax(z, 1).clamp(min=1e-6)
        loss = -torch.log(p.gather(1, y[:, None])).mean() + (z.norm(dim=1) / (1 + z.std(1))).mean()
        loss = loss + torch.sqrt((z**2).mean() + 1e-8) + F.cross_entropy(z, y) + z.exp().mean() / 10
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
    return losses


def fresh() -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Dropout(0.1), nn.Linear(8, 3))
    return model, torch.optim.Adam(model.parameters(), lr=0.1)


def test_no_bit_is_changed_where_nothing_is_unsafe(safe) -> None:
    plain = train(*fresh())
    safe(EVERYWHERE)
    assert train(*fresh()) == plain


def test_double_backward_of_a_gradient_penalty(safe) -> None:
    safe(EVERYWHERE)
    torch.manual_seed(0)
    critic = nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 1))
    with torch.no_grad():
        critic[0].bias.fill_(-9.0)  # dead: the gradient with respect to the input is 0
    x = torch.randn(5, 2, requires_grad=True)
    (grad,) = torch.autograd.grad(critic(x).sum(), x, create_graph=True)
    (((grad**2).sum(1).sqrt() - 1) ** 2).mean().backward()
    assert all(p.grad is None or bool(p.grad.isfinite().all()) for p in critic.parameters())


class _Users(TorchFunctionMode):
    """A mode of the user's own."""

    def __torch_function__(self, func, types, args=(), kwargs=None):  # noqa: ANN001
        return func(*args, **(kwargs or {}))


def test_modes_of_the_users(safe) -> None:
    effect = safe(EVERYWHERE)
    zero = torch.zeros(1)
    with _Users(), torch.device("cpu"):
        assert zero.log().isfinite()
        assert F.log_softmax(torch.full((2,), -math.inf), 0).isfinite().all()
    assert zero.log().isfinite()
    with _Users() as users:
        effect.remove()  # from beneath
        assert zero.log().isinf() and _len_torch_function_stack() == 1
    assert users is not None


def test_attention_layers_with_a_row_of_padding(safe) -> None:
    safe(EVERYWHERE)
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True)
    x, padding = torch.randn(2, 3, 4), torch.tensor([[True, True, True], [False, False, True]])
    for training in (True, False):
        layer.train(training)
        out, weights = layer.self_attn(x, x, x, key_padding_mask=padding)
        assert bool(out.isfinite().all()) and bool(weights.isfinite().all())
        assert bool(layer(x, src_key_padding_mask=padding).isfinite().all())


def test_vmap_and_checkpointing_go_on(safe) -> None:
    safe(EVERYWHERE)
    x = torch.rand(3, 2) + 1
    assert torch.equal(torch.func.vmap(torch.log)(x), x.log())
    assert torch.func.grad(lambda v: v.sqrt().sum())(x).shape == x.shape
    w = torch.zeros(1, requires_grad=True)
    torch.utils.checkpoint.checkpoint(torch.sqrt, w, use_reentrant=False).sum().backward()
    assert w.grad.item() == 0.0


def test_optimizers_are_left_to_themselves(safe) -> None:
    """0 / 0 inside of an optimizer is not ours to hide."""

    def norms(everywhere: bool) -> Tensor:
        w = torch.nn.Parameter(torch.zeros(2))
        optimizer = torch.optim.Adam([w], lr=1.0, eps=0.0)
        w.grad = torch.zeros(2)
        if everywhere:
            safe(EVERYWHERE)
        optimizer.step()
        return w.detach()

    assert bool(norms(False).isnan().all()) and bool(norms(True).isnan().all())


def test_under_autocast(safe) -> None:
    safe(EVERYWHERE)
    layer = nn.Linear(2, 2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = layer(torch.zeros(1, 2)) * 0
        assert out.dtype == torch.bfloat16
        assert bool(out.sqrt().isfinite().all()) and bool(out.softmax(1).log().isfinite().all())


@pytest.mark.parametrize(
    "value", [1.0, {}, {"everywhere": False}, {"sites": [{"file": "a.py", "line": 1, "as": "tanh"}]}]
)
def test_values_that_mean_nothing(value: object) -> None:
    with pytest.raises(NotApplicable):
        SafeOps(value)
