"""P(fail) from the first steps: which signs count, and when."""

import math

import pytest

from steadygrad.diagnose.facts import Facts
from steadygrad.diagnose.risk import EARLY, START, WEIGHTS, risk, signs
from steadygrad.records import Finding, LayerStats, Portrait

LAYER = LayerStats("w", "Addmm", 1, 1.0, 1.0, 1.0, 1.0, "float32")


def found(code, step=0, **evidence):
    return Finding(code, "rule", step, "w", "", evidence, "info")


def test_nothing_found_is_the_base_rate():
    assert risk([], Facts()) == pytest.approx(1 / (1 + math.exp(-START)))
    assert signs([], Facts()) == {}


@pytest.mark.parametrize("code", [c for c in WEIGHTS if c[0] in "FD"])
def test_the_net_as_built_counts_and_what_it_becomes_does_not(code):
    assert risk([found(code, 0)], Facts()) > 0.5
    assert signs([found(code, EARLY)], Facts()) == {}
    assert risk([found(code, 5)], Facts()) < 0.5


def test_further_signs_count_a_quarter():
    one = risk([found("F101")], Facts())
    two = risk([found("F101"), found("D101")], Facts())
    odds = math.log(two / (1 - two)) - math.log(one / (1 - one))
    assert odds == pytest.approx(0.25 * WEIGHTS["D101"])


def test_the_rate_alone_decides_only_in_a_net_without_normalisation():
    plain = Portrait(layers=(LAYER,), nodes=9)
    normed = Portrait(layers=(LAYER,), nodes=9, normalised=3)
    far = {"lr_peak": 100.0, "lr_limit": 1.0}
    assert risk([], Facts(portrait=plain, **far)) > 0.5
    assert risk([], Facts(portrait=normed, **far)) < 0.5
    assert risk([], Facts(portrait=plain, lr_peak=2.0, lr_limit=1.0)) == risk([], Facts())
    assert risk([], Facts(portrait=plain, lr_peak=20.0, lr_limit=1.0, betas=(0.9, 0.999))) < 0.5


def test_a_rising_loss_needs_a_rate_that_explains_it():
    assert signs([], Facts(rise=9.0, lr_peak=0.5, lr_limit=1.0)) == {}  # noise of one batch
    assert "rise" in signs([], Facts(rise=9.0, lr_peak=1.5, lr_limit=1.0))
    assert risk([], Facts(rise=9.0)) < 0.5


def test_a_high_start_that_comes_down_at_once_is_no_failure():
    assert risk([found("F106")], Facts(rise=1.0)) > 0.5 > risk([found("F106")], Facts(rise=0.2))
    assert risk([found("F106"), found("F101")], Facts(rise=0.2)) > 0.5


def test_post_norm_is_cold_only_under_an_adaptive_optimizer_beyond_its_limit():
    deep = Portrait(layers=(LAYER,), nodes=9, normalised=8, post_normalised=8)
    hot = {"portrait": deep, "lr": 2.0, "lr_limit": 1.0, "lr_peak": 2.0}
    assert "post norm" in signs([], Facts(betas=(0.9, 0.999), **hot))
    assert "post norm" not in signs([], Facts(**hot))
    warm = hot | {"lr": 0.1}
    assert "post norm" not in signs([], Facts(betas=(0.9, 0.999), **warm))
