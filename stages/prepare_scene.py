"""Bring one scene into Blender format: a built-in one, or a folder of the user's own.

Writes data/scenes/<scene>. Seconds.
"""

from braid.radiance.config import BUILT_IN_SCENES
from braid.radiance.scenes.blender import downsample, load_scene, save_views
from braid.radiance.scenes.bricks import made_scene
from braid.stage.context import open_stage


def main() -> None:
    """Run the stage."""
    with open_stage("prepare_scene") as stage:
        (name,) = stage.item
        scene = stage.params.radiance.scenes[name]
        if scene.source in BUILT_IN_SCENES:
            splits = made_scene(scene.source, stage.params.radiance.bricks, stage.params.seed)
        else:
            splits = load_scene(stage.dep(scene.source))
        for split, views in splits.items():
            save_views(stage.out("data/scenes"), split, downsample(views, scene.downsample))


if __name__ == "__main__":
    main()
