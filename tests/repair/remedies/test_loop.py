from steadygrad.repair.remedies.loop import train_mode, zero_gradients
from tests.repair.remedies.step_cases import built, case


def test_a_mistake_that_was_seen_is_mended_first():
    assert built(zero_gradients, case()) == built(train_mode, case()) == {}
    zero = built(zero_gradients, case(codes=["M101"]))["zero_grad"]
    train = built(train_mode, case(codes=["M103"]))["train mode"]
    assert zero.plan == {"zero_gradients": 1} and train.plan == {"train_mode": 1}
    assert zero.lead and train.lead
