"""Rows are made once, an interrupted file is gone on with, and a fresh start forgets only what was asked for."""

import json

import pytest

from benchmarks import zoo_cache
from benchmarks.zoo_runs import Draw

ONE, TWO, OTHER = (Draw("a", 0, False), Draw("a", 0, True), Draw("b", 3, False))


@pytest.fixture
def made(tmp_path, monkeypatch):
    """The draws for which a row was made, in order."""
    monkeypatch.setattr(zoo_cache, "CACHE", tmp_path / "cache")
    return []


def rows(made, wanted, fresh=False):
    def make(draw):
        made.append(draw)
        return {**draw._asdict(), "nth": len(made)}

    return zoo_cache.rows("kind", make, wanted, jobs=1, fresh=fresh)


def test_a_row_is_made_once_and_comes_in_the_order_asked_for(made):
    rows(made, [TWO])
    found = rows(made, [ONE, TWO])
    assert made == [TWO, ONE]
    assert [r["nth"] for r in found] == [2, 1] and all(r["commit"] for r in found)
    assert zoo_cache.cached("kind").keys() == {ONE, TWO}


def test_a_line_cut_short_is_made_again_and_the_file_stays_readable(made):
    rows(made, [ONE, TWO])
    path = zoo_cache.CACHE / "kind.jsonl"
    path.write_text(path.read_text()[:-9])
    assert zoo_cache.cached("kind").keys() == {ONE}
    rows(made, [ONE, TWO])
    assert made == [ONE, TWO, TWO]
    assert [json.loads(line)["nth"] for line in path.read_text().splitlines()] == [1, 3]


def test_fresh_makes_anew_what_is_asked_for_and_keeps_the_rest(made):
    rows(made, [ONE, OTHER])
    assert [r["nth"] for r in rows(made, [ONE], fresh=True)] == [3]
    assert {d: r["nth"] for d, r in zoo_cache.cached("kind").items()} == {ONE: 3, OTHER: 2}


def test_an_error_names_the_draw_and_leaves_the_rows_before_it(made):
    def make(draw):
        if draw == TWO:
            raise ZeroDivisionError("no")
        return draw._asdict()

    with pytest.raises(RuntimeError, match="no row of a 0 fixed: ZeroDivisionError: no"):
        zoo_cache.rows("kind", make, [ONE, TWO], jobs=1)
    assert zoo_cache.cached("kind").keys() == {ONE}


def test_draws_are_every_family_with_its_twin():
    found = zoo_cache.draws([4, 5], ["ring_gan", "sgd_lr_large"])
    assert set(found) == {
        *(Draw("ring_gan", s, False) for s in (4, 5)),
        *(Draw("sgd_lr_large", s, f) for s in (4, 5) for f in (False, True)),
    }
    with pytest.raises(SystemExit, match="no family is called nothing"):
        zoo_cache.draws([4], ["nothing"])
