"""The demo: phantoms, the trained-for map, the pointing protocol, and the shipped checkpoint."""

import json
from itertools import combinations

import cv2
import evaluate_demo
import numpy as np
import pytest
import torch

from clip_gradcam_visualization import CLIPGradCAM, get_target_layer_for_clip, load_clip_checkpoint
from models.demo import cnn as demo
from models.demo.dataset import SEEDS, normalise
from models.demo.findings import FINDINGS, KINDS
from models.demo.phantoms import draw_phantom
from models.demo.protocol import dilate, is_hit, squash_as_the_tool
from models.demo.sentences import class_texts
from models.images.preprocessing import preprocess

SIZE = (160, 128)


def draw(kind, seed=11, **options):
    return draw_phantom(seed, (kind,) if kind in FINDINGS else (), SIZE, kind == "native", **options)


# -- phantoms ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_seed_is_a_picture_with_a_mask_of_its_finding(kind):
    phantom, same, other = draw(kind), draw(kind), draw(kind, seed=12)
    assert phantom.image.dtype == np.uint8 and phantom.image.shape == SIZE and phantom.subject.any()
    assert np.array_equal(phantom.image, same.image) and not np.array_equal(phantom.image, other.image)
    assert set(phantom.masks) == ({kind} if kind in FINDINGS else set())
    assert all(mask.shape == SIZE and 0 < mask.mean() < 0.5 for mask in phantom.masks.values())
    if kind in ("stem_loose", "cup_loose", "infection", "wear"):  # the twin differs only near the mask
        twin = draw_phantom(11, (), SIZE, view_for=(kind,))
        differs = np.abs(phantom.image.astype(int) - twin.image) > 8
        assert differs.any() and not (differs & ~dilate(phantom.masks[kind], 16)).any()


def test_seed_ranges_never_meet():
    assert all(
        set(a).isdisjoint((b.start, b.stop - 1)) and (a.stop <= b.start or b.stop <= a.start)
        for a, b in combinations(SEEDS.values(), 2)
    )


# -- the map that training sees is the Grad-CAM of the cosine -----------------------------------


def test_cosine_cam_is_gradcam_up_to_a_factor():
    torch.manual_seed(0)
    model = demo.build_model(demo.RECIPE).eval()
    norm = model.image_encoder.backbone.norm
    torch.nn.init.uniform_(norm.running_var, 0.5, 2)
    torch.nn.init.normal_(norm.running_mean)
    torch.nn.init.normal_(norm.weight)
    texts = torch.nn.functional.normalize(torch.randn(3, demo.RECIPE["embed_dim"]), dim=-1)
    activations, z, scale = demo.encode_with_activations(model.image_encoder, torch.randn(2, 3, 96, 96))
    maps = demo.cosine_cam(activations, scale, model.image_encoder.projection.weight, z, texts)
    leaf = activations.detach().requires_grad_()
    pooled = norm(leaf).mean((2, 3))
    cosine = torch.nn.functional.normalize(model.image_encoder.projection(pooled), dim=-1) @ texts.T
    for t in range(3):
        (gradient,) = torch.autograd.grad(cosine[:, t].sum(), leaf, retain_graph=True)
        expected = (gradient.mean((2, 3), keepdim=True) * leaf).sum(1)
        for mine, theirs in zip(maps[:, t], expected, strict=True):
            factor = (mine * theirs).sum() / (theirs * theirs).sum()
            assert factor > 0
            torch.testing.assert_close(mine, factor * theirs, rtol=1e-3, atol=1e-4)


# -- the protocol -------------------------------------------------------------------------------


def box(left, top, right, bottom):
    mask = np.zeros((224, 224), bool)
    mask[top:bottom, left:right] = True
    return mask


def test_hit_is_a_peak_within_the_tolerance():
    heatmap = np.zeros((224, 224))
    heatmap[100, 100] = 1
    assert is_hit(heatmap, box(115, 90, 130, 110))  # 15 pixels away
    assert not is_hit(heatmap, box(116, 90, 130, 110))
    assert not is_hit(np.zeros((224, 224)), box(0, 0, 224, 224))


