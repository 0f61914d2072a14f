"""EfficientSAM3: a `Sam3Model` with the teacher's heads and encoders a tenth of its size.

The heads (geometry encoder, DETR encoder and decoder, mask decoder, scoring) are SAM3's own (Carion
et al. 2025) with fewer queries. The image encoder is a mobile backbone with a feature pyramid, the
text encoder transformers' lite one, that of MobileCLIP (Vasu et al. 2024). With RepViT-M2.3, 6 text
layers and 100 queries that makes 100.2 M parameters: 22.4 backbone, 2.7 pyramid, 42.4 text encoder,
32.7 heads.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from braid.common.config import Config, Count
from braid.common.io import load_model, save_model
from braid.common.torchvision import mend_torchvision
from braid.segmentation.config import ArchitectureConfig
from braid.segmentation.sam3.checkpoint import TEXT
from braid.segmentation.sam3.geometry import spread
from braid.segmentation.sam3.predictor import (
    load_tokenizer,
    save_tokenizer,
    text_length,
    word_tokenizer,
    words_in,
)

HEADS = ("geometry_encoder", "detr_encoder", "detr_decoder", "mask_decoder")  # with a config each
TRANSFERRED = (*HEADS, "dot_product_scoring")
QUERIES = ("detr_decoder.query_embed.weight", "detr_decoder.reference_points.weight")
IDS = ("bos_token_id", "eos_token_id", "pad_token_id")
HEAD_CHANNELS = 64  # of one attention head of the text encoder, as in MobileCLIP


class _OfTeacher(Config):
    """What a student takes over: the teacher's interface, its own tokenizer's size."""

    heads: dict[str, Any]  # of `heads_of`
    vocabulary: Count  # tokens of the student's tokenizer
    context: Count  # tokens of a prompt, at most
    image_size: Count  # pixels a side
    kinds: Annotated[tuple[str, ...], Field(strict=False)]  # of the prompts it learned from


class StudentRecipe(ArchitectureConfig, _OfTeacher):
    """All that `build_student` needs to know, as config.json holds it."""


def heads_of(teacher: Any) -> dict[str, Any]:
    """The configurations of a `Sam3Model`'s heads; those of the student have the same."""
    parts = {name: getattr(teacher.config, f"{name}_config") for name in HEADS}
    return {name: json.loads(part.to_json_string()) for name, part in parts.items()}


def student_tokenizer(folder: Path | None, texts: Iterable[str], teacher: Any) -> Any:
    """A student's own tokenizer: that of a folder, or one of all words in some texts.

    Raises:
        ValueError: as `load_tokenizer`.
    """
    if folder is None:
        return word_tokenizer(words_in(texts), length=text_length(teacher))
    return load_tokenizer(folder)


def new_student(
    config: ArchitectureConfig,
    teacher: Any,
    tokenizer: Any,
    kinds: Iterable[str],  # of the prompts to learn from
    backbone_weights: Path | None = None,
    text_weights: Path | None = None,
) -> Any:
    """A student of this teacher, as `build_student` makes it, and with weights of its encoders.

    Raises:
        ValueError: as `build_student`, `load_backbone` and `load_text_encoder`.
    """
    architecture = {name: getattr(config, name) for name in ArchitectureConfig.model_fields}
    recipe = StudentRecipe(
        heads=heads_of(teacher),
        vocabulary=len(tokenizer),
        context=text_length(teacher),
        image_size=teacher.config.vision_config.image_size,
        kinds=tuple(kinds),
        **architecture,
    )
    student = build_student(recipe)
    if backbone_weights is not None:
        load_backbone(student.vision_encoder.backbone, backbone_weights)
    if text_weights is not None:
        load_text_encoder(student.text_encoder, text_weights)
    return student


