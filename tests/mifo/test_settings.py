import pytest

from lit_insert.errors import InputError
from lit_insert.mifo.settings import SynthesisSettings, changed


def test_settings_nest_and_what_is_not_named_stays():
    settings = SynthesisSettings.of({"guidance_scale": 3, "guidance": {"step_size": [60, 20]}})
    assert settings.guidance.step_size == (60.0, 20.0)
    assert settings.guidance.iterations == 5
    assert settings.num_inference_steps == 50
    more = changed(settings, {"guidance": {"iterations": 2}, "num_inference_steps": None})
    assert (more.guidance.step_size, more.guidance.iterations, more.num_inference_steps) == ((60.0, 20.0), 2, 50)
    assert settings.guidance.iterations == 5
    assert SynthesisSettings.of(more.plain()) == more


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"guidance": {"step_sizes": 1}}, r"guidance.step_sizes; did you mean guidance.step_size\?"),
        ({"zzz": 1}, "is called zzz; there are num_inference_steps"),
        ({"end_tokens": "me"}, "end_tokens is 'me'"),
        ({"num_inference_steps": 0}, "at least 1"),
    ],
)
def test_mistakes_are_named(given, message):
    with pytest.raises(InputError, match=message):
        SynthesisSettings.of(given)