def test_place_map_finds_the_best_blind_guess():
    corner, centre = box(5, 5, 10, 10), box(110, 110, 114, 114)
    place = evaluate_demo.place_map([corner, centre, centre])
    assert place.max() == pytest.approx(2 / 3)
    assert place[7, 7] == pytest.approx(1 / 3)
    assert is_hit(place, centre) and not is_hit(place, corner)


# -- what is shipped ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shipped():
    model = load_clip_checkpoint(str(demo.CHECKPOINT))
    return model, CLIPGradCAM(model, get_target_layer_for_clip(model))


def pixels_of(image, model):
    """Grey uint8 [H, W] -> [1, 3, S, S] normalised, as the tool does it."""
    return preprocess(np.repeat(image[..., None], 3, axis=2), model.img_size)


def test_measuring_prepares_images_as_the_tool_does():
    image = draw("normal").image
    mine = normalise(torch.tensor(squash_as_the_tool(image, 64))[None, None].float() / 255)
    torch.testing.assert_close(mine, preprocess(np.repeat(image[..., None], 3, axis=2), 64), rtol=1e-5, atol=1e-5)


def samples():
    return json.loads((demo.ASSETS / "samples.json").read_text(encoding="utf-8"))


def test_sizes_of_the_shipped_files():
    assert demo.CHECKPOINT.stat().st_size < 15e6
    assert sum(path.stat().st_size for path in demo.ASSETS.glob("*.png")) < 1.5e6
    assert any(entry["size"][0] != entry["size"][1] for entry in samples())
    assert any(len(entry["findings"]) == 2 for entry in samples())


def test_samples_are_drawn_by_their_seeds():
    for entry in samples():
        image = cv2.imread(str(demo.ASSETS / entry["file"]), cv2.IMREAD_GRAYSCALE)
        kinds = tuple(finding["kind"] for finding in entry["findings"])
        phantom = draw_phantom(entry["seed"], kinds, tuple(entry["size"]))
        assert entry["synthetic"] and image.shape == tuple(entry["size"])
        assert np.abs(phantom.image.astype(int) - image).mean() < 4
        boxes = {finding["kind"]: finding["box"] for finding in entry["findings"]}
        assert boxes == {kind: demo.bounding_box(mask) for kind, mask in phantom.masks.items()}


def test_descriptions_and_short_names_name_the_single_findings(shipped):
    model, _ = shipped
    names = {"well_fixed.png": 0, "stem_loosening.png": 1, "infection.png": 2}
    for entry in (entry for entry in samples() if len(entry["findings"]) < 2):
        pixels = pixels_of(cv2.imread(str(demo.ASSETS / entry["file"]), cv2.IMREAD_GRAYSCALE), model)
        if entry["findings"]:
            answer = model.predict(pixels, class_texts())[0].item()
            assert KINDS[answer] == entry["findings"][0]["kind"], entry["file"]
        if entry["file"] in names:
            answer = model.predict(pixels, ["正常假体", "假体松动", "假体周围感染"])[0].item()
            assert answer == names[entry["file"]], entry["file"]


def test_each_finding_is_found_by_its_own_text(shipped):
    model, cam = shipped
    texts = class_texts()
    for entry in samples():
        image = cv2.imread(str(demo.ASSETS / entry["file"]), cv2.IMREAD_GRAYSCALE)
        for finding in entry["findings"]:
            with torch.no_grad():
                feature = model.text_encoder(texts=[texts[finding["name"]]])
            heatmap = cam(pixels_of(image, model), feature, target_text_idx=[0])
            heatmap = cv2.resize(np.asarray(heatmap).squeeze(), (224, 224))
            height, width = entry["size"]
            left, top, right, bottom = np.array(finding["box"]) * 224 / np.array([width, height, width, height])
            assert is_hit(heatmap, box(int(left), int(top), round(right) + 1, round(bottom) + 1)), entry["file"]
