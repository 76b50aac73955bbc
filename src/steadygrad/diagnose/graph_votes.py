"""What the graph of a step says about causes: layers, recurrences, attention, the loss and its targets."""

from __future__ import annotations

import math

from steadygrad.diagnose.facts import Facts
from steadygrad.diagnose.risk import cold_post_norm
from steadygrad.diagnose.vote import MANY, FactVote, of_code
from steadygrad.records import Finding, Portrait

SATURATING = ("Sigmoid", "Tanh", "Softsign", "Hardsigmoid", "Hardtanh")


def growth_over_depth(facts: Facts, codes: set[str], findings: list[Finding]) -> list[FactVote]:
    """Signals that grow from layer to layer: the weights, or branches that add up, or the last layer alone."""
    votes = []
    for f in of_code(findings, "F101", "F102"):
        if f.step > 0:
            continue  # a consequence of the first steps: see end_votes.after_the_first_step
        if f.evidence.get("head"):
            votes.append(FactVote("output_scale", 3.0, f.message, f.where))
        elif _adds_up(facts.portrait) and (
            f.code == "F102" or f.evidence["jump"] < 0.9 * f.evidence["decades"]
        ):
            text = f"{f.message}; {facts.portrait.residual} skip connections add up without a normalisation"  # type: ignore[union-attr]
            votes += [
                FactVote("residual_accumulation", 3.0, text),
                FactVote("init_gain_large", 1.5, f.message, f.where),
            ]
        elif any(g.step == 0 for g in of_code(findings, "D101")):
            votes.append(FactVote("init_gain_large", 1.0, f.message, f.where))
            votes.append(FactVote("unscaled_inputs", 0.5, f"{f.message}, from inputs that are large already"))
        else:
            votes.append(FactVote("init_gain_large", 3.0, f.message, f.where))
    if not votes and _adds_up(facts.portrait) and facts.portrait is not None and facts.portrait.residual >= 6:
        text = f"{facts.portrait.residual} skip connections add up without a normalisation"
        votes.append(FactVote("residual_accumulation", 1.5, text))
    return votes


def _adds_up(portrait: Portrait | None) -> bool:
    if portrait is None or portrait.recurrences:
        return False
    return portrait.residual >= 3 and portrait.normalised < portrait.residual / 2


def decay_over_depth(facts: Facts, codes: set[str], findings: list[Finding]) -> list[FactVote]:
    votes = []
    for f in of_code(findings, "F103"):
        weight = 2.5 if f.step == 0 else 1.0 if f.step > 5 else 0.5
        shrinks = f.evidence.get("forward_decades", 0.0) < -1
        saturating = any(t in facts.module_types for t in SATURATING)
        votes.append(FactVote("vanishing", weight + 0.5 * saturating - 1.0 * shrinks, f.message, f.where))
        votes.append(FactVote("init_gain_small", weight if shrinks else 0.5, f.message, f.where))
    return votes


def fading_through_time(facts: Facts, codes: set[str], findings: list[Finding]) -> list[FactVote]:
    """A recurrence whose early steps get no gradient, in a run that is stuck."""
    if (
        facts.verdict is None
        or facts.verdict.kind not in ("stuck", "flat", "ambiguous")
        or facts.portrait is None
    ):
        return []
    return [
        FactVote(
            "vanishing",
            2.5,
            f"the gradient fades to 1e{r.backward_decades:.0f} of its size over {r.steps} steps through {r.name}",
            r.name,
        )
        for r in facts.portrait.recurrences
        if r.backward_decades < -4
    ][:1]


def recurrence(facts: Facts, codes: set[str], findings: list[Finding]) -> list[FactVote]:
    found = of_code(findings, "F104")
    if found:
        weight = 5.0 if found[0].step == 0 else 3.5 if found[0].step <= 2 else 2.0
        return [FactVote("recurrent_growth", weight, found[0].message, found[0].where)]
    if (
        facts.portrait is not None
        and facts.portrait.complete
        and not facts.portrait.recurrences
        and not facts.recurrent
    ):
        return [FactVote("recurrent_growth", -9.0, "no weight is used again on what came out of it")]
    return []


