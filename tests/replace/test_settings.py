import pytest

from lit_insert.errors import InputError
from lit_insert.replace.settings import ReplaceSettings


@pytest.mark.parametrize(
    ("key", "value"),
    [("region_scale", 1.0), ("grow", 0.2), ("grow", -0.1), ("colour_strength", 1.5), ("scale", 0.0)],
)
def test_values_out_of_range_are_named(key, value):
    with pytest.raises(InputError, match=rf"{key} is {value:g}; give"):
        ReplaceSettings(**{key: value})
