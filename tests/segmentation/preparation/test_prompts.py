"""What is asked of an image, and what answers."""

import json
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from braid.segmentation.config import Prompts
from braid.segmentation.data.prompts import (
    Asking,
    Prompt,
    Vocabulary,
    agree,
    answers_to,
    ask,
    make_prompts,
    mentioned,
    parts,
    read_prompts,
    write_prompts,
)
from braid.segmentation.data.run_lengths import encode
from braid.segmentation.data.sa1b import Annotation, Record

ALL = ("generic", "category", "box", "caption")
ASKING = Asking(ALL, "objects in the image", per_image=100, negative_fraction=0.4)
COLORS, SHAPES = ("red", "blue", "green"), ("circle", "star", "square")


def image(*names, exhaustive=True, captions=(), identity=1):
    """An image with an object for each name, side by side from the left."""
    annotations = []
    for index, name in enumerate(names):
        mask = np.zeros((10, 20), bool)
        mask[2:6, 2 * index : 2 * index + 2] = True
        annotations.append(Annotation(encode(mask), (index / 10, 0.2, index / 10 + 0.1, 0.6), name))
    file = f"sa_{identity}.jpg"
    return Record(identity, file, 20, 10, tuple(annotations), tuple(captions), exhaustive)


class Images(list):
    record = list.__getitem__


def scenes(count=200, most=4):
    """Images of one to four shapes, of random names."""
    rng = np.random.default_rng(0)
    drawn = []
    for identity in range(count):
        names = [
            f"{rng.choice(COLORS)} {rng.choice(SHAPES)}" for _ in range(rng.integers(1, most + 1))
        ]
        caption = f"a {names[0]} and a {names[-1]}"
        drawn.append(image(*names, captions=[caption], identity=identity))
    return Images(drawn)


def asked(record, others=(), seed=0, **changes):
    images = Images([record, *others])
    generator = torch.Generator().manual_seed(seed)
    return make_prompts(record, Vocabulary(images), replace(ASKING, **changes), generator)


def texts(prompts, kind):
    return {prompt.text: prompt.answers for prompt in prompts if prompt.kind == kind}


def test_an_exhaustive_image_answers_each_kind_of_prompt():
    captions = ["A blue star and two red circles", "a red star", "the sky"]
    record = image("red circle", "blue star", "red circle", captions=captions)
    prompts = asked(record, negative_fraction=0.0)
    assert texts(prompts, "generic") == {"objects in the image": (0, 1, 2)}
    assert texts(prompts, "category") == {
        "red circle": (0, 2),
        "blue star": (1,),
        "circle": (0, 2),
        "star": (1,),
        "red thing": (0, 2),
        "blue thing": (1,),
    }
    boxes = {prompt.box: prompt.answers for prompt in prompts if prompt.kind == "box"}
    assert {round(box[0], 6): answers for box, answers in boxes.items()} == {
        0.05: (0, 2),
        0.15: (1,),
        0.25: (0, 2),
    }
    for box in boxes:
        assert box[1:] == pytest.approx((0.4, 0.1, 0.4))
    found = texts(prompts, "caption")
    assert found == {captions[0]: (0, 1, 2), captions[1]: (1,), captions[2]: None}
    assert {prompt.text for prompt in prompts if prompt.kind == "box"} == {"visual"}
    assert [prompt.kind for prompt in prompts] == sorted(
        (prompt.kind for prompt in prompts), key=ALL.index
    )
    assert all(prompt.labeled for prompt in prompts)


def test_the_truth_of_what_may_not_be_annotated_is_unknown_but_for_a_box():
    names = ("red circle", "blue star", "red circle", None)
    for record in (image(*names[:3], exhaustive=False), image(*names)):
        record = replace(record, captions=("a red circle",))
        prompts = asked(record, [image("green star")] * 5, negative_fraction=0.5)
        kinds = {"category", "caption"} | ({"generic"} if not record.exhaustive else set())
        assert {p.answers for p in prompts if p.kind in kinds} == {None}
        boxes = [prompt.answers for prompt in prompts if prompt.kind == "box"]
        assert sorted(boxes) == [(index,) for index in range(len(record.annotations))]


def test_real_images_without_names_have_generic_and_box_prompts():
    record = image(None, None, exhaustive=False)
    prompts = asked(record, [record])
    assert [prompt.kind for prompt in prompts] == ["generic", "box", "box"]
    assert prompts[0].answers is None
    assert sorted(prompt.answers for prompt in prompts[1:]) == [(0,), (1,)]


def test_an_empty_image_is_a_negative_of_everything():
    empty = image()
    others = [image("red circle"), image("blue star")]
    found = [each for seed in range(20) for each in asked(empty, others, seed=seed)]
    assert Counter(prompt.kind for prompt in found)["category"] > 3
    assert {prompt.answers for prompt in found} == {()}


