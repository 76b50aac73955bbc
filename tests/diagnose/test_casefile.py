"""What a case file keeps of a run, step by step."""

import math

import numpy as np
import pytest
import torch

from steadygrad.diagnose.casefile import KEPT, CaseFile, optimizer_facts
from steadygrad.records import ActivationStats, Finding, ParamInfo, Portrait, StepStats, TensorStats
from steadygrad.rules.history import History

PARAM = ParamInfo(0, "w", (2, 2), "float32", 0, "", "Linear")


def stats(step, loss=1.0, norm=1.0, optimizer=0, **fields):
    return StepStats(
        step, optimizer, loss, norm, norm, np.array([norm], np.float32), 0.1, params=[PARAM], **fields
    )


def alarm(step, code="G101"):
    return Finding(code, "rule", step, "w", "grew", severity="alarm")


class Run:
    """Steps into a case file, with a history for each optimizer as a session has it."""

    def __init__(self):
        self.file, self.histories = CaseFile(), {}

    def step(self, record, *findings, **optimizer):
        history = self.histories.setdefault(record.optimizer, History())
        history.ingest(record, bool(findings))
        self.file.step(record, findings, history, {"optimizer": "SGD", **optimizer})


def test_nothing_is_known_before_the_first_step():
    assert CaseFile().facts() is None and CaseFile().verdict().kind == "unknown"


def test_facts_are_those_of_the_first_alarm_and_the_verdict_that_of_the_end():
    run = Run()
    for i in range(60):
        run.step(stats(i, loss=5.0 if i == 30 else 1.0 - i / 100), *([alarm(i)] if i in (30, 40) else []))
    facts = run.file.facts()
    assert facts.loss_at == 5.0 and facts.healthy_steps <= 31 and facts.one_step_only is True
    assert facts.verdict.end < 0.6 and facts.steps == 60 and facts.optimizer == "SGD"


@pytest.mark.parametrize("after, expected", [((math.nan,), False), ((1.0,), True), ((), None)])
def test_whether_the_step_after_was_normal(after, expected):
    run = Run()
    for i in range(20):
        run.step(stats(i))
    run.step(stats(20, norm=1e6), alarm(20))
    for i, norm in enumerate(after):
        run.step(stats(21 + i, norm=norm))
    assert run.file.facts().one_step_only is expected


def test_portraits_are_thinned_and_the_first_and_the_newest_stay():
    run = Run()
    for i in range(500):
        run.step(stats(i, portrait=Portrait(nodes=i + 1)))
        assert len(run.file._portraits[0]) <= KEPT
    facts = run.file.facts()
    assert (facts.portrait.nodes, facts.at.nodes) == (1, 500)
    kept = [p.nodes for p in run.file._portraits[0]]
    assert kept == sorted(set(kept))


def test_the_portrait_of_the_incident_is_kept_apart():
    run = Run()
    for i in range(50):
        run.step(stats(i, portrait=Portrait(nodes=i + 1)), *([alarm(i)] if i == 20 else []))
    assert run.file.facts().at.nodes == 21
    run = Run()
    run.step(stats(0, portrait=Portrait()))  # without a graph it is no portrait
    assert run.file.facts().portrait is None


def test_poison_stays_until_a_step_is_finite_again():
    for norms, expected in (((math.nan, math.nan), "nonfinite"), ((math.nan, 1.0), "flat")):
        run = Run()
        for i in range(50):
            run.step(stats(i))
        run.step(stats(50, norm=math.nan), alarm(50, "P100"))
        for i, norm in enumerate(norms):
            run.step(stats(51 + i, norm=norm))
        assert run.file.facts().verdict.kind == expected


def test_the_run_is_judged_by_the_optimizer_that_steps_first():
    run = Run()
    for i in range(60):
        run.step(stats(i, loss=2.0 - i / 60, optimizer=1, portrait=Portrait(nodes=7)))
    facts = run.file.facts()
    assert (facts.optimizers, facts.steps, facts.portrait.nodes) == (1, 60, 7)
    assert facts.verdict.kind == "ok" and facts.verdict.end < 1.2


def test_losses_of_accumulated_passes_are_means():
    run = Run()
    for i in range(40):
        run.step(stats(i, loss=8.0, num_backwards=4))
    assert run.file.facts().verdict.end == 2.0


def test_ratios_and_the_scale_of_the_inputs():
    run = Run()
    for i in range(100):
        ratio = 0.01 if i < 20 else 0.5
        seen = (ActivationStats("", "Linear", 1.0, input_rms=math.nan if i < 3 else 40.0 + i),)
        run.step(
            stats(
                i,
                tensors=(TensorStats(0, 1.0, 1.0, ratio), TensorStats(0, 1.0, 1.0, math.nan)),
                activations=seen,
            )
        )
    facts = run.file.facts()
    assert (facts.update_ratio, facts.update_ratio_last, facts.input_rms) == (0.01, 0.5, 43.0)


def test_a_run_without_a_loss():
    run = Run()
    for i in range(40):
        run.step(stats(i, loss=None))
    facts = run.file.facts()
    assert facts.verdict.kind == "unknown" and math.isnan(facts.loss_noise) and not facts.loss_seen


def test_what_optimizers_say_of_themselves():
    w = [torch.zeros(2, requires_grad=True)]
    adam = optimizer_facts(torch.optim.AdamW(w, betas=[0.8, 0.99], eps=1e-6, weight_decay=0.1), ["Linear"])
    assert adam == {
        "module_types": ("Linear",), "optimizer": "AdamW", "momentum": 0.0, "weight_decay": 0.1,
        "betas": (0.8, 0.99), "eps": 1e-6,
    }  # fmt: skip
    sgd = optimizer_facts(torch.optim.SGD(w, lr=0.1, momentum=0.9), [])
    assert sgd["momentum"] == 0.9 and "betas" not in sgd
    strange = torch.optim.SGD(w, lr=0.1)
    strange.param_groups[0]["betas"] = (0.9, 0.99, 0.999)
    assert optimizer_facts(strange, [])["betas"] == (0.9, 0.99)
    strange.param_groups[0]["betas"] = (0.9,)
    assert "betas" not in optimizer_facts(strange, [])
    assert optimizer_facts(None, ["RNN"]) == {"module_types": ("RNN",)}


def test_a_portrait_has_the_loss_of_its_step_per_backward():
    run = Run()
    run.step(stats(0, loss=6.0, num_backwards=2, portrait=Portrait(nodes=1)))
    run.step(stats(1, loss=None, portrait=Portrait(nodes=2)))
    facts = run.file.facts()
    assert facts.portrait.loss == 3.0 and math.isnan(facts.last.loss)
