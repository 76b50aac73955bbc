"""Which sinks can be asked for, and what is said where one cannot."""

import subprocess
import sys

import pytest

from steadygrad.sinks import PACKAGES, SinkNotInstalled, UnknownSink, checked_sinks, names


class Own:
    def write(self, scalars, step): ...
    def event(self, event): ...
    def artifact(self, path): ...
    def close(self): ...


def test_one_or_several_without_repeats():
    own = Own()
    assert checked_sinks(own) == (own,)
    assert checked_sinks([own, own]) == (own,)


def test_an_unknown_name_says_what_there_is():
    with pytest.raises(UnknownSink, match="no sink 'tb'; there are: tensorboard, wandb, mlflow, trackio"):
        checked_sinks(["tb"])


def test_a_missing_package_says_what_to_install(monkeypatch):
    monkeypatch.setitem(PACKAGES, "wandb", "a_package_that_nobody_has")
    with pytest.raises(SinkNotInstalled, match=r'pip install "steadygrad\[wandb\]"'):
        names.check_installed("wandb")


@pytest.mark.parametrize("thing", [3, print, object(), Own])
def test_something_else_is_refused(thing):
    with pytest.raises(TypeError, match="sink must be one of 'tensorboard'.* or an object with write"):
        checked_sinks(thing)


def test_nothing_is_imported_by_naming_it():
    code = (
        "import sys; from steadygrad.sinks import checked_sinks, SinkNotInstalled\n"
        "from steadygrad.sinks.fan import Sinks\n"
        "for name in ('tensorboard', 'wandb', 'mlflow', 'trackio'):\n"
        "    try: checked_sinks(name)\n"
        "    except SinkNotInstalled: pass\n"
        "print([m for m in ('tensorboard', 'wandb', 'mlflow', 'trackio', 'torch', 'sqlite3') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
