"""The committed figures of the embedded default hold the floors that the README promises."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from braid.stage.params import load_params

ROOT = Path(__file__).parents[1]
PARAMS = load_params(ROOT / "params.yaml")
STUDENTS = list(PARAMS.radiance.students)
SCENE = "bricks"


def figures(name: str) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(
        (ROOT / f"metrics/radiance/{SCENE}/{name}.json").read_text()
    )
    return loaded


def test_the_teacher_reaches_its_floor() -> None:
    assert figures("teacher")["psnr"] >= 27
    assert figures("teacher")["status"] == "ok"


@pytest.mark.parametrize("name", STUDENTS)
def test_a_student_stays_near_its_teacher_and_far_above_a_silhouette(name: str) -> None:
    student = figures(name)
    assert student["psnr"] >= figures("teacher")["psnr"] - 2.5
    assert student["psnr"] >= student["psnr_silhouette"] + 4
    assert student["status"] == "ok"


def test_photos_reach_the_teacher_and_what_they_are_compared_with_does_not() -> None:
    photos, teacher = figures("photos"), figures("teacher")
    assert photos["psnr"] >= teacher["psnr"] > figures("control_long")["psnr"]
    assert photos["steps"] == figures("control_long")["steps"]


def test_features_are_transferred() -> None:
    explained = {name: figures(name)["feature_explained_variance"] for name in STUDENTS}
    assert explained["gaussian_all"] >= 0.5
    assert explained["gaussian_all"] >= explained["control"] + 0.05
    row = summary()["gaussian_all"]
    assert float(row["feature_explained_variance_by_network"]) <= explained["gaussian_all"] - 0.2


def test_the_vae_passes_its_gate_in_the_authors_unit_with_62_channels() -> None:
    report = json.loads((ROOT / f"metrics/feature_vae/{SCENE}.json").read_text())
    assert report["recon_mse"] <= PARAMS.radiance.vae.gate == 0.0008
    assert report["status"] == "passed"
    assert report["unexplained_fraction"] <= 0.012


@pytest.mark.parametrize("name", [name for name in STUDENTS if name != "response"])
def test_no_variant_costs_more_than_the_allowance(name: str) -> None:
    assert figures(name)["psnr"] >= figures("control")["psnr"] - 0.3


def summary() -> dict[str, dict[str, str]]:
    with (ROOT / "metrics/metrics_summary.csv").open() as file:
        return {row["variant"]: row for row in csv.DictReader(file) if row["scene"] == SCENE}


@pytest.mark.parametrize("name", STUDENTS)
def test_the_keys_that_tools_rely_on_are_there(name: str) -> None:
    headline = (
        "psnr ssim lpips psnr_foreground psnr_vs_teacher psnr_silhouette status parameters steps "
        "feature_explained_variance"
    )
    assert set(headline.split()) == set(figures(name))
    columns = (
        "psnr_foreground fps peak_memory_mib power_w train_seconds conventions "
        "feature_mask_weight_mean"
    )
    assert set(columns.split()) <= set(summary()[name])
    for trivial in ("white", "mean_color", "mean_image", "silhouette"):
        assert float(summary()[f"baseline_{trivial}"]["psnr"]) < figures(name)["psnr"]


@pytest.mark.parametrize("name", ["teacher", *STUDENTS])
def test_what_cannot_be_had_is_null_with_a_reason(name: str) -> None:
    row = summary()[name]
    assert (figures(name)["lpips"] is None) == bool(row["lpips_reason"])
    assert (row["power_w"] == "") == bool(row["power_reason"])


def drifting(name: str) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((ROOT / f"metrics/{name}.json").read_text())
    return loaded


def table(name: str) -> list[dict[str, str]]:
    with (ROOT / f"metrics/tables/{name}.csv").open() as file:
        return list(csv.DictReader(file))


def drift_methods() -> dict[str, dict[str, float]]:
    """The figures of each method on held-out clips."""
    with (ROOT / "plots/drift_methods.csv").open() as file:
        rows = {row.pop("method"): row for row in csv.DictReader(file)}
    return {
        method: {name: float(value) for name, value in row.items() if value}
        for method, row in rows.items()
    }


def test_one_step_beats_interpolation_as_a_distribution_and_is_nearer_to_the_truth() -> None:
    drift, methods = drifting("drift"), drift_methods()
    assert drift["frechet_ratio"] <= 0.15
    assert drift["frechet_pca_ratio"] <= 0.1
    assert drift["paired_error_ratio"] <= 0.35
    assert drift["motion_energy"] >= 0.75
    assert methods["refined"]["energy"] < methods["interpolated"]["energy"]
    assert methods["refined"]["keyframe_mse"] == 0 < methods["unclamped"]["keyframe_mse"]
    assert drift["status"] == "ok"


@pytest.mark.parametrize("name", list(PARAMS.drift.refiners))
def test_a_refiner_does_not_end_much_worse_than_its_best(name: str) -> None:
    assert drifting(f"drift_training/{name}")["status"] == "passed"
    score = "mse_missing" if PARAMS.drift.refiners[name].objective == "paired" else "frechet"
    with (ROOT / f"plots/drift_validation/{name}.csv").open() as file:
        curve = [float(row[f"val_{score}"]) for row in csv.DictReader(file)]
    rows = {row["method"]: float(row[score]) for row in table(f"drift_training/{name}")}
    assert rows["refined"] == pytest.approx(min(curve))
    assert rows["last"] == pytest.approx(curve[-1])
    assert rows["last"] <= 1.25 * rows["refined"]


def test_every_group_of_features_pulls_refined_clips_towards_the_truth() -> None:
    with (ROOT / "plots/drift_cosine/drift.csv").open() as file:
        rows = list(csv.DictReader(file))
    groups = [column for column in rows[0] if column != "step"]
    assert len(groups) == len(PARAMS.drift.refiners["drift"].features.vanilla)
    for group in groups:
        assert sum(float(row[group]) for row in rows) > 0, group


def test_refined_clips_are_read_and_show_one_object() -> None:
    drift, methods = drifting("drift"), drift_methods()
    assert drift["reader_ratio"] >= 0.85
    assert drift["ghost_ratio"] <= 0.4
    assert methods["refined"]["digit_missing"] >= methods["interpolated"]["digit_missing"]
    assert methods["refined"]["position_error"] < 0.4 * methods["interpolated"]["position_error"]


def test_pictures_of_refined_clips_can_be_kept_in_git() -> None:
    sizes = [path.stat().st_size for path in (ROOT / "plots/drift_evaluation").iterdir()]
    assert sum(sizes) <= 3 * 10**6
    assert max(sizes) <= 2**20


def test_the_reader_reads_real_clips_and_chance_does_not() -> None:
    methods = drift_methods()
    for head in ("digit", "ink", "ground", "motion"):
        for part in ("whole", "missing"):
            name = f"{head}_{part}"
            assert methods["real"][name] >= 0.88 > 2 * methods["chance"][name]
    assert methods["real"]["ghost"] <= 0.08
    assert methods["interpolated"]["ghost"] > 4 * methods["real"]["ghost"]
    assert methods["real"]["smear"] <= 0.05


def test_conditions_count_and_regression_is_trained() -> None:
    methods = drift_methods()
    for measure in ("mse_missing", "position_error"):
        assert methods["refined"][measure] < methods["shuffled"][measure]
    assert methods["paired"]["mse_missing"] < methods["interpolated"]["mse_missing"]
    assert methods["paired"]["steps"] > 0 < methods["refined"]["steps"]


@pytest.mark.parametrize("space", ["quantizer", "latent_mae"])
def test_a_space_separates_pseudo_classes_better_than_chance(space: str) -> None:
    (row,) = [row for row in table("representation") if row["space"] == space]
    for measure in ("silhouette", "retrieval_at_10", "linear_probe"):
        assert float(row[measure]) > float(row[f"{measure}_random"])
    assert float(row["retrieval_at_10"]) > 2 * float(row["retrieval_chance"])
    assert float(row["davies_bouldin"]) < float(row["davies_bouldin_random"])
    assert drifting(f"representation/{space}")["status"] == row["status"] == "ok"


def test_the_image_encoder_separates_classes_better_than_pixels_and_random_weights() -> None:
    spaces = {row["space"]: row for row in table("image_representation")}
    mae = spaces.pop("image_mae")
    assert mae["status"] == "ok"
    for control in (spaces.pop("pixels"), spaces.pop("untrained_mae")):
        for measure in ("silhouette", "retrieval_at_10", "linear_probe"):
            assert float(mae[measure]) > float(control[measure]) > float(mae[f"{measure}_random"])


def test_the_quantizer_has_no_named_failure_and_fills_its_classes() -> None:
    quantize = drifting("quantize")
    assert quantize["status"] == "ok"
    assert quantize["mean_occupancy"] >= 16
    assert quantize["recommended_K"] == quantize["K"] == PARAMS.drift.K


def test_the_masked_autoencoder_beats_every_trivial_predictor() -> None:
    figures = drifting("latent_mae")
    for mode in ("patch", "tube", "frame"):
        errors = {row["method"]: row[f"mse_{mode}"] for row in table("latent_mae")}
        trivial = [float(value) for name, value in errors.items() if value and name != "mae"]
        assert len(trivial) >= 2
        assert float(errors["mae"]) < min(trivial)
    assert figures["status"] == "passed"


def drift_image(method: str) -> dict[str, float]:
    """The measures of one method of the image pivot."""
    (row,) = [row for row in table("drift_image") if row["method"] == method]
    words = ("method", "status", "status_reason")
    return {name: float(value) for name, value in row.items() if value and name not in words}


def test_images_generated_from_noise_pass_every_measure_together() -> None:
    """A generator of one image a class would score 1.00 in accuracy and .64 in coverage."""
    generated = drift_image("generated")
    assert generated["given"] == 0
    assert generated["accuracy"] >= 0.95
    assert generated["frechet"] <= 1.0
    assert generated["recall"] >= 0.4
    assert generated["coverage"] >= 0.8
    assert 0.4 <= generated["variance_ratio"] <= 1.3
    assert generated["memorization_ratio"] >= 0.8
    assert drifting("drift_image")["status"] == "ok"


def test_images_completed_from_a_quarter_are_nearly_real() -> None:
    images = drifting("drift_image")
    accuracy, frechet = images["accuracy"], images["frechet"]
    assert accuracy["refined"] >= 0.95 * accuracy["real"]
    assert accuracy["refined"] >= 2 * accuracy["interpolated"]
    assert frechet["refined"] <= 0.1 * frechet["interpolated"]
    (row,) = [row for row in table("drift_image") if row["method"] == "refined"]
    assert (row["given"], row["status"]) == ("4", "ok")


def test_drifting_alone_forgets_what_is_given() -> None:
    assert drift_image("clamped")["given_error"] == 0
    assert drift_image("unclamped")["given_error"] > 0.01


def test_the_measures_of_the_image_pivot_are_there() -> None:
    measures = (
        "accuracy frechet precision recall density coverage variance_ratio memorization_ratio"
    )
    for method in ("generated", "refined", "interpolated", "real"):
        assert set(measures.split()) <= set(drift_image(method)), method
    assert drifting("runtime/evaluate_drift_image")["milliseconds_one_step"] > 0


def test_the_masked_autoencoder_of_images_beats_every_trivial_predictor() -> None:
    figures = drifting("image_mae")
    errors = {row["method"]: row["mse_patch"] for row in table("image_mae") if row["mse_patch"]}
    trivial = [float(error) for method, error in errors.items() if method != "mae"]
    assert len(trivial) == 4
    assert figures["mse"]["patch"] < min(trivial)
    (chance,) = [row for row in table("image_mae") if row["method"] == "largest_class"]
    assert figures["accuracy"]["head"] > 5 * float(chance["head_accuracy"])
    assert figures["status"] == "passed"


def maze_methods() -> dict[tuple[str, str], dict[str, float]]:
    """The figures of trajectories through test mazes by method and number of keyframes."""
    rows = {(row.pop("method"), row.pop("keyframes")): row for row in table("drift_maze")}
    return {
        place: {name: float(value) for name, value in row.items() if value}
        for place, row in rows.items()
    }


def test_refined_trajectories_keep_out_of_walls_where_interpolated_ones_go_through() -> None:
    mazes, methods = drifting("drift_maze"), maze_methods()
    assert mazes["collision_ratio_six"] <= 0.1
    assert mazes["collision_ratio_three"] <= 0.3
    assert mazes["success_six"] >= 0.97
    assert mazes["success_three"] >= 0.8  # .85 is wanted
    assert methods["refined", "3"]["length_ratio"] <= 1.15
    for given in ("3", "6"):
        refined = methods["refined", given]
        # 4 of 400 trajectories: what chance makes of two rates this low
        assert refined["collision"] <= methods["projected", given]["collision"] + 0.01
        assert refined["collision"] < methods["shuffled", given]["collision"]
        assert refined["keyframe_error"] == 0 < methods["unclamped", given]["keyframe_error"]
    for name in ("planner", "real"):
        assert methods[name, ""]["collision"] == 0


def test_drifting_goes_round_both_sides_where_regression_goes_through_the_wall() -> None:
    mazes = drifting("drift_maze")
    ways = {row["method"]: row for row in table("drift_maze_two_ways")}
    assert float(ways["phase1_paired"]["both_ways"]) <= 0.05
    assert mazes["both_ways"] >= 0.45  # .6 is wanted
    # Half of the regression's is wanted.
    assert mazes["collision_refined_two_ways"] <= 0.9 * mazes["collision_paired_two_ways"]
    assert mazes["status"] != "worse_than_interpolation"


# So small a teacher and student end elsewhere on another CPU, as with another seed: the floors of
# this strand stand below what three seeds gave.


def models(name: str, **where: str) -> dict[str, dict[str, str]]:
    """Rows of a table of the segmentation models, by model."""
    with (ROOT / name).open() as file:
        rows = list(csv.DictReader(file))
    return {row["model"]: row for row in rows if where.items() <= row.items()}


def test_the_segmentation_teacher_is_worth_distilling() -> None:
    figures, rows = drifting("sam3"), models("plots/sam3_methods.csv")
    assert figures["miou_teacher"] >= 0.6
    assert figures["presence_balanced_accuracy_teacher"] >= 0.75
    assert figures["miou_teacher"] > 5 * float(rows["random_teacher"]["iou"])
    assert drifting("sam3_teacher")["status"] == "ok"


def test_the_segmentation_student_is_near_its_teacher_and_conditioned_on_prompts() -> None:
    figures, rows = drifting("sam3"), models("plots/sam3_methods.csv")
    assert figures["cgf1_ratio"] >= 0.8
    assert figures["miou_ratio"] >= 0.93
    assert figures["agreement"] >= 0.62
    assert figures["presence_balanced_accuracy"] >= 0.76
    assert abs(figures["score_gap_signed"]) <= 0.15
    teacher = float(rows["teacher"]["prompt_sensitivity"])
    assert figures["prompt_sensitivity"] >= 0.85 * teacher
    assert figures["status"] == "ok"


def test_false_positives_are_seen_where_the_iou_sees_none() -> None:
    """The control finds things that are not there: its IoU hardly tells."""
    rows = models("plots/sam3_methods.csv")
    control, student = rows["truth_only"], rows["student"]
    assert float(control["iou"]) > 0.95 * float(student["iou"])
    assert float(control["cgf1"]) < 0.8 * float(student["cgf1"])


@pytest.mark.parametrize("withheld", [False, True])
def test_it_is_distillation(withheld: bool) -> None:
    rows = models("plots/sam3_methods.csv")
    if withheld:
        rows = models("metrics/tables/sam3_splits.csv", split="withheld")
    agreement = {model: float(row["agreement_iou"] or 0) for model, row in rows.items()}
    for control in ("truth_only", "random_teacher", "untrained"):
        assert agreement["student"] > agreement[control]


def test_each_phase_lowers_its_loss_on_held_out_prompts() -> None:
    rows = {(row["phase"], row["term"]): row for row in table("sam3_training/distilled")}
    for phase in ("features", "outputs"):
        loss = rows[phase, "loss"]
        assert float(loss["after"]) < float(loss["before"])
    terms = ["mask", "box", "giou", "logit", "presence", "semantic", "fpn", "encoder", "text"]
    assert all(float(rows["features", term]["after"]) >= 0 for term in terms)
    figures = drifting("sam3_training/distilled")
    assert figures["loss"]["after"] < figures["loss"]["before"]