def build_student(recipe: StudentRecipe) -> Any:
    """A `Sam3Model` that `predict` runs like the teacher, with weights from the global stream.

    It is in evaluation mode, and its images come in the teacher's normalization.

    Raises:
        ValueError: timm has no such backbone, or heads do not divide the text's width.
    """
    mend_torchvision()
    from transformers import Sam3Model

    config = _heads_config(recipe)
    width = config.detr_encoder_config.hidden_size
    model: Any = Sam3Model(config)
    model.vision_encoder = StudentVision(recipe.backbone, recipe.backbone_options, width)
    model.text_encoder = _text_encoder(recipe)
    model.recipe = recipe
    model.save_pretrained = _no_pretrained
    _initialize(model)
    if recipe.checkpointing:
        checkpoint_layers(_heavy_layers(model))
    return model.eval()


def save_student(folder: Path, student: Any, tokenizer: Any) -> None:
    """Write `model.safetensors`, `config.json` and the tokenizer; equal models give equal bytes."""
    save_model(folder, student, student.recipe.model_dump())
    save_tokenizer(folder / "tokenizer", tokenizer)


def load_student(folder: Path) -> Any:
    """Read a student, in evaluation mode; its tokenizer lies in `folder`/tokenizer.

    Raises:
        ValueError: a file is missing or broken; the message names the folder.
    """
    return load_model(folder, _rebuild, "student")[1].float()


def _no_pretrained(*_: Any, **__: Any) -> None:
    raise TypeError(
        "a student is no Sam3Model on disk: its weights would be left out when it is loaded as "
        "one; expected save_student, or Segmenter.save_pretrained"
    )


def _rebuild(**recipe: Any) -> Any:
    return build_student(StudentRecipe(**recipe))


def _heads_config(recipe: StudentRecipe) -> Any:
    """Of a `Sam3Model` with the heads wanted, and encoders of no size that are to be replaced."""
    from transformers import Sam3Config

    heads: dict[str, Any] = {f"{name}_config": dict(recipe.heads[name]) for name in HEADS}
    heads["detr_decoder_config"]["num_queries"] = recipe.queries
    width = heads["detr_encoder_config"]["hidden_size"]
    nothing = {"num_hidden_layers": 0, "num_attention_heads": 1, "intermediate_size": 1}
    text = {"hidden_size": recipe.text_width, "max_position_embeddings": recipe.context}
    tokens = {**text, "vocab_size": 1, "projection_dim": 1}
    vit = {"model_type": "sam3_vit_model", "hidden_size": 4, **nothing}
    return Sam3Config(
        vision_config={"backbone_config": vit, "fpn_hidden_size": width},
        text_config={"model_type": "clip_text_model", **tokens, **nothing, **dict.fromkeys(IDS, 0)},
        **heads,
    )


def _text_encoder(recipe: StudentRecipe) -> Any:
    """MobileCLIP's kind: RepMixer blocks first and last, transformer layers between them."""
    from transformers.models.sam3_lite_text import Sam3LiteTextTextConfig
    from transformers.models.sam3_lite_text.modeling_sam3_lite_text import Sam3LiteTextTextModel

    width = recipe.text_width
    heads = max(1, width // HEAD_CHANNELS)
    if width % heads:
        raise ValueError(
            f"sam3.student.text_width is {width}, expected less than {2 * HEAD_CHANNELS} "
            f"or a multiple of {HEAD_CHANNELS}"
        )
    config = Sam3LiteTextTextConfig(
        vocab_size=recipe.vocabulary,
        hidden_size=width,
        intermediate_size=4 * width,
        projection_dim=width,
        num_hidden_layers=recipe.text_layers,
        num_attention_heads=heads,
        max_position_embeddings=recipe.context,
    )
    return Sam3LiteTextTextModel(config)


@torch.no_grad()
def _initialize(student: Any) -> None:
    """Weights from which the new parts learn: the library's are meant to be loaded over.

    Those of the teacher's heads, where they are copied, come over these. timm's own are left.
    """
    for name, module in student.named_modules():
        if name.startswith("vision_encoder.backbone"):
            continue
        if isinstance(module, nn.Linear | nn.Conv2d):
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                module.bias.zero_()
        elif isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight)
    tokens = student.text_encoder.embeddings.token_embedding.weight
    tokens.div_(math.sqrt(tokens.shape[1]))  # a token weighs as much as its position
    references = student.detr_decoder.reference_points.weight
    references.copy_(spread(len(references)).logit())
    student.detr_decoder.box_head.layer3.weight.zero_()


