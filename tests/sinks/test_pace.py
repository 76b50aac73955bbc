"""How often a sink is given numbers."""

from steadygrad.sinks.pace import MAX_STRIDE, SHARE, next_stride


def test_a_sink_within_its_share_has_every_step_it_asks_for():
    assert next_stride(1, 1, SHARE, 1.0) == 1
    assert next_stride(10, 10, 0.0, 1.0) == 10


def test_one_that_takes_more_has_fewer_until_it_fits():
    stride = 1
    for _ in range(20):
        stride = next_stride(stride, 1, 0.5 / stride, 1.0)  # 50 % of the time at every step
    assert stride == 32


def test_the_stride_has_an_end():
    stride = 10
    for _ in range(100):
        stride = next_stride(stride, 10, 1.0, 1.0)
    assert stride <= 2 * MAX_STRIDE


def test_it_comes_back_on_the_same_grid():
    stride = 80
    for _ in range(20):
        stride = next_stride(stride, 10, 0.0, 1.0)
        assert stride % 10 == 0
    assert stride == 10


def test_no_swinging_to_and_fro():
    """After a doubling the sink takes half as much: that must not be reason to halve again."""
    stride = next_stride(4, 1, 1.01 * SHARE, 1.0)
    assert next_stride(stride, 1, 1.01 * SHARE / 2, 1.0) == stride
