"""Who speaks for which cause, and how loudly. First weights, set by hand: not calibrated yet.

A weight is a difference in log-odds: +1 makes a cause 2.7 times as likely against the others, negative speaks
against it.
"""

from __future__ import annotations

import math

from steadygrad.diagnose import end_votes, graph_votes
from steadygrad.diagnose.facts import RECURRENT, Facts
from steadygrad.diagnose.vote import FactVote, FactVoter
from steadygrad.records import Finding

FINDING_VOTES: dict[str, dict[str, float]] = {
    "L100": {"unsafe_op": 1.0, "bad_batch": 0.7},
    "G100": {
        "unsafe_op": 1.0,
        "bad_batch": 0.5,
        "lr_too_large": 0.2,
        "recurrent_growth": 0.2,
        "unscaled_inputs": 0.2,
        "unscaled_targets": 0.2,
        "init_gain_large": 0.2,
        "low_precision": 0.2,
    },
    "A100": {"unsafe_op": 1.0, "low_precision": 0.5},
    "G101": {"lr_too_large": 0.7, "recurrent_growth": 0.7, "init_gain_large": 0.3, "unsafe_op": -0.7},
    "G102": {
        "lr_too_large": 1.0,
        "recurrent_growth": 1.0,
        "momentum_too_large": 0.5,
        "bad_batch": -1.0,
        "unsafe_op": -1.5,
    },
    "G103": {"bad_batch": 1.5, "recurrent_growth": 0.5, "unsafe_op": 0.3},
    "L101": {"lr_too_large": 1.0, "init_gain_large": 0.3, "recurrent_growth": 0.5, "unsafe_op": -1.0},
    "L102": {"bad_batch": 0.5},
    "L103": {"stale_second_moment": 0.7, "lr_too_large": 0.5, "data_shift": 0.7, "unsafe_op": -0.5},
    "L104": {"lr_too_large": 1.0, "bootstrapped_target": 1.0, "unscaled_targets": 0.3},
    "L105": {"lr_too_large": 1.2, "momentum_too_large": 0.5, "bootstrapped_target": 0.5, "bad_batch": -1.0},
    "L106": {"vanishing": 0.7, "saturation": 0.4, "dead_units": 0.4, "lr_too_small": 0.7},
    "L107": {"lr_too_large": 0.7, "momentum_too_large": 0.7},
    "G201": {"init_gain_large": 1.5, "recurrent_growth": 0.3},
    "G202": {"vanishing": 1.5, "init_gain_small": 0.8},
    "O101": {"lr_too_large": 1.2},
    "O102": {"stale_second_moment": 0.5},
    "O103": {"bad_batch": 0.5, "lr_too_large": 0.5},
    "A101": {"dead_units": 2.0, "lr_too_large": 0.3},
    "A102": {"saturation": 1.5, "unscaled_inputs": 0.3},
    "P101": {"low_precision": 2.5, "unsafe_op": 0.5},
    "D101": {"unscaled_inputs": 2.5},
    "M101": {"loop_mistake": 6.0},
    "M102": {"loop_mistake": 6.0},
    "M103": {"loop_mistake": 4.0},
    "M104": {"loop_mistake": 6.0},
    "M106": {"loop_mistake": 4.0},
    "M107": {"loop_mistake": 6.0},
    "M108": {"loop_mistake": 6.0},
    "M109": {"loop_mistake": 2.0, "saturation": 1.0},
    "M110": {"loss_reduction": 2.0},
    "M111": {"lr_too_small": 3.0},
    "M112": {"loop_mistake": 6.0},
}


LR_JUMPED = 5.0
GROWTH = {"G100", "G101", "G102", "G103"}
QUERY_KEY = ("in_proj", "q_proj", "k_proj", "c_attn", "query", "key", ".q.", ".k.", "qkv")


def growth_in_recurrence(facts: Facts, codes: set[str], findings: list[Finding]) -> list[FactVote]:
    repeats = facts.portrait is not None and bool(facts.portrait.recurrences)
    if not facts.recurrent:
        return [] if repeats else [FactVote("recurrent_growth", -9.0, "the model has no recurrent module")]
    grew = codes & (GROWTH | {"L101", "G201"})
    if not grew:
        return []
    hidden = [p.name for p in facts.params if p.module_type in RECURRENT and "weight_hh" in p.name]
    gated = all(t.startswith(("LSTM", "GRU")) for t in facts.recurrent)
    text = f"the gradient passes {facts.recurrent[0]} once for every time step"
    votes = [FactVote("recurrent_growth", 1.0 if gated else 2.5, text, hidden[0] if hidden else "")]
    inside = {p.name for p in facts.params if p.module_type in RECURRENT}
    grown = [f.where for f in findings if f.code in grew and f.where in inside]
    if not grown and facts.largest_growth in inside and facts.growth > 30:
        grown = [facts.largest_growth]
    if grown:
        because = f"most of the gradient is that of {grown[0]}"
        votes.append(FactVote("recurrent_growth", 0.7, because, grown[0]))
    if facts.user_clipped:
        votes.append(FactVote("recurrent_growth", -0.5, "the gradient is clipped already"))
    return votes


