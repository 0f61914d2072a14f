"""A few built-in images with prompts of all kinds."""

import pytest

from braid.segmentation.config import PromptsConfig, ShapesConfig
from braid.segmentation.data.prompted import open_prompted, write_prompts
from braid.segmentation.data.sa1b import open_images
from braid.segmentation.preparation.built_in import write_built_in
from braid.segmentation.preparation.prompts import sample_prompts
from braid.segmentation.preparation.scan import scan, write_manifest
from braid.segmentation.sam3.predictor import word_tokenizer, words_in
from tests.segmentation.tiny_models import CONTEXT


@pytest.fixture(scope="package")
def prompted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sa1b")
    shapes = ShapesConfig(scenes=6, photos=0, most_shapes=2)
    write_built_in(folder / "images", shapes, size=56, seed=0)
    write_manifest(folder, scan(folder / "images", val=2, test=0, faults="fatal"), image_size=56)
    config = PromptsConfig(
        kinds=("generic", "category", "box", "caption"),
        generic="objects",
        per_image=6,
        phrases=(),
        phrases_file="none",
        negative_fraction={"category": 0.3, "box": 0.3, "caption": 0.0},
        withheld=(),
    )
    write_prompts(folder, sample_prompts(open_images(folder, cache_mib=1), config, 0))
    return open_prompted(folder, cache_mib=1)


@pytest.fixture(scope="package")
def tokenizer(prompted):
    return word_tokenizer(words_in(prompted.texts()), length=CONTEXT)