def attention_logits(facts: Facts, codes: set[str], findings: list[Finding]) -> list[FactVote]:
    votes = []
    for f in of_code(findings, "F105"):
        votes.append(FactVote("attention_logit_growth", 3.0 if f.step == 0 else 1.0, f.message, f.where))
    if (
        facts.portrait is not None
        and facts.portrait.complete
        and not facts.portrait.attention
        and not facts.attention
    ):
        votes.append(FactVote("attention_logit_growth", -9.0, "there is no attention"))
    return votes


def first_loss(facts: Facts, codes: set[str], findings: list[Finding]) -> list[FactVote]:
    votes = []
    for f in of_code(findings, "F106"):
        if f.step > 0:
            continue
        inputs = "D101" in codes or "D102" in codes
        grown = bool(of_code(findings, "F101"))
        recurrent = facts.portrait is not None and any(
            r.forward_decades > 0.5 for r in facts.portrait.recurrences
        )
        if recurrent:
            votes.append(FactVote("recurrent_growth", 2.5, f"{f.message}; the state grows through time"))
        votes.append(FactVote("output_scale", 0.5 if inputs or grown or recurrent else 2.5, f.message))
    return votes


def targets(facts: Facts, codes: set[str], findings: list[Finding]) -> list[FactVote]:
    votes = [FactVote("unscaled_targets", 3.0, f.message) for f in of_code(findings, "F108")]
    portrait = facts.portrait
    if portrait is not None and portrait.terms and not votes:
        known = [t for t in portrait.terms if not math.isnan(t.target_rms)]
        if known:
            text = f"the targets have rms {max(t.target_rms for t in known):.3g}"
            votes.append(FactVote("unscaled_targets", -2.0, text))
        elif all(t.classes for t in portrait.terms):
            votes.append(FactVote("unscaled_targets", -4.0, "the targets are classes"))
    return votes


def reduction(facts: Facts, codes: set[str], findings: list[Finding]) -> list[FactVote]:
    """A loss that is many times its own mean."""
    if facts.portrait is None or not facts.portrait.terms:
        return []
    term = max(facts.portrait.terms, key=lambda t: t.weight if not math.isnan(t.weight) else 0.0)
    total = term.weight * facts.num_backwards
    if not total >= MANY:
        return [FactVote("loss_reduction", -4.0, "the loss is a mean")] if not math.isnan(term.weight) else []
    if term.weight < MANY:
        text = f"the gradients of {facts.num_backwards} backward passes are added, with nothing that divides them"
        return [FactVote("loss_reduction", 3.0, text)]
    steps = max((r.steps for r in facts.portrait.recurrences), default=0)
    summed = "M110" in codes or 0.5 <= term.weight / max(steps, 1) <= 2 and steps >= MANY
    over = f"{steps} time steps" if steps >= MANY else "elements"
    text = f"the loss is {term.weight:.3g} times the mean of its {term.kind} over {over}"
    return [FactVote("loss_reduction", 3.5 if summed else 1.0, text)]


def idle_parameters(facts: Facts, codes: set[str], findings: list[Finding]) -> list[FactVote]:
    """Parameters without a gradient: left out of the loop by mistake, unless the net itself lets none through."""
    for f in of_code(findings, "M105"):
        blocked = codes & {"A101", "A102", "D101", "F103", "F105", "F109"} or facts.in_half
        return [FactVote("loop_mistake", 1.0 if blocked else 4.0, f.message, f.where)]
    return []


