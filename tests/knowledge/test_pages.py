"""The pages have one shape, say what is true, and can be asked for by name."""

import importlib
import json
import math
import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from steadygrad import rules
from steadygrad.knowledge import SECTIONS, UnknownPage, cause_page, causes, explain, summary
from steadygrad.knowledge.plain import blocks
from studies.combinations import run as combinations

ROOT = Path(__file__).parents[2]
PLANNED = """
attention_logit_growth bad_batch bootstrapped_target data_shift dead_units init_gain_large init_gain_small
loop_mistake loss_reduction low_precision lr_too_large lr_too_small momentum_too_large output_scale
recurrent_growth residual_accumulation saturation stale_second_moment unbounded_objective unsafe_op
unscaled_inputs unscaled_targets vanishing warmup_missing
""".split()
LEAST, MOST = 120, 250  # words
SHOWN = 90  # columns of code, which is indented by six and not wrapped


def prose(page: str) -> str:
    """A page without its code and headings."""
    return re.sub(r"^```.*?^```|^#.*?$", "", page, flags=re.M | re.S)


def flat(name: str) -> str:
    """The page of a cause on one line."""
    return " ".join(cause_page(name).split())


def test_every_cause_has_a_page():
    assert set(causes()) >= set(PLANNED)


def test_every_cause_that_diagnosis_names_has_a_page():
    diagnose = importlib.import_module("steadygrad.diagnose")
    assert set(diagnose.CAUSES) == set(causes())


@pytest.mark.parametrize("name", causes())
def test_page_has_its_sections_in_order_and_nothing_else(name):
    page = cause_page(name)
    assert re.findall(r"^(#+ .*)$", re.sub(r"```.*?```", "", page, flags=re.S), re.M) == [
        f"# {name}",
        *(f"## {section}" for section in SECTIONS),
    ]
    for section in re.split(r"^## .*$", page, flags=re.M)[1:]:
        assert prose(section).strip()


@pytest.mark.parametrize("name", causes())
def test_page_is_short_and_plain(name):
    page = cause_page(name)
    assert LEAST <= len(prose(page).split()) <= MOST
    assert page.isascii() and page.endswith("\n") and not re.search(r"[ \t]$", page, re.M)
    assert not re.search(r"\]\(|^\||\*\*\w|^ +-", prose(page), re.M), "what `plain` does not know"
    assert max(map(len, page.splitlines())) <= 118
    for block in blocks(page):
        assert block.kind != "code" or max(map(len, block.lines)) <= SHOWN


@pytest.mark.parametrize("name", causes())
def test_page_says_where_it_comes_from(name):
    source = cause_page(name).partition("## Source\n")[2]
    assert re.search(r"\((19|20)\d\d\)|PyTorch documentation", source)
    for file in re.findall(r"\(?(studies/\w+)", source):
        assert (ROOT / file / "results.json").is_file()


@pytest.mark.parametrize("name", causes())
def test_summary_is_the_first_sentence(name):
    sentence = summary(name)
    assert sentence.endswith(".") and "\n" not in sentence and 5 <= len(sentence.split()) <= 30
    assert sentence.count(". ") == 0 and "`" not in sentence
    assert flat(name).startswith(f"# {name} ## What it is {sentence}")


def test_page_names_only_causes_that_exist():
    """A word in backquotes with an underscore is a cause, or a name of torch's or Python's that is listed here."""
    others = {
        *("zero_grad", "unscale_", "no_grad", "weight_hh", "nan_to_num", "detect_anomaly"),
        *("cross_entropy", "binary_cross_entropy_with_logits"),
    }
    for name in causes():
        for word in re.findall(r"`([a-z]+(?:_[a-z]*)+)`", prose(cause_page(name))):
            assert word in causes() or word in others, f"{name} speaks of {word}"


