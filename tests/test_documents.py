"""Documents run: every Python block of the README and the docs, and every docstring example."""

import ast
import doctest
import importlib
import inspect
import pkgutil
import re
import subprocess
from pathlib import Path

import pytest

import steadygrad

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
MODULES = sorted(
    m.name for m in pkgutil.walk_packages(steadygrad.__path__, "steadygrad.") if "__main__" not in m.name
)
ROOMS_OF_METHODS = [
    *(f"steadygrad.{room}" for room in steadygrad._ROOMS if room not in ("nn", "testing")),
    *(
        m.name
        for m in pkgutil.iter_modules(importlib.import_module("steadygrad.nn").__path__, "steadygrad.nn.")
    ),
]


def blocks() -> list:
    found = []
    for page in PAGES:
        for i, code in enumerate(re.findall(r"```python\n(.*?)```", page.read_text(), re.S)):
            found.append(pytest.param(code, id=f"{page.name}-{i}"))
    return found


@pytest.mark.parametrize("code", blocks())
def test_code_block_runs(code, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "block", "exec"), {"__name__": "__main__"})


@pytest.mark.parametrize("name", [m for m in MODULES if "examples" not in m and "sitecustomize" not in m])
def test_docstring_examples(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    outcome = doctest.testmod(importlib.import_module(name), optionflags=flags)
    assert outcome.failed == 0


def test_links_between_documents_lead_somewhere():
    for page in PAGES + [ROOT / "CONTRIBUTING.md"]:
        text = re.sub(r"```.*?```", "", page.read_text(), flags=re.S)
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text):
            assert (page.parent / target).exists(), f"{page.name} points to {target}"


@pytest.fixture
def generated(monkeypatch):
    """Import a script of docs/ that makes pages."""
    monkeypatch.syspath_prepend(ROOT / "docs")
    return importlib.import_module


def test_page_of_rules_is_fresh(generated):
    wanted = generated("generate_rules").text()
    assert (ROOT / "docs" / "rules.md").read_text() == wanted, "run: python docs/generate_rules.py"


def test_page_of_the_diagnosis_is_fresh(generated):
    wanted = generated("generate_diagnosis").text()
    assert (ROOT / "docs" / "diagnosis.md").read_text() == wanted, "run: python docs/generate_diagnosis.py"


def test_page_of_plans_is_fresh(generated):
    wanted = generated("generate_effects").text()
    assert (ROOT / "docs" / "plan.md").read_text() == wanted, "run: python docs/generate_effects.py"


def test_page_of_repair_is_fresh(generated):
    wanted = generated("generate_repair").text()
    assert (ROOT / "docs" / "repair_results.md").read_text() == wanted, "run: python docs/generate_repair.py"


def test_pages_of_causes_are_fresh(generated):
    wanted = generated("generate_knowledge").pages()
    docs = ROOT / "docs"
    kept = {str(p.relative_to(docs)): p.read_text() for p in [docs / "causes.md", *docs.glob("causes/*.md")]}
    assert kept == wanted, "run: python docs/generate_knowledge.py"


def test_pages_of_causes_are_in_the_navigation(generated):
    navigation = (ROOT / "mkdocs.yml").read_text()
    for name in generated("generate_knowledge").pages():
        assert f": {name}\n" in navigation, f"mkdocs.yml lacks {name}"


def test_cards_of_methods_are_fresh(generated):
    wanted = generated("generate_methods").pages()
    kept = {p.name: p.read_text() for p in (ROOT / "docs" / "methods").glob("*.md")}
    assert kept == wanted, "run: python docs/generate_methods.py"


def test_pages_of_the_package_and_the_commands_are_fresh(generated):
    for name, wanted in generated("generate_api").pages().items():
        assert (ROOT / "docs" / name).read_text() == wanted, "run: python docs/generate_api.py"


def test_every_method_says_what_its_card_needs(generated):
    cards = generated("generate_methods")
    for family in cards.FAMILIES:
        for name, method in cards.methods(family).items():
            said = {piece.label for piece in cards.read(method)}
            assert said >= set(cards.CARD), f"{family.room}.{name} lacks {set(cards.CARD) - said}"


def test_cards_show_calls_as_they_may_be_written(generated):
    cards = generated("generate_methods")
    for family in cards.FAMILIES:
        for name, method in cards.methods(family).items():
            (shown,) = ast.parse(f"def f{cards.call(method)}: ...").body
            kinds = {a.arg: "keyword" for a in shown.args.kwonlyargs}
            kinds |= {a.arg: "positional" for a in (*shown.args.posonlyargs, *shown.args.args)}
            for p in inspect.signature(method).parameters.values():
                if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD):
                    assert kinds.pop(p.name) == ("keyword" if p.kind == p.KEYWORD_ONLY else "positional"), (
                        name
                    )
            assert not kinds, name


def test_every_method_stands_on_a_page(generated):
    """No room of methods without a page, and no name of a page that its room does not have."""
    cards = generated("generate_methods")
    rooms = {family.room for family in cards.FAMILIES}
    for room in ROOMS_OF_METHODS:
        below = {r for r in rooms if r == room or r.startswith(room + ".")}
        assert below, f"{room} has no page: add a Family to docs/generate_methods.py"
    for family in cards.FAMILIES:
        names = cards.public(importlib.import_module(family.room))
        assert set(family.parts) <= set(names), f"{family.room} has no {set(family.parts) - set(names)}"


def test_no_path_or_host_of_this_machine_in_any_file():
    files = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True).stdout.split()
    for name in files:
        path = ROOT / name
        if path.suffix in (".png", ".js") or not path.is_file() or path.name == Path(__file__).name:
            continue
        text = path.read_text(errors="replace")
        for word in ("/work/main", "/root/"):
            assert word not in text, f"{name} holds {word}"
