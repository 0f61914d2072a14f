"""Fit a 3D Gaussian teacher to a scene, or take the user's own .ply.

Writes models/teacher/<scene>/point_cloud.ply (3DGS layout). Half a minute for the built-in scene.
"""

from braid.radiance.fitting.fitting import Fit, FitSettings, fit
from braid.radiance.gaussians.gaussians import load_ply, save_ply
from braid.radiance.scenes.blender import load_views
from braid.stage.context import open_stage
from braid.training.device import set_up

COLUMNS = ("step", "loss", "psnr", "count")  # of the curve, which a user's own .ply leaves empty


def main() -> None:
    """Run the stage."""
    with open_stage("fit_teacher") as stage:
        (name,) = stage.item
        hardware, cadence = stage.params.hardware, stage.params.cadence
        device = set_up(hardware.device, hardware.threads, stage.params.seed)
        source = stage.params.scenes[name].teacher
        settings = FitSettings(**stage.params.teacher.model_dump(), log_interval=cadence.log_every)
        train = load_views(stage.dep("data/scenes"), "train").to(device)
        if source.endswith(".ply"):
            fitted = Fit(load_ply(stage.dep(source)), history=[])
        else:
            fitted = fit(
                train.cameras,
                train.rgba,
                settings,
                seed=stage.params.seed,
                checkpoint=stage.scratch() / "fit.pt",
                checkpoint_interval=cadence.checkpoint_every,
            )
        save_ply(stage.out("models/teacher"), fitted.gaussians)
        stage.write_curve("plots/teacher", fitted.history, columns=COLUMNS)


if __name__ == "__main__":
    main()
