"""A student that loads with one class: no DVC, no params, nothing but its folder.

    segmenter = Segmenter.from_pretrained("efficient_sam3")
    for found in segmenter.segment(Image.open("street.jpg"), words=["red star", "circle"]):
        print(found.prompt, found.presence, found.scores)

The folder has config.json (of a model type of its own: other classes refuse it), the weights, the
tokenizer, transformers' image processor, README.md and, with --onnx, the ONNX files.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load, save

from braid.segmentation.release.pictures import Box, Found, found_of, relative, squashed, upright
from braid.segmentation.sam3.predictor import encode, load_tokenizer, save_tokenizer
from braid.segmentation.sam3.sam3 import PromptInputs, predict
from braid.segmentation.student.student import StudentRecipe, build_student, load_student

MODEL_TYPE = "efficient_sam3"
WEIGHTS = f"{MODEL_TYPE}.safetensors"  # by another name than the library's, which would load them
VISUAL = "visual"  # the text beside a box, as in SAM3
SCORE = 0.3  # above which a mask counts, as in transformers' post-processing


class Segmenter:
    """A student with its tokenizer."""

    def __init__(self, model: Any, tokenizer: Any) -> None:
        self.model, self.tokenizer = model.eval(), tokenizer

    @classmethod
    def from_pretrained(cls, folder: Path | str) -> Self:
        """Read what `save_pretrained` wrote.

        Raises:
            ValueError: a file is missing or broken, or of another model; one line names it.
        """
        folder = Path(folder)
        try:
            config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
            if config.get("model_type") != MODEL_TYPE:
                raise ValueError(f"model_type {config.get('model_type')!r}, expected {MODEL_TYPE}")
            model = build_student(StudentRecipe(**config["recipe"]))
            weights = load((folder / WEIGHTS).read_bytes())
            model.load_state_dict({name: value.float() for name, value in weights.items()})
        except (OSError, KeyError, TypeError, ValueError, RuntimeError, SafetensorError) as error:
            reason = " ".join(str(error).split())
            raise ValueError(f"{folder}: no folder of a student ({reason})") from None
        return cls(model, _tokenizer(folder))

    @classmethod
    def of_stage(cls, folder: Path | str) -> Self:
        """The student that the stage distill_sam3 wrote, as models/sam3_student/distilled.

        Raises:
            ValueError: as `load_student` and `load_tokenizer`.
        """
        return cls(load_student(Path(folder)), load_tokenizer(Path(folder) / "tokenizer"))

    def save_pretrained(self, folder: Path | str, *, half: bool = False) -> None:
        """Write a folder for `from_pretrained`; `half`: weights in 16 bits."""
        folder, recipe = Path(folder), self.model.recipe
        folder.mkdir(parents=True, exist_ok=True)
        save_tokenizer(folder, self.tokenizer)
        self._image_processor().save_pretrained(folder)
        content = {"model_type": MODEL_TYPE, "recipe": recipe.model_dump(mode="json")}
        (folder / "config.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        state = {
            name: (value.half() if half and value.is_floating_point() else value).contiguous()
            for name, value in self.model.state_dict().items()
        }
        (folder / WEIGHTS).write_bytes(save(state))

    def segment(
        self,
        image: Image.Image,
        *,
        words: Sequence[str] = (),  # a noun phrase each
        boxes: Sequence[Box] = (),  # around an example each, xyxy in pixels
        score: float = SCORE,  # what is less sure is left out
    ) -> list[Found]:
        """What a picture holds of each prompt, words first.

        Raises:
            ValueError: there is no prompt, a word that the tokenizer does not know, or a box that
                leaves the picture.
        """
        if not words and not boxes:
            raise ValueError("no prompt, expected words or boxes")
        image = upright(image)
        pixels = torch.from_numpy(squashed(image, self.model.recipe.image_size))
        inputs = self._inputs([*words, *[VISUAL] * len(boxes)], words)
        if boxes:
            places = [(0.0,) * 4] * len(words) + [relative(box, image) for box in boxes]
            boxed = torch.arange(len(places)) >= len(words)
            inputs = PromptInputs(
                inputs.owner, inputs.tokens, inputs.attention, torch.tensor(places), boxed
            )
        with torch.no_grad():
            prediction = predict(self.model, pixels, inputs)
        prompts: list[str | Box] = [*words, *boxes]
        return [
            found_of(
                prompt,
                prediction.masks[row].numpy(),
                prediction.boxes[row].numpy(),
                prediction.logits[row].numpy(),
                prediction.presence[row, 0].item(),
                image.size,
                score,
            )
            for row, prompt in enumerate(prompts)
        ]

    def _inputs(self, texts: Sequence[str], words: Sequence[str]) -> PromptInputs:
        tokens, attention = encode(self.tokenizer, texts, self.model.recipe.context)
        for text, row, real in zip(words, tokens.tolist(), attention.tolist(), strict=False):
            given = [token for token, there in zip(row, real, strict=True) if there]
            if self.tokenizer.unk_token_id in given[1:-1]:
                raise ValueError(f"{text!r} has a word that the student's tokenizer does not know")
        return PromptInputs(torch.zeros(len(texts), dtype=torch.long), tokens, attention)

    def _image_processor(self) -> Any:
        from transformers import Sam3ImageProcessor

        size = self.model.recipe.image_size
        return Sam3ImageProcessor(size={"height": size, "width": size})


def _tokenizer(folder: Path) -> Any:
    """That of a released folder, by its class: the library's automatic way warns of the model."""
    from transformers import PreTrainedTokenizerFast

    if not (folder / "tokenizer.json").is_file():
        raise ValueError(f"{folder}: has no tokenizer, expected tokenizer.json in it")
    return PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)


def open_segmenter(folder: Path | str) -> Segmenter:
    """A student, as it was released or as the stage wrote it.

    Raises:
        ValueError: the folder has neither.
    """
    released = (Path(folder) / WEIGHTS).is_file()
    return Segmenter.from_pretrained(folder) if released else Segmenter.of_stage(folder)
