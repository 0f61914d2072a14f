"""Bring one scene into Blender format: the built-in bricks, or a folder of the user's own.

Reads the scene's `source` and writes data/scenes/<scene>. Seconds.
"""

from braid.radiance.scenes.blender import Views, load_views, resize, save_views
from braid.radiance.scenes.bricks import make_bricks
from braid.stage.context import open_stage

SPLITS = ("train", "val", "test")


def main() -> None:
    """Run the stage."""
    with open_stage("prepare_scene") as stage:
        (name,) = stage.item
        scene = stage.params.scenes[name]
        bricks = stage.params.bricks
        if scene.source.endswith("bricks.py"):
            counts = {split: getattr(bricks, split) for split in SPLITS}
            scene_views = make_bricks(
                bricks.width, counts, seed=stage.params.seed, supersample=bricks.supersample
            )
        else:
            source = stage.dep(scene.source)
            has_val = (source / "transforms_val.json").exists()
            splits = SPLITS if has_val else ("train", "test")
            scene_views = {split: load_views(source, split) for split in splits}
            _require_one_size(scene.source, scene_views)
        for split, views in scene_views.items():
            save_views(stage.out("data/scenes"), split, _downsampled(views, scene.downsample, name))


def _require_one_size(source: str, scene_views: dict[str, Views]) -> None:
    sizes = {
        split: f"{views.cameras.width}x{views.cameras.height}"
        for split, views in scene_views.items()
    }
    if len(set(sizes.values())) > 1:
        raise ValueError(f"{source}: expected one image size in all splits, got {sizes}")


def _downsampled(views: Views, factor: int, name: str) -> Views:
    try:
        return resize(views, views.cameras.width // factor)
    except ValueError as error:
        raise ValueError(f"scenes.{name}.downsample: {error}") from None


if __name__ == "__main__":
    main()
