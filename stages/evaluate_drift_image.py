"""Evaluate refined and generated images by a classifier of its own and beside real held-out images.

Writes metrics/drift_image.json, tables of methods, corruption levels and guidance, and pictures.
Three seconds for the built-in digits.
"""

from braid.common.rng import generator
from braid.drifting.evaluation.images import (
    Completion,
    ImageEvaluator,
    alpha_table,
    headline,
    levels_table,
    methods_table,
    score,
)
from braid.drifting.evaluation.pictures import draw_completions, of_each_class
from braid.drifting.image.refiner import KeypatchCorruption, load_image_refiner
from braid.images.data.image_set import open_image_set
from braid.images.latents.sd_vae import decoder
from braid.stage.context import open_stage


def main() -> None:
    """Run the stage."""
    with open_stage("evaluate_drift_image") as stage:
        params, seed, device = stage.params.image_drift, stage.params.seed, stage.device()
        config = params.evaluation
        images = open_image_set(stage.dep("data/images"), cache_mib=stage.params.images.cache_mib)
        decode = decoder(images.input_space, stage.optional_dep(stage.params.images.sd_vae))
        truth, classes = images.subset("test", config.test_images)
        train = images.subset("train", config.train_images)
        evaluator = ImageEvaluator(*train, truth, classes, config)
        refiner = load_image_refiner(stage.dep("models/drift_image")).to(device)
        corruption = KeypatchCorruption(truth.shape[2:], refiner.config.patch, params.corruption)
        refiner.require(images.shape, images.classes, corruption.levels + 1)

        completion = Completion(refiner, corruption, truth, classes, generator(seed, "test images"))
        completed = completion(config.alpha)
        levels = score(evaluator, completed)
        real = evaluator.real(generator(seed, "real images"))
        methods = methods_table(levels, real, completion.refined, len(truth))
        sweep = alpha_table(evaluator, completion, config.alphas, params.batches.alpha_max)
        stage.write_metrics(headline(methods))
        stage.write_table("metrics/tables", methods)
        stage.write_table("plots/drift_image_levels.csv", levels_table(levels, real))
        stage.write_table("plots/drift_image_alpha.csv", sweep)
        stage.runtime["milliseconds_one_step"] = completion.milliseconds(config.alpha)

        pictures = stage.out("plots/drift_image_evaluation")
        pictures.mkdir()
        shown = of_each_class(classes, config.samples)
        names = [images.class_names[label] for label in classes[shown[:, 0]].tolist()]
        draw_completions(pictures, completed, completion.refined, truth, shown, names, decode)


if __name__ == "__main__":
    main()