@pytest.mark.parametrize(
    ("phrase", "name", "verdict"),
    [
        ("red circle", "red circle", True),
        ("Red  Circle", "red circle", True),
        ("circle", "red circle", True),
        ("red thing", "red circle", True),
        ("thing", "red circle", True),
        ("thing", "coin", True),
        ("blue thing", "red circle", False),
        ("red star", "red circle", False),
        ("blue circle", "red circle", False),
        ("coin", "coin", True),
        ("coin", "cat", False),
        ("red star", "coin", False),
        ("red thing", "coin", None),
        ("red coin", "coin", None),
        ("star", "red thing", None),
        ("star", None, None),
        ("orange", "orange", True),
        ("gray cat", "grey cat", True),
        ("traffic light", "red traffic light", True),
        ("light", "red traffic light", False),
    ],
)
def test_phrases_are_taken_at_their_word(phrase, name, verdict):
    assert agree(phrase, name) is verdict


def test_parts_and_mentions():
    assert parts("red circle") == ["circle", "red thing"]
    assert parts("red traffic light") == ["traffic light", "red thing"]
    assert parts("coin") == parts("orange") == parts("red thing") == []
    phrases = ["star", "red star", "box", "fin"]
    assert mentioned(phrases, "Two  Red Stars, in boxes.") == ["box", "red star"]
    assert mentioned(phrases, "a red star and a star") == ["red star", "star"]
    assert mentioned(phrases, "fine starfish") == mentioned([], "star") == []
    assert mentioned(["T-Shirt", "c++ (logo)", "!"], "a C++ (logo), t-shirts!") == [
        "c++ (logo)",
        "t-shirt",
    ]
    assert mentioned(["light", "traffic", "traffic light"], "a traffic light") == ["traffic light"]
    assert mentioned(["glass", "glasses"], "some glasses") == ["glasses"]
    assert mentioned(["a.b"], "acb") == []


def test_negatives_are_certain_and_as_many_as_asked_for():
    images = scenes()
    prompts = ask(images, ASKING, seed=0)
    categories = 0
    negatives = 0
    for record, of_image in zip(images, prompts, strict=True):
        found = [prompt for prompt in of_image if prompt.kind == "category"]
        assert len({prompt.text for prompt in found}) == len(found)
        for prompt in found:
            words = prompt.text.replace(" thing", "").split()
            truth = tuple(
                index
                for index, each in enumerate(record.annotations)
                if set(words) <= set(each.name.split())
            )
            assert prompt.answers == truth
        categories += len(found)
        negatives += sum(prompt.answers == () for prompt in found)
    assert negatives / categories == pytest.approx(0.4, abs=0.03)


def test_a_share_of_nought_has_no_negatives():
    prompts = ask(scenes(30), replace(ASKING, negative_fraction=0.0), seed=0)
    assert all(prompt.answers != () for of_image in prompts for prompt in of_image)


def test_the_text_does_not_tell_whether_it_is_there():
    rare = [image("cat", identity=1000 + number) for number in range(60)]
    images = Images([*scenes(600), *rare])
    prompts = ask(images, replace(ASKING, kinds=("category",), per_image=6), seed=1)
    there = Counter((prompt.text, bool(prompt.answers)) for each in prompts for prompt in each)
    phrases = {text for text, _ in there}
    assert len(phrases) == 16
    total = there.total()
    always = sum(there[text, True] for text in phrases) / total
    by_text = sum(max(there[text, True], there[text, False]) for text in phrases) / total
    assert by_text < always + 0.02  # + 0.09 if absent phrases were drawn evenly


def test_what_is_uncertain_is_no_negative_of_an_exhaustive_image():
    others = [image("red circle"), image("blue thing"), image("cat")]
    found = [texts(asked(image("coin"), others, seed=seed), "category") for seed in range(30)]
    negatives = {text for each in found for text, answers in each.items() if answers == ()}
    assert negatives <= {"red circle", "circle", "cat"}
    assert len(negatives) == 3
    assert all(answers is not None for each in found for answers in each.values())


def test_too_many_prompts_are_cut_evenly_and_by_the_image():
    images = scenes(300)
    prompts = ask(images, replace(ASKING, per_image=6), seed=0)
    counts = [Counter(prompt.kind for prompt in of_image) for of_image in prompts]
    assert max(len(of_image) for of_image in prompts) == 6
    assert all(count["generic"] == count["caption"] == 1 for count in counts)
    full = [count for count in counts if count["box"] >= 2]
    assert len(full) > 100
    assert all(count["category"] == count["box"] == 2 for count in full)
    reverse = ask(Images(images[::-1]), replace(ASKING, per_image=6), seed=0)
    assert reverse[::-1] == prompts
    assert ask(images, replace(ASKING, per_image=6), seed=1) != prompts


def test_one_prompt_an_image_is_of_each_kind_in_turn():
    prompts = ask(scenes(400), replace(ASKING, per_image=1), seed=0)
    counts = Counter(of_image[0].kind for of_image in prompts)
    assert {len(of_image) for of_image in prompts} == {1}
    assert all(counts[kind] == pytest.approx(100, abs=30) for kind in ALL)