def _heavy_layers(student: Any) -> list[nn.Module]:
    """Those whose activations fill the memory in training."""
    return [
        *student.vision_encoder.backbone.children(),
        *student.detr_encoder.layers,
        *student.detr_decoder.layers,
        student.mask_decoder.pixel_decoder,
    ]


# ---- The teacher's heads as a start, with as many of its queries as the student has ------------


@dataclass
class Transfer:
    """What was copied of the teacher's heads."""

    tensors: int = 0
    parameters: int = 0
    queries: list[int] = field(default_factory=list)  # of the teacher, the student's in order
    left_out: list[str] = field(default_factory=list)  # of the student's heads, not copied


@torch.no_grad()
def transfer_heads(
    student: Any,  # Sam3Model
    teacher: Any,  # Sam3Model
    usage: Tensor | None = None,  # [Qt] how often each of the teacher's queries detected something
) -> Transfer:
    """Copy the heads' weights whose names and shapes agree; the student's queries become the
    teacher's most used ones, or its first without `usage`. Nothing else changes.

    Raises:
        ValueError: `usage` is not one finite number for each of the teacher's queries.
    """
    weights = teacher.state_dict()
    transfer = Transfer(queries=most_used(usage, len(weights[QUERIES[0]]), student))
    for name, own in student.state_dict().items():
        if name.partition(".")[0] not in TRANSFERRED:
            continue
        given = weights.get(name)
        if name in QUERIES and given.shape[1:] == own.shape[1:]:
            given = torch.cat([given[transfer.queries], own[len(transfer.queries) :].to(given)])
        if given is None or given.shape != own.shape:
            transfer.left_out.append(name)
            continue
        own.copy_(given)
        transfer.tensors += 1
        transfer.parameters += own.numel()
    return transfer


def most_used(usage: Tensor | None, count: int, student: Any) -> list[int]:
    """The teacher's queries that the student takes, in the teacher's order."""
    if usage is None:
        usage = torch.zeros(count)
    if usage.shape != (count,) or not bool(usage.isfinite().all()):
        raise ValueError(
            f"query usage has shape {tuple(usage.shape)}, expected {count} finite numbers"
        )
    wanted = student.config.detr_decoder_config.num_queries
    order = usage.argsort(descending=True, stable=True)
    return sorted(order[:wanted].tolist())


# ---- Gradient checkpointing: layers whose activations are computed again in the backward pass
# (Chen et al. 2016, Training Deep Nets with Sublinear Memory Cost.) transformers checkpoints the
# layers of its ViT, not those of SAM3's heads, and timm's feature extractors know their own way;
# here is one way for both.


def checkpoint_layers(layers: Iterable[nn.Module]) -> None:
    """Checkpoint each layer wherever it is trained; values and gradients stay what they are.

    The second pass leaves the running statistics of batch normalisation alone. Layers keep their
    class, their name and their hooks. One without parameters is not worth it, and may be in place.
    """
    for layer in layers:
        if next(layer.parameters(), None) is not None:
            layer.forward = partial(_forward, layer, layer.forward)


