"""``steadygrad study``: the list, a run, and what is refused."""

import json

import pytest

from steadygrad import studying
from steadygrad.cli import main

CLAIMS = ("glorot_gradients", "he_depth", "order_to_chaos", "layer_norm_placement", "edge_of_stability")


def test_list_has_name_claim_and_verdict_of_each(capsys, tmp_path):
    out = tmp_path / "list.json"
    assert main(["study", "--json", str(out)]) == 0
    shown = capsys.readouterr().out
    listed = {row["study"]: row for row in json.loads(out.read_text())["studies"]}
    assert {*CLAIMS, "depth", "combinations"} <= set(listed)
    for name, row in listed.items():
        assert name in shown and row["claim"].endswith(".") and row["passed"] in (True, False)


def test_list_as_json_alone(capsys):
    assert main(["study", "--json", "-"]) == 0
    assert json.loads(capsys.readouterr().out)["schema"] == 1


def test_unknown_name_is_bad_input_and_names_what_there_is(capsys):
    assert main(["study", "gone"]) == 2
    said = capsys.readouterr().err
    assert "no study 'gone'" in said and all(name in said for name in CLAIMS) and said.count("\n") == 1


def test_without_the_source_tree_it_says_so(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(studying, "__file__", str(tmp_path / "site-packages" / "steadygrad" / "studying.py"))
    assert main(["study"]) == 2
    assert "checkout" in capsys.readouterr().err


def test_studies_of_the_current_folder_come_first(monkeypatch, tmp_path):
    (tmp_path / "studies" / "mine").mkdir(parents=True)
    (tmp_path / "studies" / "claim.py").touch()
    (tmp_path / "studies" / "mine" / "run.py").write_text('"""Mine is so.\n\nAnd more."""\n')
    monkeypatch.chdir(tmp_path)
    folder = studying.chosen("mine")
    assert folder == tmp_path / "studies" and studying.names(folder) == ["mine"]
    assert studying.claim_of(folder, "mine") == "Mine is so." and studying.verdict_of(folder, "mine") is None


def test_smoke_judges_and_saves_nothing(capsys):
    kept = studying.find_studies() / "order_to_chaos" / "results.json"
    before = kept.read_bytes()
    assert main(["study", "order_to_chaos", "--smoke", "--json", "-"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told == {"schema": 1, "study": "order_to_chaos", "values": [], "passed": None, "smoke": True}
    assert kept.read_bytes() == before


@pytest.mark.parametrize(("wanted", "code", "word"), [(0.0, 0, "reproduced"), (1.0, 1, "not reproduced")])
def test_exit_code_and_table_tell_the_verdict(capsys, monkeypatch, tmp_path, wanted, code, word):
    claim = pytest.importorskip("studies.claim")
    figure = pytest.importorskip("matplotlib.figure")
    monkeypatch.setattr(claim, "HERE", tmp_path)
    monkeypatch.setattr(claim, "IMAGES", tmp_path)
    (tmp_path / "order_to_chaos").mkdir()
    study = claim.Study(
        "order_to_chaos",
        [{"arm": 1}],
        [claim.Value("the [bracketed] value", "zero", wanted, wanted, claim.each("x"))],
        lambda seed, smoke, arm: {"x": 0.0},
        lambda runs: figure.Figure(),
    )
    out = tmp_path / "out.json"
    assert studying.run_study(study, str(out), smoke=False, jobs=1, resume=False) == code
    shown = capsys.readouterr().out
    assert "the [bracketed] value" in shown and shown.splitlines()[-1] == word
    told = json.loads(out.read_text())
    assert told["passed"] is (code == 0) and told["values"][0]["measured"] == [0.0, 0.0, 0.0]
