"""Arms draw the same random numbers, or others where they are asked to, also from a script that seeds itself."""

import json
from types import SimpleNamespace

import pytest

from steadygrad.integrations.arms import ArmRequest, ArmRunner
from steadygrad.integrations.script import Target
from steadygrad.integrations.seeds import STRIDE, Seeds
from tests.commands import PYTHON, call

DRAW = """
import json, random
early = [random.random()]
random.seed({s})
early.append(random.random())
import numpy
numpy.random.seed({s})
early.append(numpy.random.rand())
import torch
unseeded = torch.rand(1).item()
torch.manual_seed({s})
drawn = [torch.rand(1).item(), numpy.random.default_rng({s}).random(), numpy.random.rand()]
numpy.random.seed(seed={s})
torch.random.manual_seed(numpy.int64({s}))
drawn += [numpy.random.rand(), torch.rand(1).item(), random.random()]
private = [torch.rand(1, generator=torch.Generator().manual_seed({s})).item(), random.Random({s}).random()]
kept = [numpy.random.default_rng(numpy.random.SeedSequence({s})).random()]
random.seed("text"); kept.append(random.random())

print(json.dumps([early[1:] + drawn, private + kept, early[:1] + [unseeded]]))
"""


def drawn(folder, seed: int, offset: int) -> list[list[float]]:
    (folder / "s.py").write_text(DRAW.format(s=seed))
    with ArmRunner(["s.py"], Target("s.py")) as runner:
        result = runner.run(ArmRequest(seed_offset=offset))
    assert result.exit_code == 0, result.stderr_tail
    return json.loads(result.stdout_tail)


@pytest.mark.slow
def test_seeds_are_shifted_where_the_script_sets_them(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "s.py").write_text(DRAW.format(s=5 + STRIDE))
    wanted = json.loads(call([*PYTHON, "s.py"], tmp_path).stdout)
    seeded, alone, unseeded = drawn(tmp_path, 5, 1)
    assert seeded == wanted[0], "as if the script had been written with another seed"
    same_seeded, same_alone, same_unseeded = drawn(tmp_path, 5, 0)
    assert alone == same_alone, "what is no seed of a number, or a private generator's, is left alone"
    assert all(a != b for a, b in zip(unseeded, same_unseeded, strict=True))
    assert all(a != b for a, b in zip(seeded, same_seeded, strict=True))


@pytest.mark.parametrize(("seed", "modulus"), [(2**63 - 1, None), (2**32 - 1, 2**32), (0, 2**32), (7, None)])
def test_a_shifted_seed_is_one_that_is_allowed(seed, modulus):
    (shifted,), kwargs = Seeds(2)._shifted((seed,), {}, modulus)
    assert shifted != seed and shifted <= 2**63 - 1 and not kwargs
    assert modulus is None or 0 <= shifted < modulus
    assert Seeds(2)._shifted((), {"seed": seed}, modulus) == ((), {"seed": shifted})


def test_a_seed_that_torch_passes_on_is_not_shifted_again():
    module = SimpleNamespace(seed=lambda value: value)
    seeds = Seeds(1)
    seeds._wrap(module, "seed")
    for name, wanted in (
        ("__main__", 5 + STRIDE),
        ("transformers.trainer_utils", 5 + STRIDE),
        ("torch.cuda", 5),
    ):
        assert eval("seed(5)", {"__name__": name, "seed": module.seed}) == wanted
    assert seeds.shifted == 2
