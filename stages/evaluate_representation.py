"""Judge the quantiser's space and the latent MAE's: separation, retrieval, collapse, kernel.

Writes metrics/representation/<space>.json and pictures. Twenty seconds for the built-in clips.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from braid.clips.decoding.decoding import decoder
from braid.clips.shards.shards import Clips, open_clips
from braid.common.rng import generator, seed_global_stream
from braid.drifting.mae.latent_mae import LatentMae, load_latent_mae
from braid.drifting.video.features import ClipFeatures
from braid.pseudo_classes.kmeans import kmeans
from braid.pseudo_classes.quantizer import load_pseudo_classes, load_quantizer
from braid.representation.evaluation import Space, judge, standardised
from braid.representation.pictures import Shown, draw_album, strip
from braid.representation.samples import Encode, Sample, read_sample
from braid.stage.context import open_stage
from braid.stage.records import write_json
from braid.training.device import set_up


def main() -> None:
    """Run the stage."""
    with open_stage("evaluate_representation") as stage:
        hardware, seed = stage.params.hardware, stage.params.seed
        settings = stage.params.representation
        device = set_up(hardware.device, hardware.threads, seed)
        clips = open_clips(stage.dep("data/clips"))
        pseudo = load_pseudo_classes(stage.dep("data/pseudo_classes"))
        pooling = load_quantizer(stage.dep("models/quantizer")).encoder.pooling
        mae = load_latent_mae(stage.dep("models/latent_mae"))
        seed_global_stream(generator(seed, "untrained"))
        untrained = LatentMae(mae.channels, mae.width, mae.blocks)  # the trained one's control
        sample, features = read_sample(
            clips,
            pseudo,
            pooling,
            {
                "latent_mae": _encoder(mae, device),
                "untrained_mae": _encoder(untrained, device),
            },
            count=settings.clips,
            families=settings.families,
            draw=generator(seed, "sample"),
        )
        h = pseudo.embedding[sample.indices].numpy()
        spaces = {"quantizer": Space(h, h)} | {
            name: Space(each, standardised(each, settings.components))
            for name, each in features.items()
        }
        clustering = stage.params.quantizer.model_dump(exclude={"min_count"})

        def cluster(points: Tensor, draw: torch.Generator) -> Tensor:
            return kmeans(points, pseudo.classes, **clustering, generator=draw).labels

        judged = {
            name: judge(
                space,
                sample,
                temperatures=stage.params.drift.temperatures,
                neighbours=settings.neighbours,
                cluster=cluster,
                resamples=settings.bootstrap,
                seed=seed,
            )
            for name, space in spaces.items()
        }
        for name, each in judged.items():
            write_json(stage.out(f"metrics/representation/{name}.json"), each.figures)
        draw_album(
            stage.out("plots/representation"),
            sample,
            {name: (spaces[name], judged[name]) for name in ("quantizer", "latent_mae")},
            _show(clips, sample, stage.params.decoding.wan_vae, device),
            method=settings.map,
            map_clips=settings.map_clips,
            classes=settings.exemplar_classes,
            seed=seed,
        )


def _show(
    clips: Clips, sample: Sample, wan_vae: str | None, device: torch.device
) -> Callable[[int, str], Shown]:
    """What a clip at a place of the sample looks like, framed in a colour."""
    examples = clips.latents(sample.indices[:16])
    decode = decoder(clips.codec, examples=examples, wan_vae=wan_vae)

    def show(place: int, colour: str) -> Shown:
        latents = clips.latents(sample.indices[[place]]).to(device)
        return Shown(strip(decode(latents)[0]), sample.prompts[place], colour)

    return show


def _encoder(mae: LatentMae, device: torch.device) -> Encode:
    encode = ClipFeatures(mae, families=("clip", "motion")).to(device)
    return lambda latents: encode(latents.to(device))


if __name__ == "__main__":
    main()
