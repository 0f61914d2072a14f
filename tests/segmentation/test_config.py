"""Which params of the strand are refused, and by which name."""

import pytest
from pydantic import ValidationError

from braid.segmentation.config import DataConfig, PromptsConfig

DATA = {"source": "built_in", "faults": "skip", "val": 2, "image_size": 56, "cache_mib": 0}
PROMPTS = {
    "kinds": ["generic", "box"],
    "generic": "all",
    "per_image": 3,
    "negative_fraction": 0.5,
    "withheld": ["red star"],
}


def test_possible_params_are_taken():
    assert DataConfig(**DATA).val == 2
    config = PromptsConfig(**PROMPTS)
    assert (config.kinds, config.withheld) == (("generic", "box"), ("red star",))


@pytest.mark.parametrize(
    ("model", "params", "key", "value"),
    [
        (DataConfig, DATA, "val", 1),  # chance is taken from another image
        (DataConfig, DATA, "image_size", 100),  # SAM3's patches have 14 pixels
        (PromptsConfig, PROMPTS, "kinds", ["box", "box"]),
        (PromptsConfig, PROMPTS, "generic", ""),
        (PromptsConfig, PROMPTS, "per_image", 0),
        (PromptsConfig, PROMPTS, "negative_fraction", 1.0),
    ],
)
def test_an_impossible_value_is_refused_by_its_key(model, params, key, value):
    with pytest.raises(ValidationError, match=key):
        model(**{**params, key: value})
