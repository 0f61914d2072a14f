"""A model with its texts encoded: what it predicts for batches of prompts."""

import pytest
import torch

from braid.segmentation.data.prompted import prompt_batch
from braid.segmentation.sam3.checkpoint import remove_text_tower
from braid.segmentation.sam3.predictor import Predictor, encode_texts, word_tokenizer
from braid.segmentation.sam3.sam3 import PromptInputs, predict
from tests.segmentation.evaluated import CPU, PAIRS, Prompted, texts
from tests.segmentation.tiny_models import CONTEXT, some_images, tiny_teacher


def test_a_predictor_predicts_as_its_model_does_prompt_by_prompt():
    model, encoded = tiny_teacher(3), texts(3)
    pairs = [PAIRS[3], PAIRS[1], PAIRS[5]]
    together = Predictor(model, encoded, CPU)(prompt_batch(Prompted(), pairs))
    for row, (image, place) in enumerate(pairs):
        boxes = torch.tensor([[0.4, 0.5, 0.3, 0.3]]) if place == 1 else None
        boxed = torch.ones(1).bool() if place == 1 else None
        tokens, attention = torch.zeros(1, CONTEXT).long(), encoded.attention[place : place + 1]
        text = encoded.features[place : place + 1]
        inputs = PromptInputs(torch.zeros(1).long(), tokens, attention, boxes, boxed, text)
        with torch.no_grad():
            alone = predict(model, some_images(1, seed=image), inputs)
        torch.testing.assert_close(together.masks[row], alone.masks[0], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(together.scores[row], alone.scores[0])


def test_texts_are_encoded_once_as_the_model_encodes_them():
    class Tokenizer:
        def __call__(self, given, max_length, **_):
            ids = torch.tensor([[ord(text) - 90] * max_length for text in given])
            return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}

    model = tiny_teacher(1)
    predictor = Predictor.of(model, ["b", "a", "b", "c"], Tokenizer(), CPU)
    assert predictor.texts.texts == ["b", "a", "c"]
    ids = torch.tensor([[ord("b") - 90] * CONTEXT])
    expected = model.get_text_features(input_ids=ids, attention_mask=torch.ones_like(ids))
    torch.testing.assert_close(predictor.texts.features[0], expected.pooler_output[0])


def test_each_text_is_encoded_once_and_the_text_tower_is_needed_no_more(monkeypatch):
    model, calls = tiny_teacher(), []
    encode = model.get_text_features
    monkeypatch.setattr(
        model, "get_text_features", lambda **inputs: (calls.append(inputs), encode(**inputs))[1]
    )
    words = word_tokenizer(["circle", "red"], length=CONTEXT)
    texts = encode_texts(["red", "circle", "red", "red circle"], model, words, device=CPU)
    assert texts.texts == ["red", "circle", "red circle"]
    assert sum(len(inputs["input_ids"]) for inputs in calls) == 3
    assert texts.rows(["red circle", "red", "red"]).tolist() == [2, 0, 0]
    with pytest.raises(ValueError, match="text 'green' is not among those"):
        texts.rows(["green"])
    remove_text_tower(model)
    with pytest.raises(ValueError, match="has no text tower"):
        encode_texts(["red"], model, words, device=CPU)
    with pytest.raises(ValueError, match="no image has a prompt"):
        encode_texts([], model, words, device=CPU)
