"""Make clips from prompts alone, in two network calls, and evaluate those of held-out prompts.

Writes the clips that were asked for, figures by method, and pictures. Half a minute.
"""

from braid.clips.codec.codec import decoder
from braid.clips.preparation.moving_digits import read_words
from braid.clips.preparation.storyboards import open_prompts
from braid.clips.shards.dataset import open_clips
from braid.drifting.evaluation.clips import Sample
from braid.drifting.evaluation.text_to_clip import (
    Pipeline,
    draw_each,
    draw_generated,
    evaluate,
    headline,
    write_generated,
)
from braid.drifting.video.corruption import Corruption
from braid.drifting.video.keyframes import load_keyframe_generator
from braid.drifting.video.refiner import load_refiner
from braid.pseudo_classes.quantizer import load_quantizer
from braid.stage.context import open_stage


def main() -> None:
    """Run the stage."""
    with open_stage("generate_clips") as stage:
        params, device = stage.params.drift, stage.device()
        config, reading = params.text_to_clip, params.evaluation
        quantizer = load_quantizer(stage.dep("models/quantizer"))
        clips = open_clips(stage.dep("data/clips"), text=quantizer.text)
        own = open_prompts(stage.optional_dep(config.prompts), clips)
        train = Sample.of(clips, "train", reading.train_clips, read_words)
        test = Sample.of(clips, "test", config.test_clips, read_words)
        network, paired = (
            load_keyframe_generator(stage.dep(f"models/keyframes/{name}")).to(device)
            for name in (config.keyframes, config.paired)
        )
        refiner = load_refiner(stage.dep(f"models/drift/{reading.refiner}")).to(device)
        corruption = Corruption(clips.shape[1], params.corruption)
        models = quantizer.encoder.of_some, quantizer.label, corruption, network, refiner
        pipeline = Pipeline(*models, (config.alpha, reading.alpha), stage.params.seed)
        wan_vae = stage.optional_dep(stage.params.clips.wan_vae)
        decode = decoder(clips.codec, train.latents, wan_vae)
        evaluation = evaluate(pipeline, paired, test, train, decode, reading)
        stage.write_metrics(headline(evaluation.figures))
        rows = [{"method": name, **row} for name, row in evaluation.figures.items()]
        stage.write_table("metrics/tables", rows)
        pictures = stage.out("plots/text_to_clip")
        draw_generated(pictures, evaluation, test, config, decode)

        asked = own or (test.prompts, test.texts)
        made = pipeline(own[1]).clips if own else evaluation.clips["generated"]
        write_generated(stage.out("data/generated"), asked[0], made)
        draw_each(pictures, own[0] if own else [], made, decode)


if __name__ == "__main__":
    main()