def test_names_are_forgiving():
    page = cause_page("lr_too_large")
    for name in ("lr_too_large", "LR_Too_Large", "lr-too-large", " lr too large "):
        assert explain(name) == page


@pytest.mark.parametrize("code", [rule.code for rule in rules.RULES])
def test_every_rule_has_its_page(code):
    page = explain(code)
    assert page == f"# {rules.page(code)}" == explain(code.lower())
    for section in ("What it measures:", "Why it matters:", "Stays silent on:", "Remedies:", "Source:"):
        assert section in page


def test_no_name_lists_everything_with_a_line_each():
    lines = explain().splitlines()
    for name in causes():
        assert lines.count(f"- `{name}`: {summary(name)}") == 1
    for rule in rules.RULES:
        (line,) = (line for line in lines if line.startswith(f"- `{rule.code} "))
        assert rule.name in line and line.endswith(".")


@pytest.mark.parametrize(
    "asked, near",
    [("lr_to_large", "lr_too_large"), ("vanish", "vanishing"), ("G109", "G10"), ("unsafe-ops", "unsafe_op")],
)
def test_unknown_page_names_the_nearest(asked, near):
    with pytest.raises(UnknownPage, match=f"; the nearest: .*{near}") as caught:
        explain(asked)
    assert isinstance(caught.value, ValueError)
    assert repr(asked) in str(caught.value) and "steadygrad explain" in str(caught.value)


@pytest.mark.parametrize("asked", ["", "???", "z" * 1000])
def test_unknown_page_that_is_near_nothing_says_how_to_list_all(asked):
    with pytest.raises(
        UnknownPage, match="no cause or rule is called '.{0,60}'. All of them: steadygrad explain$"
    ):
        explain(asked)


@pytest.mark.parametrize("name", ["../pages", "lr_too_large.md", "G101", "Lr_too_large"])
def test_only_a_cause_has_a_page_of_a_cause(name):
    for ask in (cause_page, summary):
        with pytest.raises(UnknownPage):
            ask(name)


def logits_loss(deviation: float) -> float:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(20000, 10, generator=generator) * deviation
    return F.cross_entropy(logits, torch.randint(10, (20000,), generator=generator)).item()


def slope(function, at: float) -> float:
    x = torch.tensor(at, dtype=torch.float64, requires_grad=True)
    return torch.autograd.grad(function(x), x)[0].item()


# page, the words that hold the number, the number, what it should be
NUMBERS = [
    ("init_gain_large", "multiplies by 9100", 9100, lambda: 1.2**50),
    ("init_gain_small", "factor of 0.41,", 0.41, lambda: math.sqrt(1 / 3 / 2)),
    ("init_gain_small", "5e-12 over 30", 5e-12, lambda: 0.408**29),
    ("init_gain_small", "factor of 0.71", 0.71, lambda: math.sqrt(1 / 2)),
    ("output_scale", "loss of 2.7", 2.7, lambda: logits_loss(1)),
    ("output_scale", "deviation 3 gives 5.1", 5.1, lambda: logits_loss(3)),
    ("output_scale", "deviation 10 gives 15.6", 15.6, lambda: logits_loss(10)),
    ("residual_accumulation", "by 3.4e7", 3.4e7, lambda: 2 ** (50 / 2)),
    ("residual_accumulation", "256 overflow", 256, lambda: 2 * math.log2(torch.finfo(torch.float32).max)),
    ("recurrent_growth", "14,000", 14_000, lambda: 1.1**100),
    ("recurrent_growth", "2.5e11", 2.5e11, lambda: 1.3**100),
    ("attention_logit_growth", "2e-9", 2e-9, lambda: math.exp(-20)),
    ("vanishing", "ten layers leave 1e-6", 1e-6, lambda: 0.25**10),
    ("saturation", "slope 0.42 at 1", 0.42, lambda: slope(torch.tanh, 1.0)),
    ("saturation", "0.07 at 2", 0.07, lambda: slope(torch.tanh, 2.0)),
    ("saturation", "0.01 at 3", 0.01, lambda: slope(torch.tanh, 3.0)),
    ("saturation", "0.0025 at 6", 0.0025, lambda: slope(torch.sigmoid, 6.0)),
    ("unsafe_op", "exp above 88", 88.7, lambda: math.log(torch.finfo(torch.float32).max)),
    ("low_precision", "ends at 65504", 65504, lambda: torch.finfo(torch.float16).max),
    ("low_precision", "below 3e-8", 3e-8, lambda: torch.finfo(torch.float16).smallest_normal * 2**-11),
    ("low_precision", "below 0.004", 0.004, lambda: torch.finfo(torch.bfloat16).eps / 2),
    ("loss_reduction", "16,384", 16_384, lambda: 32 * 512),
    ("stale_second_moment", "is 9.5", 9.5, lambda: 10 / math.sqrt(0.999 + 0.001 * 100)),
    ("warmup_missing", "(2000 at 0.999)", 2000, lambda: 2 / (1 - 0.999)),
    ("bootstrapped_target", "100 rewards", 100, lambda: 1 / (1 - 0.99)),
]


