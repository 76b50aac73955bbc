from dataclasses import replace

from steadygrad.repair.remedies.cuts import pass_gradients
from tests.repair.remedies.step_cases import built, case


def cut(line, op="detach", **more):
    known = {"per_step": 1.0, "reaches": True, "parameters": 2, "untrained": 2}
    return {"file": "train.py", "line": line, "op": op, **known, **more}


def proposed(*sites, codes=("M105",), more=()):
    found = replace(case(codes=[*codes, *more]), survey={"cuts": {"sites": list(sites)}})
    return list(built(pass_gradients, found).values())


def lines(remedy):
    return [s["line"] for s in remedy.plan["pass_gradients"]["sites"]]


def test_only_where_parameters_have_no_gradient_and_a_cut_lies_above_them():
    assert proposed(cut(3), codes=()) == proposed(codes=["M105"]) == []
    assert proposed(cut(3, untrained=0)) == proposed(cut(3, reaches=False)) == []
    assert built(pass_gradients, case(codes=["M105"])) == {}
    (remedy,) = proposed(cut(3, "no_grad"))
    assert remedy.plan == {"pass_gradients": {"sites": [{"file": "train.py", "line": 3, "op": "no_grad"}]}}
    assert remedy.lead and remedy.safety == "surgery" and remedy.serves == ("loop_mistake",)
    assert "no_grad out of train.py, line 3" in remedy.advice


def test_each_alone_and_all_together_where_the_evidence_is_for_all():
    remedies = proposed(cut(3), cut(5, "data"))
    assert [lines(r) for r in remedies] == [[3], [5], [3, 5]]
    assert [r.lead is not None for r in remedies] == [False, False, True]
    assert not remedies[0].combines_with(remedies[1])


def test_a_cut_above_what_is_partly_trained_is_no_evidence():
    assert [r.lead for r in proposed(cut(3, untrained=1))] == [None]
    remedies = proposed(cut(3), cut(5, untrained=1))
    assert [lines(r) for r in remedies if r.lead] == [[3]]


def test_targets_that_move_take_the_evidence_away():
    assert [r.lead for r in proposed(cut(3), more=["M113"])] == [None]


def test_three_at_most():
    remedies = proposed(*(cut(i, parameters=9, untrained=i) for i in range(1, 6)))
    assert [lines(r) for r in remedies] == [[5], [4], [3], [5, 4, 3]]