def half_range(facts: Facts, codes: set[str], findings: list[Finding]) -> list[FactVote]:
    votes = [FactVote("low_precision", 3.0, f.message, f.where) for f in of_code(findings, "F107")]
    half = any(p.dtype in ("float16", "bfloat16") for p in facts.params)
    if any(p.dtype == "float16" for p in facts.params) and facts.eps < 6e-8:
        text = f"eps {facts.eps:g} is 0 in float16, and so is a small second moment"
        votes.append(FactVote("low_precision", 3.5, text))
    elif (
        "M105" in codes
        and facts.portrait is not None
        and any(r.dtype == "float16" for r in facts.portrait.layers)
    ):
        text = "gradients are exactly 0 in float16, where what is below 6e-8 vanishes"
        votes.append(FactVote("low_precision", 4.0, text))
    elif half and facts.update_ratio < 1e-3:
        text = (
            f"updates of {facts.update_ratio:.1e} of the weights are lost in the rounding of half precision"
        )
        votes.append(FactVote("low_precision", 2.0, text))
    return votes


def other_batch(facts: Facts, codes: set[str], findings: list[Finding]) -> list[FactVote]:
    """The batch of the incident against those before it."""
    first, at = facts.portrait, facts.at
    if first is None or at is None or at is first or not first.layers or not at.layers:
        return []
    votes = []
    rows = {row.name: row for row in first.layers}
    repeated = {r.name for r in (*first.recurrences, *at.recurrences)}
    entries = [row for row in at.layers if row.op != "Embedding" and row.name not in repeated]
    # What comes out of a table grows as it is trained: it is no input of the batch.
    learned = any(row.op == "Embedding" for row in at.layers)
    entry = entries[0] if entries and not learned else None
    usual = rows.get(entry.name) if entry is not None else None
    if entry is not None and usual is not None and usual.input_max > 0:
        ratio = entry.input_max / usual.input_max
        if not math.isfinite(ratio):
            votes.append(FactVote("bad_batch", 4.0, "the inputs are not finite"))
        elif ratio > 20:
            stays = _entry_size(facts.last, entry.name) > 20 * usual.input_max
            text = f"the inputs reach {entry.input_max:.3g}, {usual.input_max:.3g} at first"
            votes.append(FactVote("data_shift" if stays else "bad_batch", 3.5, text))
            votes.append(FactVote("bad_batch" if stays else "data_shift", -2.0 if stays else 1.0, text))
        elif ratio < 5 and len(first.terms) == len(at.terms):
            votes.append(FactVote("bad_batch", -3.0, "the inputs of the incident are of the usual size"))
    for now, then in zip(at.terms, first.terms, strict=False) if not facts.had_grown else ():
        if then.target_rms > 0 and now.target_rms / then.target_rms > 20:
            text = f"the targets have rms {now.target_rms:.3g}, {then.target_rms:.3g} at first"
            votes.append(FactVote("bad_batch", 3.5, text))
    return votes


def _entry_size(portrait: Portrait | None, name: str) -> float:
    """Largest input of a layer; 0 if it is not known."""
    rows = [row.input_max for row in (portrait.layers if portrait is not None else ()) if row.name == name]
    return rows[0] if rows and not math.isnan(rows[0]) else 0.0


def same_units(facts: Facts, codes: set[str], findings: list[Finding]) -> list[FactVote]:
    return [FactVote("init_gain_small", 4.0, f.message, f.where) for f in of_code(findings, "F109")]


def post_norm(facts: Facts, codes: set[str], findings: list[Finding]) -> list[FactVote]:
    portrait = facts.portrait
    if portrait is None or portrait.post_normalised < 4 or not portrait.attention and not facts.attention:
        return []
    text = f"{portrait.post_normalised} normalisations stand on the skip path, {facts.optimizer} from the first step"
    if cold_post_norm(facts):
        return [FactVote("warmup_missing", 4.0, text)]
    early = facts.healthy_steps < 100 or (
        facts.verdict is not None and facts.verdict.kind in ("stuck", "ambiguous")
    )
    return [FactVote("warmup_missing", 2.5 if early and facts.adaptive else 1.0, text)]
