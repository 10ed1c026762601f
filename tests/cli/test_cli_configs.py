import pytest

from lit_insert.cli.configs import check_yaml, config_names, config_path, expand_names, find_config, short_names
from lit_insert.errors import InputError


def test_configs_of_the_package_are_found_by_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert config_path("defaults.yaml").is_file()
    assert find_config("defaults.yaml") == find_config("configs/defaults.yaml") == config_path("defaults.yaml")
    assert {"defaults.yaml", "debug/overfit.yaml"} <= set(config_names())
    (tmp_path / "defaults.yaml").write_text("{}")
    assert find_config("defaults.yaml").resolve() == (tmp_path / "defaults.yaml").resolve()
    for call in (config_path, find_config):
        with pytest.raises(InputError, match=r"debug/overfit\.yaml"):
            call("none.yaml")


def test_an_installed_package_brings_its_own(tmp_path, monkeypatch):
    (tmp_path / "lit_insert/configs").mkdir(parents=True)
    (tmp_path / "lit_insert/configs/defaults.yaml").write_text("{}")
    monkeypatch.setattr("lit_insert.cli.configs.PACKAGE", tmp_path / "lit_insert")
    assert config_path("defaults.yaml") == tmp_path / "lit_insert/configs/defaults.yaml"


def test_twins_are_refused_at_any_depth(tmp_path):
    file = tmp_path / "x.yaml"
    file.write_text("a: 1\nb:\n- c: 1\n  d: {e: 1, e: 2}\n")
    with pytest.raises(InputError, match=r"x.yaml:4: key 'b.0.d.e' was already given in line 4"):
        check_yaml(file)
    file.write_text("a: {b: 1}\nc: {b: 1}\n")
    assert check_yaml(file) == {"a": {"b": 1}, "c": {"b": 1}}
    file.write_text("")
    assert check_yaml(file) == {}
    file.write_bytes(b"\xff\xfe\x00a")
    with pytest.raises(InputError, match="not valid YAML"):
        check_yaml(file)


def test_short_names_are_those_of_real_classes():
    from importlib import import_module

    names = short_names()
    assert {"EmbeddingOptimizerModule", "ScenesDataModule", "WarmupCosine", "EMA"} <= names.keys()
    for name in ("ScenesDataModule", "WarmupCosine", "EMA"):
        module, attribute = names[name].rsplit(".", 1)
        assert getattr(import_module(module), attribute).__name__ == name


def test_only_whole_values_are_expanded():
    path = short_names()["EMA"]
    assert expand_names(["--x=EMA", "EMA", "--EMA", "EMA=EMA", "EMAX"]) == [
        f"--x={path}",
        path,
        "--EMA",
        "EMA=EMA",
        "EMAX",
    ]