@pytest.mark.parametrize("name, words, said, true", NUMBERS, ids=lambda v: v if isinstance(v, str) else "")
def test_number_on_a_page_is_right(name, words, said, true):
    assert words in flat(name)
    assert said == pytest.approx(true(), rel=0.06)


# page, its words, net, initialisation, depth, ratio of the gradients
MEASURED = [
    ("init_gain_large", "by 72", "plain MLP, tanh", "xavier, gain 5/3", 50, 72),
    ("init_gain_large", "by 1e8", "plain MLP, tanh", "xavier, gain 5/3", 200, 1e8),
    ("init_gain_small", "leaves 1e-18", "plain MLP, ReLU", "torch", 50, 1e-18),
    ("vanishing", "leaves 1e-38", "LSTM", "torch", 200, 1e-38),
]


@pytest.fixture(scope="module")
def depth_study() -> dict:
    runs = json.loads((ROOT / "studies" / "depth" / "results.json").read_text())["runs"]
    return {(run["net"], run["init"], run["depth"]): run for run in runs}


@pytest.mark.parametrize("name, words, net, init, depth, ratio", MEASURED)
def test_measured_number_is_that_of_the_study(name, words, net, init, depth, ratio, depth_study):
    assert words in flat(name)
    cell = depth_study[net, init, depth]
    assert math.log10(cell["first"] / cell["last"]) == pytest.approx(math.log10(ratio), abs=0.6)


def test_measured_fate_is_that_of_the_study(depth_study):
    assert "He's weights keep it, and train" in flat("init_gain_small")
    assert depth_study["plain MLP, ReLU", "he", 50]["end"] == "trained"
    page = flat("residual_accumulation")
    assert "residual MLP of 1000 blocks overflows with He's weights, trains with SkipInit" in page
    assert "fifty have gradients of 1e8" in page
    assert depth_study["residual MLP", "he", 50]["last"] > 1e8
    assert depth_study["residual MLP", "he", 10]["end"] == "trained"
    assert depth_study["residual MLP", "he", 1000]["end"] == "non-finite"
    assert depth_study["residual MLP", "skipinit", 1000]["end"] == "trained"


def test_measured_effect_is_that_of_the_study():
    assert "ten times the rate costs a Transformer 43 points of survival" in flat("lr_too_large")
    runs = json.loads((ROOT / "studies" / "combinations" / "results.json").read_text())["runs"]
    alive: dict[bool, list[bool]] = {False: [], True: []}
    for run in runs:
        if run["net"] == "Transformer":
            alive[run["setting"]["lr"]].append(combinations.survived(run))
    low, high = (100 * sum(a) / len(a) for a in alive.values())
    assert low - high == pytest.approx(43, abs=1)
