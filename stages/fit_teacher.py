"""Fit a 3D Gaussian teacher to a scene, or take a .ply, .splat or .spz once it is verified.

Writes models/teacher/<scene>/point_cloud.ply (3DGS layout). Half a minute for the built-in scene.
"""

from braid.common.config import BUILT_IN
from braid.radiance.fitting.fitting import COLUMNS, Fit, fit
from braid.radiance.gaussians.compressed import load_gaussians
from braid.radiance.gaussians.field import turned_to, verified
from braid.radiance.gaussians.gaussians import save_ply
from braid.radiance.scenes.blender import load_views
from braid.stage.context import open_stage


def main() -> None:
    """Run the stage."""
    with open_stage("fit_teacher") as stage:
        (name,) = stage.item
        config, run = stage.params.radiance, stage.training()
        source = config.scenes[name].teacher
        train = load_views(stage.dep("data/scenes"), "train").to(run.device)
        if source == BUILT_IN:
            fitted = fit(train.cameras, train.rgba, config.teacher, run)
        else:
            own = load_gaussians(stage.dep(source)).to(run.device)
            own = turned_to(train, own) if source.endswith(".spz") else own
            fitted = Fit(verified(own, train, config.own_teacher), history=[])
        save_ply(stage.out("models/teacher"), fitted.gaussians)
        stage.write_table("plots/teacher", fitted.history, COLUMNS)


if __name__ == "__main__":
    main()
