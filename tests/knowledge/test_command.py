"""``steadygrad explain`` as it is typed."""

import pytest

from steadygrad.knowledge import explain, plain
from tests.commands import PYTHON, STEADYGRAD, call


@pytest.mark.parametrize("words", [[], ["lr_too_large"], ["LR-too-large"], ["g101"]], ids=" ".join)
def test_page_is_shown(words, tmp_path):
    out = call([*STEADYGRAD, "explain", *words], tmp_path, env={"COLUMNS": "100"})
    assert (out.returncode, out.stderr) == (0, "")
    assert out.stdout == plain(explain(*words), 100)


def test_width_is_that_of_the_terminal(tmp_path):
    for columns, widest in (("60", 60), ("300", 100)):
        out = call([*STEADYGRAD, "explain", "lr_too_large"], tmp_path, env={"COLUMNS": columns})
        assert out.stdout == plain(explain("lr_too_large"), widest)


def test_unknown_name_is_one_line_and_exit_2(tmp_path):
    out = call([*STEADYGRAD, "explain", "lr_to_large"], tmp_path)
    assert out.returncode == 2 and out.stdout == ""
    assert out.stderr.startswith(
        "steadygrad: no cause or rule is called 'lr_to_large'; the nearest: lr_too_large,"
    )
    assert len(out.stderr.splitlines()) == 1


def test_no_page_loads_torch_and_that_of_a_cause_no_rules(tmp_path):
    code = (
        "import sys; from steadygrad.cli import main; status = main(['explain', *sys.argv[1:]]);"
        "print(status, sorted({'torch', 'steadygrad.rules'} & set(sys.modules)))"
    )
    for words, loaded in (
        (["lr_too_large"], []),
        (["G101"], ["steadygrad.rules"]),
        ([], ["steadygrad.rules"]),
    ):
        out = call([*PYTHON, "-c", code, *words], tmp_path)
        assert out.stdout.splitlines()[-1] == f"None {loaded}", out.stderr


def test_help_lists_the_command(tmp_path):
    assert "explain" in call([*STEADYGRAD, "--help"], tmp_path).stdout
