"""Which params of the strand are refused, and by which name."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from braid.segmentation.config import DataConfig, PromptsConfig
from braid.stage.params import check_params, load_yaml

PARAMS = Path(__file__).parents[2] / "params.yaml"

DATA = {
    "source": "built_in",
    "faults": "skip",
    "val": 2,
    "test": 2,
    "image_size": 56,
    "cache_mib": 0,
}
PROMPTS = {
    "kinds": ["generic", "box"],
    "generic": "all",
    "phrases": [],
    "phrases_file": "none",
    "per_image": 3,
    "negative_fraction": {"category": 0.5, "box": 0.5, "caption": 0.0},
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
        (DataConfig, DATA, "test", 1),
        (DataConfig, DATA, "image_size", 100),  # SAM3's patches have 14 pixels
        (PromptsConfig, PROMPTS, "kinds", ["boxes"]),
        (PromptsConfig, PROMPTS, "generic", ""),
        (PromptsConfig, PROMPTS, "per_image", 0),
        (PromptsConfig, PROMPTS, "negative_fraction", {"category": 1.0, "box": 0, "caption": 0}),
        (PromptsConfig, PROMPTS, "negative_fraction", 0.5),  # of each kind
        (PromptsConfig, PROMPTS, "phrases", ["dog"]),  # of a kind that is not there
        (PromptsConfig, PROMPTS, "phrases", [" "]),
    ],
)
def test_an_impossible_value_is_refused_by_its_key(model, params, key, value):
    with pytest.raises(ValidationError, match=key):
        model(**{**params, key: value})


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("evaluation.student", "nope", "sam3: .*evaluation.student is nope, expected a student: d"),
        ("evaluation.truth_only", "nope", "sam3: .*evaluation.truth_only is nope, expected a stud"),
        (
            "data.val",
            5000,
            r"sam3: .*val and data.test are 5128 together, expected less than the 1440 built-in im",
        ),
    ],
)
def test_params_that_do_not_fit_together_are_refused_before_any_stage(key, value, message):
    params = load_yaml(PARAMS)
    section, name = key.split(".")
    params["sam3"][section][name] = value
    with pytest.raises(ValueError, match=message) as refused:
        check_params(params, "params.yaml")
    assert "\n" not in str(refused.value)
    params["sam3"]["data"]["source"] = "/data/sa1b"  # of which as many may be there
    if name == "val":
        assert check_params(params, "params.yaml").sam3.data.val == value
