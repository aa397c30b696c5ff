"""The second demo: its loss, its start, and the shipped folder as transformers and the tool load it."""

import json

import cv2
import numpy as np
import pytest
import torch

from models.demo import cnn as demo
from models.demo import vit as demo_vit
from models.demo.dataset import SEEDS, normalise
from models.demo.findings import KINDS
from models.demo.phantoms import draw_phantom
from models.demo.protocol import squash_as_the_tool
from models.demo.sentences import TEMPLATES, class_texts

FILES = {
    "config.json", "model.safetensors", "preprocessor_config.json", "recipe.json", "tokenizer_config.json",
    "vocab.txt",
}  # fmt: skip
# the two findings of the last picture are equally right answers
SAMPLES = {
    "well_fixed.png": ("normal",), "stem_loosening.png": ("stem_loose",), "infection.png": ("infection",),
    "dislocation.png": ("dislocation",), "two_findings.png": ("cup_loose", "fracture"),
}  # fmt: skip


# -- what training does -------------------------------------------------------------------------


def test_the_vision_tower_starts_with_filters_that_whiten():
    torch.manual_seed(0)
    images = torch.from_numpy(np.stack([draw_phantom(seed, size=(224, 224)).image for seed in range(12)]))
    model = demo_vit.build_model(demo_vit.RECIPE)
    demo_vit.start_vision_tower(model.vision_model, images)
    with torch.no_grad():
        patches = model.vision_model.embeddings(normalise(images[:, None].float() / 255))[:, 1:]
    assert patches.mean((0, 1)).abs().max() < 0.75  # the mean patch is taken off; position codes reach 0.5
    spread = (patches - patches.mean(0)).flatten(0, 1)[:, :8].std(0)  # the largest components
    assert spread.min() > 0.4 and spread.max() < 1.6


def test_seeds_of_training_and_measuring_are_apart():
    first, count = SEEDS["train"].start, (len(KINDS) - 1) * demo_vit.RECIPE["train_per_kind"]
    last = first + count - 1  # every kind but "normal", which is drawn as the others' twin, has seeds of its own
    for name in ("validation", "test", "pairs", "samples"):
        assert first not in SEEDS[name] and last not in SEEDS[name] and last < SEEDS[name].start


# -- what is shipped ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shipped():
    from models.loading.load import load_clip_checkpoint

    return load_clip_checkpoint(demo_vit.ASSETS)


@pytest.fixture(scope="module")
def by_transformers():
    from transformers import ChineseCLIPModel

    return ChineseCLIPModel.from_pretrained(demo_vit.ASSETS).float().eval()


def sample(file):
    return cv2.cvtColor(cv2.imread(str(demo.ASSETS / file)), cv2.COLOR_BGR2RGB)


def test_the_folder_holds_these_files_and_is_small():
    assert {path.name for path in demo_vit.ASSETS.iterdir()} == FILES
    assert sum(path.stat().st_size for path in demo_vit.ASSETS.iterdir()) < 15e6


def test_weights_are_those_of_the_recipe():
    from safetensors.torch import load_file

    weights = load_file(demo_vit.ASSETS / "model.safetensors")
    expected = demo_vit.build_model(demo_vit.RECIPE).state_dict()
    assert {name: tensor.shape for name, tensor in weights.items()} == {n: t.shape for n, t in expected.items()}
    assert {tensor.dtype for tensor in weights.values()} == {torch.float16}
    assert all(tensor.isfinite().all() for tensor in weights.values())
    written = json.loads((demo_vit.ASSETS / "recipe.json").read_text(encoding="utf-8"))["recipe"]
    assert written == json.loads(json.dumps(demo_vit.RECIPE))


def test_images_are_prepared_as_training_saw_them(shipped):
    image = draw_phantom(11, size=(300, 210)).image
    seen = normalise(torch.tensor(squash_as_the_tool(image, 224))[None, None].float() / 255)
    torch.testing.assert_close(shipped.preprocessing(np.repeat(image[..., None], 3, 2)), seen, rtol=1e-5, atol=1e-5)


def test_transformers_prepares_images_the_same_way(shipped):
    from transformers import AutoImageProcessor

    processor = AutoImageProcessor.from_pretrained(demo_vit.ASSETS, use_fast=False)
    pixels = sample("infection.png")
    theirs = processor(images=pixels, return_tensors="pt")["pixel_values"]
    assert (theirs - shipped.preprocessing(pixels)).abs().max() < 0.05  # a grey level or two of the 256


def test_the_tool_and_transformers_agree(shipped, by_transformers):
    texts = list(class_texts().values())
    pixels = shipped.preprocessing(sample("well_fixed.png"))
    tokens = demo_vit.load_tokenizer(demo_vit.ASSETS)(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        theirs = by_transformers(pixel_values=pixels, **tokens).logits_per_image.softmax(-1)
        mine = shipped.probabilities(shipped.image_encoder(pixels) @ shipped.text_encoder(texts=texts).T)
    torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-5)


def test_the_tokenizer_is_that_of_training():
    texts = [template.format(text) for template in TEMPLATES for text in class_texts().values()]
    mine, theirs = demo_vit.load_tokenizer(demo_vit.ASSETS), demo_vit.load_tokenizer()
    assert mine(texts)["input_ids"] == theirs(texts)["input_ids"]
    assert max(map(len, mine(texts)["input_ids"])) <= demo_vit.MAX_TOKENS


def test_descriptions_name_the_samples(shipped):
    features = shipped.text_encoder(texts=list(class_texts().values())).detach()
    for file, kinds in SAMPLES.items():
        with torch.no_grad():
            answer = (shipped.image_encoder(shipped.preprocessing(sample(file))) @ features.T).argmax().item()
        assert KINDS[answer] in kinds, file