def out_of_range(facts: Facts, codes: set[str], findings: list[Finding]) -> list[FactVote]:
    """The loss or the gradient had grown, and then left what float32 holds: nothing is wrong with the operation."""
    if not codes & {"L100", "G100", "P100"} or not (facts.had_grown or facts.blowing_up):
        return []
    loss, norm = _largest(facts.loss_last, facts.loss_at), _largest(facts.norm_last, facts.norm_at)
    text = f"the loss had come to {loss:.3g} and the gradient norm to {norm:.3g} while they were finite"
    return [
        FactVote("unsafe_op", -2.0, text),
        FactVote("bad_batch", -0.5, text),
        FactVote("lr_too_large", 1.0, text),
        FactVote("init_gain_large", 0.5 if facts.healthy_steps < 10 else 0.0, text),
    ]


def one_jump(facts: Facts, codes: set[str], findings: list[Finding]) -> list[FactVote]:
    """A finite gradient a hundred times the usual, from one step to the next: that batch is another."""
    if facts.lr_jump > LR_JUMPED or not codes & {"L100", "L101", "L102", "G103"}:
        return []
    for f in findings:
        ratio = f.evidence.get("grad_norm", 0.0) / (f.evidence.get("median") or math.inf)
        if f.code == "G101" and f.evidence.get("steps", 9) <= 1 and ratio > 100:
            text = f"the gradient norm jumped x{ratio:.3g} from one step to the next"
            return [
                FactVote("bad_batch", 2.0, text),
                FactVote("unsafe_op", -1.5, text),
                FactVote("lr_too_large", -2.0, text),
            ]
    return []


def sudden(facts: Facts, codes: set[str], findings: list[Finding]) -> list[FactVote]:
    """Normal up to the step before, then not finite: the batch or an operation, not the learning rate."""
    if not codes & {"L100", "G100", "P100"} or facts.lr_jump > LR_JUMPED or facts.blowing_up:
        return []
    votes = []
    if facts.was_normal:
        text = f"loss ({facts.loss_last:.3g}) and gradient norm ({facts.norm_last:.3g}) were normal before"
        votes += [
            FactVote("unsafe_op", 1.5, text),
            FactVote("bad_batch", 1.2, text),
            FactVote("lr_too_large", -2.0, text),
        ]
    if "G100" in codes and facts.loss_seen and math.isfinite(facts.loss_at) and not facts.had_grown:
        text = f"the gradient is not finite though the loss is ({facts.loss_at:.3g})"
        votes += [FactVote("unsafe_op", 1.5, text), FactVote("bad_batch", -0.5, text)]
    if "L100" in codes and math.isfinite(facts.norm_at) and not math.isfinite(facts.loss_at):
        votes.append(FactVote("unsafe_op", 1.5, "the loss is not finite though the gradient is"))
    elif "L100" in codes and facts.healthy_steps == 0 and not math.isfinite(facts.loss_at):
        votes.append(FactVote("unsafe_op", 1.0, "the loss has not been finite once"))
    return votes


def afterwards(facts: Facts, codes: set[str], findings: list[Finding]) -> list[FactVote]:
    """A bad batch passes by; a bad state stays."""
    if facts.one_step_only is None or not codes & {"L100", "G100", "G103"}:
        return []
    if facts.one_step_only:
        return [FactVote("bad_batch", 1.5, "the next step was normal again")]
    return [FactVote("bad_batch", -0.5, "the steps after it were not normal either")]


def attention(facts: Facts, codes: set[str], findings: list[Finding]) -> list[FactVote]:
    if not facts.attention:
        return []
    for f in findings:
        if f.code in GROWTH and any(part in f".{f.where}." for part in QUERY_KEY):
            return [
                FactVote("attention_logit_growth", 1.5, f"most of the gradient is that of {f.where}", f.where)
            ]
    return []


