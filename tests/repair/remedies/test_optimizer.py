from steadygrad.repair.remedies.optimizer import (
    adam_eps,
    momentum,
    other_optimizer,
    second_moment,
    weight_decay,
)
from tests.repair.remedies.step_cases import built, case

ADAM = {"optimizer": "Adam", "betas": (0.9, 0.999), "eps": 1e-8}


def test_momentum_is_lowered_where_there_is_some():
    assert built(momentum, case()) == {}
    assert built(momentum, case(momentum=0.9))["momentum 0.5"].plan == {"momentum": 0.5}
    assert "betas[0]" in built(momentum, case(**ADAM))["momentum 0.5"].advice


def test_the_second_moment_is_adams():
    assert built(second_moment, case()) == {}
    assert [r.plan["beta2"] for r in built(second_moment, case(**ADAM)).values()] == [0.95, 0.95]
    assert built(second_moment, case(**{**ADAM, "betas": (0.9, 0.95)})) == {}


def test_eps_is_raised_in_half_precision():
    assert built(adam_eps, case(**ADAM)) == built(adam_eps, case(half=True)) == {}
    assert built(adam_eps, case(half=True, **ADAM))["eps 0.0001"].lead


def test_weight_decay_is_dropped_where_it_takes_much():
    assert built(weight_decay, case(weight_decay=5e-4)) == {}
    assert list(built(weight_decay, case(weight_decay=0.5))) == ["no weight decay"]
    assert list(built(weight_decay, case(weight_decay=0.05, lr=1.0))) == ["no weight decay"]


def test_another_optimizer_keeps_the_weight_decay():
    sgd, adam = built(other_optimizer, case(weight_decay=0.01)), built(other_optimizer, case(**ADAM))
    assert sgd["Adam at 0.001"].plan == {"optimizer": {"name": "Adam", "lr": 1e-3, "weight_decay": 0.01}}
    assert [r.plan["optimizer"]["name"] for r in sgd.values()] == ["Adam", "Adam"]
    assert [r.plan["optimizer"] for r in adam.values()] == [{"name": "SGD", "lr": 1e-2, "momentum": 0.9}]
    assert "torch.optim.Adam(..., lr=0.001, weight_decay=0.01) instead of SGD" in sgd["Adam at 0.001"].advice
