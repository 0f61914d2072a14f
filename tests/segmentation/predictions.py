"""Random predictions, without a model, for the tests of matching and losses."""

from dataclasses import fields, replace

import torch

from braid.segmentation.sam3.sam3 import Prediction


def random_prediction(prompts=2, queries=5, side=12, seed=0, features=None):
    """Logits of a few units, boxes with an area; `features`: [channels, finest side, images]."""
    source = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=source)

    center, half = torch.rand(2, prompts, queries, 2, generator=source) * 0.4 + 0.05
    fpn, encoder, text, attention = (), None, None, None
    if features:
        channels, finest, images = features
        fpn = tuple(normal(images, channels, finest // k, finest // k) for k in (1, 2, 4))
        encoder = normal(prompts, channels, finest // 4, finest // 4)
        text = normal(prompts, 5, channels)
        attention = (torch.arange(5) < torch.arange(prompts)[:, None] % 4 + 2).long()
    return Prediction(
        masks=3 * normal(prompts, queries, side, side),
        boxes=torch.cat([center + 0.2 - half / 2, center + 0.2 + half / 2], -1),
        logits=2 * normal(prompts, queries),
        presence=2 * normal(prompts, 1),
        semantic=3 * normal(prompts, 1, side, side),
        fpn=fpn,
        encoder=encoder,
        text=text,
        attention=attention,
    )


def mapped(prediction, change):
    """Each tensor of a prediction changed alike."""
    tensors = {field.name: getattr(prediction, field.name) for field in fields(prediction)}
    return Prediction(
        **{
            name: tuple(map(change, value)) if isinstance(value, tuple) else change(value)
            for name, value in tensors.items()
            if value is not None
        }
    )


def with_queries(prediction, chosen):
    """Some queries of every prompt, in that order."""
    names = ("masks", "boxes", "logits")
    return replace(prediction, **{name: getattr(prediction, name)[:, chosen] for name in names})


def with_prompt(prediction, prompt):
    """One prompt alone; features of as many images as prompts."""
    return mapped(prediction, lambda tensor: tensor[prompt : prompt + 1])


def learning(prediction):
    """The same numbers as leaves that take a gradient."""

    def leaf(tensor):
        return tensor.detach().clone().requires_grad_(tensor.is_floating_point())

    return mapped(prediction, leaf)


def leaves(prediction):
    """All tensors of real numbers, the features' too."""
    tensors = []
    mapped(prediction, lambda tensor: tensors.append(tensor) or tensor)
    return [tensor for tensor in tensors if tensor.is_floating_point()]
