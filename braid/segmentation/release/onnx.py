"""The student in ONNX: vision, text and decoder apart, so that prompts change without the image.

    export_onnx(segmenter, folder / "onnx")                 # PyTorch and `onnx`
    OnnxSegmenter(folder).segment(image, words=["circle"])  # onnxruntime, tokenizers, no PyTorch

    vision.onnx   pixels [1, 3, S, S]                       -> fine, middle, coarse [1, C, h, w]
    text.onnx     tokens, attention [B, L]                  -> text [B, L, C]
    decoder.onnx  fine, middle, coarse, text, attention     -> masks, boxes, logits, presence,
                                                               semantic, each [B, ...]

with any number of prompts B, and as many images as one likes one after another. Opset 17. Boxes as
prompts take the geometry encoder, whose pooling depends on the box in ways that a traced graph does
not: they are for `Segmenter`. `quantize_onnx` writes the same graphs with 8-bit convolutions, their
activations in the range that some pictures give them (static quantization).
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from braid.segmentation.release.pictures import Found, found_of, squashed, upright

if TYPE_CHECKING:
    from braid.segmentation.release.segmenter import Segmenter

OPSET = 17
LEVELS = ("fine", "middle", "coarse")
OUTPUTS = ("masks", "boxes", "logits", "presence", "semantic")
SCORE = 0.3  # as `Segmenter`
GRAPHS = ("vision", "text", "decoder")
FLOAT, INT8 = "onnx", "onnx_int8"  # folders
Feed = Mapping[str, NDArray[Any]]  # inputs of a graph by name


def export_onnx(segmenter: Segmenter, folder: Path) -> None:
    """Write the three graphs.

    Raises:
        ValueError: the package `onnx` is not installed.
    """
    import torch

    try:
        import onnx  # noqa: F401  the exporter needs it
    except ImportError:
        raise ValueError(
            "the package onnx is missing, expected the extra `onnx` of this repository"
        ) from None
    folder.mkdir(parents=True, exist_ok=True)
    recipe = segmenter.model.recipe
    vision, text, decoder = _parts(segmenter.model)
    pixels = torch.zeros(1, 3, recipe.image_size, recipe.image_size)
    tokens = torch.zeros(2, recipe.context, dtype=torch.long)
    attention = torch.ones_like(tokens)
    with torch.no_grad():
        levels, features = vision(pixels), text(tokens, attention)
    prompts = {0: "prompts"}
    graphs: tuple[tuple[str, Any, Any, Sequence[str], Sequence[str]], ...] = (
        ("vision", vision, (pixels,), ("pixels",), LEVELS),
        ("text", text, (tokens, attention), ("tokens", "attention"), ("text",)),
        (
            "decoder",
            decoder,
            (*levels, features, attention),
            (*LEVELS, "text", "attention"),
            OUTPUTS,
        ),
    )
    for name, part, inputs, names, outputs in graphs:
        by_prompt = {"tokens", "attention", "text", *OUTPUTS}.intersection([*names, *outputs])
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")  # of constants, which shapes are here
            torch.onnx.export(
                part,
                inputs,
                str(folder / f"{name}.onnx"),
                input_names=list(names),
                output_names=list(outputs),
                dynamic_axes=dict.fromkeys(sorted(by_prompt), prompts),
                opset_version=OPSET,
                dynamo=False,
            )
    segmenter.model.eval()  # the exporter restores the mode of its wrappers, which is another


def _parts(model: Any) -> tuple[Any, Any, Any]:
    """Vision, text and decoder as modules of tensors alone, in evaluation mode."""
    from torch import Tensor, nn

    class Vision(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
            """The levels that the heads take, finest first."""
            return tuple(model.get_vision_features(pixel_values=pixels).fpn_hidden_states[:-1])

    class Text(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, tokens: Tensor, attention: Tensor) -> Tensor:
            """Features of prompts."""
            encoded = model.get_text_features(input_ids=tokens, attention_mask=attention)
            return encoded.pooler_output

    class Decoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
            """What is predicted for each prompt on one image."""
            *levels, text, attention = inputs
            levels = [*levels, levels[-1]]  # the last one is not read
            vision, prompts = model.vision_encoder, text.shape[0]
            positions = [
                vision.position((1, *level.shape[1:]), level.device, level.dtype)
                for level in levels
            ]
            encoded = vision.output_class(
                fpn_hidden_states=tuple(level.expand(prompts, -1, -1, -1) for level in levels),
                fpn_position_encoding=tuple(
                    place.expand(prompts, -1, -1, -1) for place in positions
                ),
            )
            output = model(
                vision_embeds=encoded,
                text_embeds=vision.output_class(pooler_output=text),
                attention_mask=attention,
            )
            return (
                output.pred_masks,
                output.pred_boxes,
                output.pred_logits,
                output.presence_logits,
                output.semantic_seg,
            )

    return Vision().eval(), Text().eval(), Decoder().eval()


class OnnxSegmenter:
    """A released student under onnxruntime; prompts are words."""

    def __init__(self, folder: Path | str, *, graphs: str = FLOAT, threads: int = 1) -> None:
        """Open a released folder, and in it the graphs of `onnx` or `onnx_int8`.

        Raises:
            ValueError: a file or a package is missing.
        """
        folder = Path(folder)
        try:
            import onnxruntime
            from tokenizers import Tokenizer
        except ImportError as error:
            raise ValueError(f"{error.name} is missing, expected the extra `onnx`") from None
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = threads, 3
        try:
            recipe = json.loads((folder / "config.json").read_text(encoding="utf-8"))["recipe"]
            words = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
            self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
            self.sessions = {
                name: onnxruntime.InferenceSession(
                    str(folder / graphs / f"{name}.onnx"),
                    options,
                    providers=["CPUExecutionProvider"],
                )
                for name in GRAPHS
            }
        except Exception as error:  # onnxruntime and tokenizers have exceptions of their own
            reason = " ".join(str(error).split())
            raise ValueError(f"{folder}: no released student with ONNX files ({reason})") from None
        self.size, self.unknown = int(recipe["image_size"]), words.get("unk_token")
        pad, length = words["pad_token"], int(recipe["context"])
        self.tokenizer.enable_truncation(length)
        identity = self.tokenizer.token_to_id(pad)
        self.tokenizer.enable_padding(length=length, pad_token=pad, pad_id=identity)

    def segment(
        self, image: Image.Image, *, words: Sequence[str], score: float = SCORE
    ) -> list[Found]:
        """As `Segmenter.segment`.

        Raises:
            ValueError: there is no prompt, or a word that the tokenizer does not know.
        """
        image = upright(image)
        outputs = self.predict(squashed(image, self.size), words)
        rows = zip(words, *(outputs[name] for name in OUTPUTS[:-1]), strict=True)
        return [
            found_of(prompt, masks, boxes, logits, float(presence[0]), image.size, score)
            for prompt, masks, boxes, logits, presence in rows
        ]

    def predict(
        self, pixels: NDArray[np.float32], words: Sequence[str]
    ) -> Mapping[str, NDArray[np.float32]]:
        """The five outputs for prompts on one image, each [B, ...]."""
        return self.run(pixels, words)[1]

    def run(
        self, pixels: NDArray[np.float32], words: Sequence[str]
    ) -> tuple[dict[str, Feed], dict[str, NDArray[np.float32]]]:
        """What each graph takes, and the five outputs.

        Raises:
            ValueError: as `segment`.
        """
        if not words:
            raise ValueError("no prompt, expected words")
        encodings = self.tokenizer.encode_batch(list(words))
        for text, encoding in zip(words, encodings, strict=True):
            real = sum(encoding.attention_mask)
            if self.unknown in encoding.tokens[1 : real - 1]:
                raise ValueError(f"{text!r} has a word that the student's tokenizer does not know")
        tokens = np.array([encoding.ids for encoding in encodings], np.int64)
        attention = np.array([encoding.attention_mask for encoding in encodings], np.int64)
        feeds: dict[str, Feed] = {
            "vision": {"pixels": pixels},
            "text": {"tokens": tokens, "attention": attention},
        }
        levels = self.sessions["vision"].run(list(LEVELS), feeds["vision"])
        (text,) = self.sessions["text"].run(["text"], feeds["text"])
        of_image = dict(zip(LEVELS, levels, strict=True))
        feeds["decoder"] = {**of_image, "text": text, "attention": attention}
        outputs = self.sessions["decoder"].run(list(OUTPUTS), feeds["decoder"])
        return feeds, dict(zip(OUTPUTS, outputs, strict=True))


def quantize_onnx(
    folder: Path,  # released, with ONNX files
    pictures: Iterable[tuple[NDArray[np.float32], Sequence[str]]],  # pixels [1, 3, S, S], words
) -> None:
    """Write `onnx_int8` beside `onnx`: convolutions of 8 bits, weights by channel.

    Raises:
        ValueError: as `OnnxSegmenter`, or there is no picture.
    """
    segmenter = OnnxSegmenter(folder)
    feeds = [segmenter.run(pixels, words)[0] for pixels, words in pictures]
    if not feeds:
        raise ValueError("no picture to take the range of activations from, expected one or more")
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static

    class Reader(CalibrationDataReader):
        def __init__(self, graph: str) -> None:
            self.feeds = iter([of_picture[graph] for of_picture in feeds])

        def get_next(self) -> Feed | None:
            """The next inputs; None after the last ones."""
            return next(self.feeds, None)

    (folder / INT8).mkdir(exist_ok=True)
    for name in GRAPHS:
        quantize_static(
            str(folder / FLOAT / f"{name}.onnx"),
            str(folder / INT8 / f"{name}.onnx"),
            Reader(name),
            op_types_to_quantize=["Conv"],
            per_channel=True,
            weight_type=QuantType.QInt8,
            activation_type=QuantType.QUInt8,
        )
