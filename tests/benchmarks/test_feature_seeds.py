"""Means and intervals over seeds, differences within a seed."""

from __future__ import annotations

import math

import pandas as pd
import pytest

from benchmarks.feature_seeds import effects


def test_a_variant_is_compared_with_the_control_of_its_seed_and_length() -> None:
    psnr = {
        "control": [30.0, 31.0, 29.0],
        "sh": [30.1, 31.2, 29.3],
        "photos": [31.5, 31.6, 31.7],
    }
    table = pd.DataFrame(
        [
            {"variant": name, "seed": seed, "psnr": value}
            for name, values in psnr.items()
            for seed, value in enumerate(values)
        ]
    )
    lengths = {"control": 1.0, "sh": 1.0, "photos": 5.0}
    rows = effects(table, 31.4, lengths).set_index("variant")
    assert rows.loc["control", "gain"] == 0
    assert rows.loc["sh", "gain"] == pytest.approx(0.2)
    # t of 2 degrees of freedom at 97.5 % times .1 / sqrt(3)
    assert rows.loc["sh", "gain_half"] == pytest.approx(4.3027 * 0.1 / math.sqrt(3), rel=1e-4)
    assert rows.loc["photos", "teacher"] == pytest.approx(0.2)
    assert rows.loc["photos", "teacher_half"] == pytest.approx(
        4.3027 * 0.1 / math.sqrt(3), rel=1e-4
    )
    assert math.isnan(rows.loc["photos", "gain"])
