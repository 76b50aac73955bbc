"""Settings: file, then environment; whatever cannot be used is refused by name."""

import pytest

from steadygrad.config import ConfigError, check, load


def test_nothing_set(tmp_path):
    assert load(tmp_path, {"HOME": "/x"}) == {}


def test_nearest_file_counts_and_the_environment_beats_it(tmp_path):
    inner = tmp_path / "a" / "b"
    inner.mkdir(parents=True)
    (tmp_path / "pyproject.toml").write_text('[tool.steadygrad]\nguard = "off"\nquiet = true\nruns = "out"\n')
    assert load(inner, {}) == {"guard": "off", "quiet": True, "runs": str(tmp_path / "out")}
    assert load(inner, {"STEADYGRAD_GUARD": "on", "STEADYGRAD_QUIET": "0"})["guard"] == "on"
    (tmp_path / "a" / "pyproject.toml").write_text('[project]\ndependencies = ["steadygrad"]\n')
    assert load(inner, {})["guard"] == "off"  # a file without our table is passed by
    (tmp_path / "a" / "steadygrad.toml").write_text('guard = "warn"\n')
    assert load(inner, {}) == {"guard": "warn"}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('guard = "maybe"', ["guard", "'maybe'", "off, warn, on"]),
        ("guard = true", ["guard", "True", "off, warn, on"]),
        ('tier = "deeper"', ["tier", "'deeper'", "cheap, standard, deep"]),
        ('gaurd = "on"', ["unknown key 'gaurd'", "'on'", "'guard'", "name, quiet, runs"]),
        ("quiet = 3", ["quiet", "3", "true or false"]),
        ('name = "../up"', ["name", "'../up'", "letters"]),
        ("runs = 3", ["runs", "3", "folder"]),
        ("guard = ", ["not valid TOML"]),
    ],
)
@pytest.mark.parametrize("name", ["steadygrad.toml", "pyproject.toml"])
def test_bad_setting_is_refused_with_its_place(name, text, words, tmp_path):
    table = "[tool.steadygrad]\n" if name == "pyproject.toml" else ""
    (tmp_path / name).write_text(table + text + "\n")
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, {})
    for word in [str(tmp_path / name), *words]:
        assert word in str(caught.value)


def test_bad_environment_is_refused_with_its_name(tmp_path):
    with pytest.raises(ConfigError, match="STEADYGRAD_GUARD.*'maybe'.*off, warn, on"):
        load(tmp_path, {"STEADYGRAD_GUARD": "maybe"})
    with pytest.raises(ConfigError, match="STEADYGRAD_GAURD.*unknown key.*'guard'"):
        load(tmp_path, {"STEADYGRAD_GAURD": "on"})
    assert load(tmp_path, {"STEADYGRAD_LAUNCH": "{}"}) == {}  # the launcher's own, not a setting


def test_table_that_is_none(tmp_path):
    (tmp_path / "pyproject.toml").write_text("tool.steadygrad = 3\n")
    with pytest.raises(ConfigError, match="must be a table"):
        load(tmp_path, {})


@pytest.mark.parametrize(
    "name", ["", ".", "..", "a/b", "a\\b", "/etc", "a\0b", "%2e%2e", "-x", "con", "a\nb"]
)
def test_name_cannot_leave_the_runs_folder(name):
    with pytest.raises(ConfigError, match="option --name"):
        check("name", name, "option --name")