def test_one_generic_prompt_an_image():
    only = replace(ASKING, kinds=("generic",), generic="all things", per_image=1)
    images = scenes(5)
    everything = [tuple(range(len(record.annotations))) for record in images]
    expected = [[Prompt("generic", "all things", None, each, True)] for each in everything]
    assert ask(images, only, seed=0) == expected


def test_withheld_names_are_not_labelled_wherever_they_are_mentioned():
    captions = ["two red stars", "a blue star and a red star", "a blue star"]
    record = image("red star", "blue star", captions=captions)
    prompts = asked(record, [image("red star")] * 9, withheld=("red star",))
    told = {prompt.text: prompt.labeled for prompt in prompts if prompt.kind != "box"}
    assert {text for text, labeled in told.items() if not labeled} == {"red star", *captions[:2]}
    boxes = {prompt.answers: prompt.labeled for prompt in prompts if prompt.kind == "box"}
    assert boxes == {(0,): False, (1,): True}
    negatives = [
        prompt
        for seed in range(30)
        for prompt in asked(image("coin"), [record], seed=seed, withheld=("star",))
        if prompt.answers == ()
    ]
    assert {prompt.text: prompt.labeled for prompt in negatives} == {
        "star": False,
        "red star": False,
        "blue star": False,
    }


def test_params_become_settings_and_impossible_ones_are_refused():
    params = {
        "kinds": ["generic", "box"],
        "generic": "all",
        "per_image": 3,
        "negative_fraction": 0.5,
        "withheld": ["red star"],
    }
    asking = Asking(**Prompts(**params).model_dump())
    assert asking == Asking(("generic", "box"), "all", 3, 0.5, ("red star",))
    impossible = {"kinds": ["box", "box"], "generic": "", "per_image": 0, "negative_fraction": 1.0}
    for key, value in impossible.items():
        with pytest.raises(ValidationError, match=key):
            Prompts(**{**params, key: value})


def test_impossible_questions_are_refused():
    with pytest.raises(ValueError, match=r"withheld: 'red cat' is not in .* some of: circle, red"):
        ask(Images([image("red circle")]), replace(ASKING, withheld=("red cat",)), seed=0)
    unnamed = Images([image(None, exhaustive=False)])
    with pytest.raises(ValueError, match=r"some of: nothing, as no annotation has a name"):
        ask(unnamed, replace(ASKING, withheld=("red cat",)), seed=0)
    with pytest.raises(ValueError, match="kinds: category, caption: these images have nothing"):
        ask(unnamed, replace(ASKING, kinds=("category", "caption")), seed=0)


def test_answers_are_all_that_a_phrase_means_or_unknown():
    assert answers_to("circle", image("red circle", "star", "blue circle")) == (0, 2)
    assert answers_to("circle", image("red circle", None)) is None
    assert answers_to("circle", image("red circle", exhaustive=False)) is None
    assert answers_to("circle", image()) == ()


def test_prompts_are_read_as_they_were_written(tmp_path):
    prompts = ask(scenes(20), replace(ASKING, withheld=("red star",)), seed=0)
    prompts[3] = []
    write_prompts(tmp_path, prompts)
    written = (tmp_path / "prompts.json").read_bytes()
    assert read_prompts(tmp_path) == prompts
    write_prompts(tmp_path, read_prompts(tmp_path))
    assert (tmp_path / "prompts.json").read_bytes() == written
    assert len(written.splitlines()) == 22


GOOD = {"kind": "box", "text": "visual", "box": [0.5, 0.5, 0.2, 0.2], "answers": [0]}
GOOD["labeled"] = True


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "point"}, r"0\.0\.kind: Input should be 'generic'"),
        ({"kind": "caption"}, "a box prompt has a box, and no other kind has"),
        ({"box": None}, "a box prompt has a box"),
        ({"box": [0.5, 0.5, 0.2]}, r"0\.0\.box\.3: Field required"),
        ({"box": [0.5, 0.5, 0.2, 1.2]}, r"0\.0\.box\.3: Input should be less than or equal to 1"),
        ({"box": [0.5, 0.5, 0.2, float("nan")]}, r"0\.0\.box\.3"),
        ({"answers": [-1]}, r"0\.0\.answers\.0"),
        ({"answers": "all"}, r"0\.0\.answers"),
        ({"text": None}, r"0\.0\.text: Input should be a valid string"),
        ({"labeled": 1}, r"0\.0\.labeled"),
        ({"label": 1}, r"0\.0\.label: Unexpected"),
    ],
)
def test_a_broken_file_is_refused_in_a_line(tmp_path, change, message):
    path = tmp_path / "prompts.json"
    path.write_text(json.dumps([[{**GOOD, **change}]]))
    with pytest.raises(ValueError, match=message) as caught:
        read_prompts(tmp_path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [None, "", "{}", "[[", "[1]"])
def test_no_list_of_prompts_is_refused_in_a_line(tmp_path, content):
    if content is not None:
        (tmp_path / "prompts.json").write_text(content)
    with pytest.raises(ValueError, match=r"prompts\.json: ") as caught:
        read_prompts(tmp_path)
    assert "\n" not in str(caught.value)
