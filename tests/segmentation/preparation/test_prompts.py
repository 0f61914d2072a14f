"""Which prompts are sampled of an image, and what their targets are."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch

from braid.segmentation.config import NegativesConfig, PromptsConfig
from braid.segmentation.data.prompted import Prompt
from braid.segmentation.data.sa1b import Annotation, Record, encode
from braid.segmentation.preparation.prompts import (
    Vocabulary,
    all_phrases,
    matches,
    mentioned,
    parts,
    prompt_rows,
    prompts_of,
    sample_prompts,
    targets_of,
)

ALL = ("generic", "category", "box", "caption")
CONFIG = PromptsConfig(
    kinds=ALL,
    generic="objects in the image",
    phrases=(),
    phrases_file="none",
    per_image=100,
    negative_fraction={"category": 0.4, "box": 0.0, "caption": 0.0},
    withheld=(),
)
COLORS, SHAPES = ("red", "blue", "green"), ("circle", "star", "square")


def changed(negative_fraction=None, **changes):
    """The config with other values; a fraction of negatives for each kind."""
    if negative_fraction is not None:
        fractions = {"category": 0.0, "box": 0.0, "caption": 0.0, **negative_fraction}
        changes["negative_fraction"] = NegativesConfig(**fractions)
    return CONFIG.model_copy(update=changes)


def image(*names, exhaustive=True, captions=(), identity=1, complete=()):
    """An image with an object for each name, side by side from the left."""
    annotations = []
    for index, name in enumerate(names):
        mask = np.zeros((10, 20), bool)
        mask[2:6, 2 * index : 2 * index + 2] = True
        annotations.append(Annotation(encode(mask), (index / 10, 0.2, index / 10 + 0.1, 0.6), name))
    file = f"sa_{identity}.jpg"
    return Record(
        identity, file, 20, 10, tuple(annotations), tuple(captions), exhaustive, tuple(complete)
    )


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


def sampled(record, others=(), seed=0, phrases=(), **changes):
    images = Images([record, *others])
    generator = torch.Generator().manual_seed(seed)
    return prompts_of(record, Vocabulary(images), changed(**changes), generator, phrases)


def texts(prompts, kind):
    return {prompt.text: prompt.targets for prompt in prompts if prompt.kind == kind}


def test_an_exhaustive_image_has_targets_of_each_kind_of_prompt():
    captions = ["A blue star and two red circles", "a red star", "the sky"]
    record = image("red circle", "blue star", "red circle", captions=captions)
    prompts = sampled(record, negative_fraction={})
    assert texts(prompts, "generic") == {"objects in the image": (0, 1, 2)}
    assert texts(prompts, "category") == {
        "red circle": (0, 2),
        "blue star": (1,),
        "circle": (0, 2),
        "star": (1,),
        "red thing": (0, 2),
        "blue thing": (1,),
    }
    boxes = {prompt.box: prompt.targets for prompt in prompts if prompt.kind == "box"}
    assert {round(box[0], 6): targets for box, targets in boxes.items()} == {
        0.05: (0, 2),
        0.15: (1,),
        0.25: (0, 2),
    }
    for box in boxes:
        assert box[1:] == pytest.approx((0.4, 0.1, 0.4))
    assert texts(prompts, "caption") == {
        captions[0]: (0, 1, 2),
        captions[1]: (1,),
        captions[2]: None,
    }
    assert {prompt.text for prompt in prompts if prompt.kind == "box"} == {"visual"}
    assert [prompt.kind for prompt in prompts] == sorted(
        (prompt.kind for prompt in prompts), key=ALL.index
    )
    assert all(prompt.labeled for prompt in prompts)


def test_targets_of_what_may_not_be_annotated_are_unknown_but_for_a_box():
    names = ("red circle", "blue star", "red circle", None)
    for record in (image(*names[:3], exhaustive=False), image(*names)):
        record = replace(record, captions=("a red circle",))
        prompts = sampled(record, [image("green star")] * 5, negative_fraction={"category": 0.5})
        kinds = {"category", "caption"} | ({"generic"} if not record.exhaustive else set())
        assert {p.targets for p in prompts if p.kind in kinds} == {None}
        boxes = [prompt.targets for prompt in prompts if prompt.kind == "box"]
        assert sorted(boxes) == [(index,) for index in range(len(record.annotations))]


def test_real_images_without_names_have_generic_and_box_prompts():
    record = image(None, None, exhaustive=False)
    prompts = sampled(record, [record])
    assert [prompt.kind for prompt in prompts] == ["generic", "box", "box"]
    assert prompts[0].targets is None
    assert sorted(prompt.targets for prompt in prompts[1:]) == [(0,), (1,)]


def test_an_empty_image_is_a_negative_of_everything():
    empty = image()
    others = [image("red circle"), image("blue star")]
    prompts = [prompt for seed in range(20) for prompt in sampled(empty, others, seed=seed)]
    assert Counter(prompt.kind for prompt in prompts)["category"] > 3
    assert {prompt.targets for prompt in prompts} == {()}


@pytest.mark.parametrize(
    ("phrase", "name", "expected"),
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
        ("light", "red traffic light", None),
        ("traffic", "red traffic light", False),
        ("a dog", "dog", True),
        ("dogs", "the dog", True),
        ("dog", "dogs", True),
        ("buses", "a bus", True),
        ("glass", "glass", True),
        ("the red boxes", "red box", True),
        ("a blue box", "red boxes", False),
        ("truck", "fire truck", None),
        ("fire truck", "truck", None),
        ("hand", "the left hand", None),
        ("right hand", "the left hand", False),
        ("cat", "a dog", False),
        ("the", "the", True),
    ],
)
def test_a_name_matches_a_phrase_or_not_or_may(phrase, name, expected):
    assert matches(phrase, name) is expected


def test_what_may_be_there_is_no_certain_negative():
    for name in ("a dog", "dogs", "hot dog"):
        targets = targets_of("dog", image(name))
        assert targets == (None if name == "hot dog" else (0,)), name
    others = [image("truck"), image("dog")]
    prompts = [p for seed in range(10) for p in sampled(image("fire truck"), others, seed=seed)]
    negative = {prompt.text for prompt in prompts if prompt.targets == ()}
    assert "dog" in negative
    assert "truck" not in negative


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


def test_negatives_are_certain_and_of_the_given_fraction():
    images = scenes()
    prompts = sample_prompts(images, CONFIG, seed=0)
    categories = 0
    negatives = 0
    for record, of_image in zip(images, prompts, strict=True):
        category = [prompt for prompt in of_image if prompt.kind == "category"]
        assert len({prompt.text for prompt in category}) == len(category)
        for prompt in category:
            words = prompt.text.replace(" thing", "").split()
            truth = tuple(
                index
                for index, annotation in enumerate(record.annotations)
                if set(words) <= set(annotation.name.split())
            )
            assert prompt.targets == truth
        categories += len(category)
        negatives += sum(prompt.targets == () for prompt in category)
    assert negatives / categories == pytest.approx(0.4, abs=0.03)


def test_a_fraction_of_0_has_no_negatives():
    prompts = sample_prompts(scenes(30), changed(negative_fraction={}), seed=0)
    assert all(prompt.targets != () for of_image in prompts for prompt in of_image)


def test_the_text_does_not_tell_whether_it_is_there():
    rare = [image("cat", identity=1000 + number) for number in range(60)]
    images = Images([*scenes(600), *rare])
    prompts = sample_prompts(images, changed(kinds=("category",), per_image=6), seed=1)
    there = Counter((prompt.text, bool(prompt.targets)) for group in prompts for prompt in group)
    phrases = {text for text, _ in there}
    assert len(phrases) == 16
    total = there.total()
    always = sum(there[text, True] for text in phrases) / total
    by_text = sum(max(there[text, True], there[text, False]) for text in phrases) / total
    assert by_text < always + 0.02  # + 0.09 if absent phrases were drawn evenly


def test_what_is_uncertain_is_no_negative_of_an_exhaustive_image():
    others = [image("red circle"), image("blue thing"), image("cat")]
    samples = [texts(sampled(image("coin"), others, seed=seed), "category") for seed in range(30)]
    negatives = {text for sample in samples for text, targets in sample.items() if targets == ()}
    assert negatives <= {"red circle", "circle", "cat"}
    assert len(negatives) == 3
    assert all(targets is not None for sample in samples for targets in sample.values())


def test_too_many_prompts_are_cut_evenly_and_by_the_image():
    images = scenes(300)
    prompts = sample_prompts(images, changed(per_image=6), seed=0)
    counts = [Counter(prompt.kind for prompt in of_image) for of_image in prompts]
    assert max(len(of_image) for of_image in prompts) == 6
    assert all(count["generic"] == count["caption"] == 1 for count in counts)
    full = [count for count in counts if count["box"] >= 2]
    assert len(full) > 100
    assert all(count["category"] == count["box"] == 2 for count in full)
    reverse = sample_prompts(Images(images[::-1]), changed(per_image=6), seed=0)
    assert reverse[::-1] == prompts
    assert sample_prompts(images, changed(per_image=6), seed=1) != prompts


def test_a_kind_that_is_named_twice_has_two_turns_a_round():
    kinds = ("category", "category", "category", "box")
    prompts = sample_prompts(scenes(100), changed(kinds=kinds, per_image=4), seed=0)
    counts = [Counter(prompt.kind for prompt in of_image) for of_image in prompts]
    assert counts.count({"category": 3, "box": 1}) > 90


def test_one_prompt_an_image_is_of_each_kind_in_turn():
    prompts = sample_prompts(scenes(400), changed(per_image=1), seed=0)
    counts = Counter(of_image[0].kind for of_image in prompts)
    assert {len(of_image) for of_image in prompts} == {1}
    assert all(counts[kind] == pytest.approx(100, abs=30) for kind in ALL)


def test_one_generic_prompt_an_image():
    only = changed(kinds=("generic",), generic="all things", per_image=1)
    images = scenes(5)
    everything = [tuple(range(len(record.annotations))) for record in images]
    expected = [[Prompt("generic", "all things", None, targets, True)] for targets in everything]
    assert sample_prompts(images, only, seed=0) == expected


def test_withheld_names_are_not_labelled_wherever_they_are_mentioned():
    captions = ["two red stars", "a blue star and a red star", "a blue star"]
    record = image("red star", "blue star", captions=captions)
    prompts = sampled(record, [image("red star")] * 9, withheld=("red star",))
    shown = {prompt.text: prompt.labeled for prompt in prompts if prompt.kind != "box"}
    assert {text for text, labeled in shown.items() if not labeled} == {"red star", *captions[:2]}
    boxes = {prompt.targets: prompt.labeled for prompt in prompts if prompt.kind == "box"}
    assert boxes == {(0,): False, (1,): True}
    negatives = [
        prompt
        for seed in range(30)
        for prompt in sampled(image("coin"), [record], seed=seed, withheld=("star",))
        if prompt.targets == ()
    ]
    assert {prompt.text: prompt.labeled for prompt in negatives} == {
        "star": False,
        "red star": False,
        "blue star": False,
    }


def test_impossible_prompts_are_refused():
    with pytest.raises(ValueError, match=r"withheld: 'red cat' is not in .* some of: circle, red"):
        sample_prompts(Images([image("red circle")]), changed(withheld=("red cat",)), seed=0)
    unnamed = Images([image(None, exhaustive=False)])
    with pytest.raises(ValueError, match=r"some of: nothing, as no annotation has a name"):
        sample_prompts(unnamed, changed(withheld=("red cat",)), seed=0)
    with pytest.raises(ValueError, match="kinds: category, caption: these images have nothing"):
        sample_prompts(unnamed, changed(kinds=("category", "caption")), seed=0)


def test_targets_are_all_that_a_phrase_means_or_unknown():
    assert targets_of("circle", image("red circle", "star", "blue circle")) == (0, 2)
    assert targets_of("circle", image("red circle", None)) is None
    assert targets_of("circle", image("red circle", exhaustive=False)) is None
    assert targets_of("circle", image()) == ()


def test_rows_count_prompts_by_kind():
    record = image("red star", "blue star", captions=["a red star", "the sky"])
    prompts = [
        sampled(record, [image("red star")] * 9, withheld=("red star",)),
        [],
        sampled(image()),
    ]
    rows = {row["kind"]: row for row in prompt_rows(prompts)}
    every = [prompt for group in prompts for prompt in group]
    assert rows["all"]["prompts"] == len(every) == sum(rows[k]["prompts"] for k in ALL)
    assert rows["box"] == {
        "kind": "box", "prompts": 2, "known": 2, "withheld": 1, "negative_fraction": 0.0
    }  # fmt: skip
    assert rows["caption"]["known"] == 1
    negatives = sum(prompt.targets == () for prompt in every)
    known = sum(prompt.targets is not None for prompt in every)
    assert rows["all"]["negative_fraction"] == pytest.approx(negatives / known, abs=1e-4)
    assert prompt_rows([[]])[0]["negative_fraction"] is None


def test_phrases_are_prompts_on_any_image_there_or_not():
    phrases = ("dogs", "cat", "truck")
    kinds = ("phrase", "box")
    for seed in range(3):
        prompts = sampled(image("a dog", "fire truck"), seed=seed, phrases=phrases, kinds=kinds)
        assert texts(prompts, "phrase") == {"dogs": (0,), "cat": (), "truck": None}
    bare = sampled(image(None, exhaustive=False), phrases=phrases, kinds=kinds)
    assert texts(bare, "phrase") == dict.fromkeys(phrases)  # of unknown truth: for the teacher
    chosen = [sampled(image(), seed=seed, phrases=phrases, kinds=kinds) for seed in range(30)]
    first = Counter(prompts[0].text for prompts in chosen)
    assert set(first) == set(phrases)
    one = [sampled(image(), seed=s, phrases=phrases, kinds=kinds, per_image=1) for s in range(30)]
    assert {prompts[0].text for prompts in one} == set(phrases)
    shown = sampled(image(), phrases=phrases, kinds=kinds, withheld=("cat",))
    assert {prompt.text for prompt in shown if not prompt.labeled} == {"cat"}
    images = Images([image("red circle")])
    withheld = changed(withheld=("cat",), kinds=("phrase",))
    assert len(sample_prompts(images, withheld, 0, ["cat", "dog"])[0]) == 2


def test_phrases_are_those_of_the_list_and_of_the_file_once(tmp_path):
    file = tmp_path / "phrases.txt"
    file.write_text("Fire  Truck\n\n dog \n")
    assert all_phrases(changed(phrases=("dog", "cat")), file) == ["dog", "cat", "fire truck"]
    assert all_phrases(CONFIG, None) == []
    file.write_text("\n \n")
    with pytest.raises(ValueError, match=r"phrases_file .*phrases\.txt: empty, expected a phrase"):
        all_phrases(CONFIG, file)
    with pytest.raises(ValueError, match=r"phrases_file .*nowhere: unreadable"):
        all_phrases(CONFIG, tmp_path / "nowhere")


def test_an_image_may_be_exhaustive_in_some_phrases_and_state_negatives():
    record = image("dog", "cat", None, exhaustive=False, complete=("a dog", "zebras"))
    assert targets_of("dog", replace(record, annotations=record.annotations[:2])) == (0,)
    assert targets_of("dog", record) is None  # the third object may be one
    named = replace(record, annotations=record.annotations[:2])
    expected = {"cat": None, "dogs": (0,), "zebra": (), "horse": None}
    assert {phrase: targets_of(phrase, named) for phrase in expected} == expected
    others = [image("horse")] * 20
    for seed in range(5):
        prompts = sampled(named, others, seed=seed, negative_fraction={"category": 0.5})
        negatives = [p for p in prompts if p.kind == "category" and p.text in ("zebras", "horse")]
        assert ("zebras", ()) in {(prompt.text, prompt.targets) for prompt in negatives}
    first = sampled(
        named, others, kinds=("category",), negative_fraction={"category": 0.9}, per_image=2
    )
    assert "zebras" in {prompt.text for prompt in first}  # before what other images have


@pytest.mark.parametrize("fraction", [0.0, 0.3, 0.5])
def test_boxes_around_nothing_are_of_the_given_fraction(fraction):
    prompts = sample_prompts(
        scenes(), changed(kinds=("box",), per_image=4, negative_fraction={"box": fraction}), seed=0
    )
    boxes = [prompt for of_image in prompts for prompt in of_image]
    negatives = [prompt for prompt in boxes if prompt.targets == ()]
    assert len(negatives) / len(boxes) == pytest.approx(fraction, abs=0.05)
    # Objects are a tenth wide and .2 to .6 high, side by side from the left.
    for record, of_image in zip(scenes(), prompts, strict=True):
        for prompt in of_image:
            x, y, width, height = prompt.box
            assert (width, height) == pytest.approx((0.1, 0.4))
            meets = x - width / 2 < len(record.annotations) / 10 and abs(y - 0.4) < 0.4
            assert meets or not prompt.targets
            if not prompt.targets:
                assert not meets
                assert 0 <= x - width / 2 < x + width / 2 <= 1 + 1e-6
    bare = sampled(
        image(None, exhaustive=False), kinds=("box",), negative_fraction={"box": 0.5}, per_image=9
    )
    assert {prompt.targets for prompt in bare} == {(0,), None}  # what is there is not all known


def test_captions_of_other_images_are_negatives_of_the_given_fraction():
    images = scenes()
    only = changed(kinds=("caption",), per_image=2, negative_fraction={"caption": 0.4})
    prompts = sample_prompts(images, only, seed=0)
    every = [prompt for of_image in prompts for prompt in of_image]
    negatives = sum(prompt.targets == () for prompt in every)
    assert negatives / len(every) == pytest.approx(0.4, abs=0.08)
    for record, of_image in zip(images, prompts, strict=True):
        names = {annotation.name for annotation in record.annotations}
        for prompt in of_image:
            if prompt.text in record.captions:
                assert prompt.targets
            else:
                assert not any(name in prompt.text for name in names)