def steps_too_long(facts: Facts, codes: set[str], findings: list[Finding]) -> list[FactVote]:
    blew_up = codes & {"G101", "G102", "G103", "L101", "L105", "L104", "G100", "P100"}
    votes = []
    if facts.lr_jump > LR_JUMPED and blew_up:
        votes.append(FactVote("lr_too_large", 2.5, f"the learning rate had just grown x{facts.lr_jump:.3g}"))
    if facts.momentum > 0.95 and (blew_up or "L107" in codes):
        votes.append(
            FactVote(
                "momentum_too_large",
                2.0,
                f"momentum {facts.momentum:g} multiplies steps by {1 / (1 - min(facts.momentum, 0.999)):.0f}",
            )
        )
    if blew_up & {"G101", "G102", "L101", "L105", "L104"} and facts.healthy_steps < 50 and not facts.adaptive:
        votes.append(
            FactVote("lr_too_large", 0.7, f"it began after {facts.healthy_steps} steps at lr {facts.lr:.3g}")
        )
    if facts.attention and facts.adaptive and facts.healthy_steps < 200 and blew_up:
        votes.append(
            FactVote("warmup_missing", 1.0, f"attention under {facts.optimizer} from the first step")
        )
    return votes


def depth(facts: Facts, codes: set[str], findings: list[Finding]) -> list[FactVote]:
    early = facts.healthy_steps < 20 and codes & {"G100", "G101", "G102", "L101", "P100"}
    deep = facts.num_matrices >= 16 and not facts.normalised and not facts.recurrent
    if early and deep:
        text = f"{facts.num_matrices} weight matrices without a normalisation layer"
        return [FactVote("residual_accumulation", 2.0, text), FactVote("init_gain_large", 2.0, text)]
    return []


def inputs(facts: Facts, codes: set[str], findings: list[Finding]) -> list[FactVote]:
    rms = facts.input_rms
    if not math.isfinite(rms):
        return []
    if rms > 10:
        weight = 1.0 + min(2.0, math.log10(rms / 10))
        return [
            FactVote("unscaled_inputs", weight, f"the inputs have rms {rms:.3g}, initialisations expect 1")
        ]
    return [FactVote("unscaled_inputs", -3.0, f"the inputs have rms {rms:.3g}")]


def large_losses(facts: Facts, codes: set[str], findings: list[Finding]) -> list[FactVote]:
    if facts.portrait is not None and facts.portrait.terms:
        return []  # what the loss is made of is known
    if facts.loss_first > 1e3 and codes & {"G100", "G101", "G102", "L101", "L104", "P100"}:
        text = f"the first losses are {facts.loss_first:.3g}"
        summed = 1.0 if facts.recurrent else 0.5
        return [FactVote("unscaled_targets", 2.0, text), FactVote("loss_reduction", summed, text)]
    return []


def second_moment(facts: Facts, codes: set[str], findings: list[Finding]) -> list[FactVote]:
    if not facts.adaptive:
        return [FactVote("stale_second_moment", -9.0, f"{facts.optimizer or 'the optimizer'} has none")]
    if "O102" not in codes or not codes & {"L101", "L103", "L104", "G101"} or not facts.betas:
        return []
    text = f"beta2 {facts.betas[1]:g} remembers about {1 / (1 - min(facts.betas[1], 0.99999)):.0f} steps"
    return [FactVote("stale_second_moment", 2.0 if facts.betas[1] >= 0.999 else 0.5, text)]


def precision(facts: Facts, codes: set[str], findings: list[Finding]) -> list[FactVote]:
    if not facts.in_half:
        return [FactVote("low_precision", -4.0, "nothing runs in float16")]
    if codes & {"G100", "L100", "A100", "P101"}:
        return [FactVote("low_precision", 3.0, "float16 ends at 65504")]
    return []


def _largest(*values: float) -> float:
    return max((x for x in values if math.isfinite(x)), default=math.nan)


FACT_VOTERS: tuple[FactVoter, ...] = (
    growth_in_recurrence,
    out_of_range,
    one_jump,
    sudden,
    afterwards,
    attention,
    steps_too_long,
    depth,
    inputs,
    large_losses,
    second_moment,
    precision,
    graph_votes.growth_over_depth,
    graph_votes.decay_over_depth,
    graph_votes.recurrence,
    graph_votes.fading_through_time,
    graph_votes.attention_logits,
    graph_votes.first_loss,
    graph_votes.targets,
    graph_votes.reduction,
    graph_votes.idle_parameters,
    graph_votes.half_range,
    graph_votes.other_batch,
    graph_votes.post_norm,
    graph_votes.same_units,
    end_votes.first_bad_value,
    end_votes.lengths_of_steps,
    end_votes.without_bound,
    end_votes.after_the_first_step,
    end_votes.own_targets,
    end_votes.nothing_in_the_net,
    end_votes.over_the_limit,
)
