"""Every key is known, checked and read."""

import dataclasses
from pathlib import Path

import pytest
import yaml

from lit_insert.cli.configs import check_yaml
from lit_insert.errors import InputError
from lit_insert.grounding.settings import GroundingSettings, settings_from

CONFIGS = Path(__file__).parents[2] / "configs" / "grounding"


def keys(values, above=""):
    for name, value in values.items():
        yield from keys(value, f"{above}{name}.") if isinstance(value, dict) else [f"{above}{name}"]


def test_the_documented_defaults_are_the_defaults():
    given = check_yaml(CONFIGS / "default.yaml")
    assert settings_from(given) == GroundingSettings()
    left_out = {"entities.excluded", "entities.qualifiers"}  # long lists, named in a comment
    assert set(keys(GroundingSettings().as_dict())) - set(keys(given)) == left_out


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda p: p.name)
def test_every_configuration_of_the_package_is_right(path):
    assert isinstance(settings_from(check_yaml(path), origins=(str(path),)), GroundingSettings)


def test_later_layers_win():
    found = settings_from({"nms": {"iou": 0.5, "part": 0.1}}, {"nms": {"iou": 0.6}})
    assert (found.nms.iou, found.nms.part, found.nms.containment) == (0.6, 0.1, 0.9)


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        ({"segmentor": {}}, "unknown key 'segmentor'; did you mean segmenter"),
        ({"nms": {"iuo": 1}}, "unknown key 'nms.iuo'; did you mean nms.iou"),
        ({"nms": 3}, "nms is 3; it is a section"),
        ({"nms": {"iou": "high"}}, "nms.iou is 'high'; give a number"),
        ({"verify": {"enabled": 1}}, "verify.enabled is 1; give true or false"),
        ({"segmenter": {"chunk": 2.5}}, "segmenter.chunk is 2.5; give a whole number"),
        ({"segmenter": {"chunk": True}}, "segmenter.chunk is True"),
        ({"entities": {"excluded": "light"}}, "entities.excluded is 'light'; give a list of texts"),
        ({"segmenter": {"threshold": 1.5}}, "segmenter.threshold is 1.5"),
        ({"segmenter": {"backend": "sam"}}, "segmenter.backend is 'sam'; give one of sam3"),
        ({"embedder": {"dtype": "half"}}, "embedder.dtype is 'half'"),
        ({"output": {"exports": ["voc"]}}, "output.exports has 'voc'"),
        ({"pairing": {"labels": "no"}}, "pairing.labels"),
    ],
)
def test_mistakes_name_the_key(layer, message):
    with pytest.raises(InputError) as error:
        settings_from({}, layer, origins=("a.yaml", "command line"))
    assert message in str(error.value)


def test_every_documented_setting_has_a_line_of_help():
    for part in (
        GroundingSettings,
        *(type(v) for v in vars(GroundingSettings()).values() if dataclasses.is_dataclass(v)),
    ):
        for field in dataclasses.fields(part):
            assert f"        {field.name}: " in (part.__doc__ or ""), f"{part.__name__}.{field.name}"


def test_a_round_trip_through_yaml():
    settings = settings_from({"segmenter": {"threshold": 0.25}, "output": {"exports": ["yolo-seg"]}})
    assert settings_from(yaml.safe_load(yaml.safe_dump(settings.as_dict()))) == settings
    assert settings["segmenter.threshold"] == 0.25