def _forward(layer: nn.Module, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    if not (layer.training and torch.is_grad_enabled()):
        return forward(*args, **kwargs)
    return checkpoint(
        partial(forward, **kwargs),
        *args,
        use_reentrant=False,
        context_fn=lambda: (nullcontext(), unmoved_batch_norm(layer)),
    )


@contextmanager
def unmoved_batch_norm(model: nn.Module) -> Iterator[None]:
    """Within, batches leave no trace in the running statistics."""
    norms = batch_norms(model)
    before = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.momentum, norm.num_batches_tracked = 0.0, None
    try:
        yield
    finally:
        for norm, (momentum, count) in zip(norms, before, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, count


def batch_norms(model: nn.Module) -> list[_BatchNorm]:
    """All layers of batch normalization."""
    return [module for module in model.modules() if isinstance(module, _BatchNorm)]


# ---- The image encoder: a small backbone of timm under a feature pyramid ---------------------
# SAM3's heads take feature maps of four sizes and their sine position encodings
# (`Sam3VisionEncoderOutput`). The teacher makes all of them from the one grid of its ViT; here they
# are the stages of a convolutional backbone, RepViT (Wang et al. 2023) in the first place, at
# strides 4, 8, 16 and 32, joined by a feature pyramid (Lin et al. 2017, Feature Pyramid Networks).

STRIDES = (4, 8, 16, 32)
TEACHER_MEAN, TEACHER_STD = 0.5, 0.5  # of all three channels, as SAM3's processor has them


class Pyramid(nn.Module):
    """Feature maps of several sizes, each with what the coarser ones have; all `width` wide."""

    def __init__(self, channels: list[int], width: int) -> None:
        super().__init__()
        self.lateral = nn.ModuleList(nn.Conv2d(count, width, 1) for count in channels)
        self.output = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in channels)

    def forward(self, levels: list[Tensor]) -> list[Tensor]:
        """Levels finest first, [I, C_k, h_k, w_k] to [I, width, h_k, w_k]."""
        inner = [lateral(level) for lateral, level in zip(self.lateral, levels, strict=True)]
        for fine in range(len(inner) - 2, -1, -1):
            above = F.interpolate(inner[fine + 1], inner[fine].shape[2:])  # nearest: deterministic
            inner[fine] = inner[fine] + above
        return [output(level) for output, level in zip(self.output, inner, strict=True)]


class ChannelScale(nn.Conv2d):
    """A depthwise convolution with a 1 x 1 kernel as what it is: a scale and a shift of channels.

    On one CPU thread torch's own takes channel after channel.
    """

    def forward(self, features: Tensor) -> Tensor:
        """Features [I, C, h, w] to the same shape."""
        scaled = features * self.weight.view(-1, 1, 1)
        return scaled if self.bias is None else scaled + self.bias.view(-1, 1, 1)


class StudentVision(nn.Module):
    """What stands in a `Sam3Model` where `Sam3VisionModel` was."""

    gain: Tensor  # [3, 1, 1] from the teacher's normalization to the backbone's own
    offset: Tensor

    def __init__(
        self,
        backbone: str,  # of timm
        options: Mapping[str, Any],  # of its constructor
        width: int,  # channels of the heads
    ) -> None:
        """Build with random weights; nothing is downloaded.

        Raises:
            ValueError: timm has no such backbone, option or strides.
        """
        super().__init__()
        mend_torchvision()
        from transformers.models.sam3.modeling_sam3 import (
            Sam3SinePositionEmbedding,
            Sam3VisionEncoderOutput,
        )

        self.backbone, self.levels = make_backbone(backbone, options)
        channels = self.backbone.feature_info.channels()
        self.pyramid = Pyramid([channels[level] for level in self.levels], width)
        self.position = Sam3SinePositionEmbedding(width // 2, normalize=True)
        self.output_class = Sam3VisionEncoderOutput
        gain, offset = normalization(backbone)
        self.register_buffer("gain", gain, persistent=False)
        self.register_buffer("offset", offset, persistent=False)

    def forward(self, pixel_values: Tensor, **kwargs: Any) -> Any:
        """Images [I, 3, S, S] in the teacher's normalization to a `Sam3VisionEncoderOutput`."""
        pixels = pixel_values.to(self.gain.dtype) * self.gain + self.offset
        features = self.backbone(pixels)
        levels = self.pyramid([features[level] for level in self.levels])
        positions = [
            self.position((1, *level.shape[1:]), level.device, level.dtype).expand_as(level)
            for level in levels
        ]
        return self.output_class(
            fpn_hidden_states=tuple(levels), fpn_position_encoding=tuple(positions)
        )


def make_backbone(name: str, options: Mapping[str, Any]) -> tuple[Any, list[int]]:
    """A feature extractor of timm with random weights, and where in its list the strides are.

    Raises:
        ValueError: timm has no such backbone, option or strides.
    """
    import timm

    if not timm.is_model(name):  # nor a hub's: those would be fetched
        raise ValueError(f"sam3.student.backbone {name!r} is no model of timm {timm.__version__}")
    try:
        backbone: Any = timm.create_model(name, pretrained=False, features_only=True, **options)
    except (RuntimeError, TypeError, ValueError, IndexError, AssertionError) as error:
        message = " ".join(str(error).split())
        raise ValueError(
            f"sam3.student.backbone {name!r} with options {dict(options)}: timm says «{message}»"
        ) from None
    strides = backbone.feature_info.reduction()
    layout = str(getattr(backbone, "output_fmt", "NCHW")).rpartition(".")[2]
    if layout != "NCHW" or not set(STRIDES) <= set(strides):
        raise ValueError(
            f"sam3.student.backbone {name!r} has {layout} features at strides {strides}, "
            f"expected NCHW features at strides {list(STRIDES)}"
        )
    for module in backbone.modules():
        if type(module) is nn.Conv2d and _is_channel_scale(module):
            module.__class__ = ChannelScale  # the same weights by the same names
    return backbone, [strides.index(stride) for stride in STRIDES]


def _is_channel_scale(layer: nn.Conv2d) -> bool:
    depthwise = layer.groups == layer.in_channels == layer.out_channels
    return depthwise and layer.kernel_size == layer.stride == (1, 1) and layer.padding == (0, 0)


def normalization(backbone: str) -> tuple[Tensor, Tensor]:
    """Gain and offset, [3, 1, 1], that turn the teacher's pixels into those of the backbone."""
    import timm

    config: Any = timm.get_pretrained_cfg(backbone)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (config.mean, config.std))
    return TEACHER_STD / std, (TEACHER_MEAN - mean) / std


def load_backbone(backbone: nn.Module, path: Path) -> None:
    """Give a feature extractor the weights of timm's classifier, a .safetensors or .pth file.

    Raises:
        ValueError: the file is missing or broken, or lacks a weight of the backbone.
    """
    from timm.models import load_state_dict

    try:
        weights = load_state_dict(str(path), weights_only=True)
    except (OSError, SafetensorError, RuntimeError, ValueError, KeyError, EOFError) as error:
        raise ValueError(f"sam3.student.backbone_weights {path}: unreadable ({error})") from None
    # Where timm cuts the features out of a classifier, `stages.0` becomes `stages_0`.
    weights |= {name.replace(".", "_", 1): tensor for name, tensor in weights.items()}
    _load(backbone, weights, f"sam3.student.backbone_weights {path}", "backbone")


def load_text_encoder(encoder: nn.Module, path: Path) -> None:
    """Give a text encoder the weights of its like: of a file of its own, or of a whole model's.

    Raises:
        ValueError: the file is missing or broken, or lacks a weight of the encoder.
    """
    key = f"sam3.student.text_weights {path}"
    try:
        weights = load(path.read_bytes())
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{key}: unreadable ({error})") from None
    weights |= {name.rpartition(f"{TEXT[0]}.")[2]: tensor for name, tensor in weights.items()}
    _load(encoder, weights, key, "text encoder")


def _load(module: nn.Module, weights: Mapping[str, Tensor], key: str, what: str) -> None:
    """Load those of the weights that are the module's own.

    Raises:
        ValueError: one is missing or has another shape.
    """
    own = module.state_dict()
    wrong = [
        name
        for name, tensor in own.items()
        if name not in weights or weights[name].shape != tensor.shape
    ]
    if wrong:
        raise ValueError(
            f"{key}: {len(wrong)} of the {what}'s {len(own)} tensors are missing or have another "
            f"shape, the first is {wrong[0]}"
        )
    module.load_state_dict({name: weights[name] for name in own})
