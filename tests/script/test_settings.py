"""How a heatmap is made where little is asked for: defaults, the guide's methods, `--method all`, one text or all."""

import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from test_gradcam import pictures, texts
from test_methods import small_vit
from test_models import on_meta
from tiny import assert_same_map

from clip_gradcam_visualization import CLIPGradCAM, Explainer, explain, main
from models.explain import defaults, needs
from models.explain.defaults import EncoderRow, settings_of
from models.explain.heatmap import text_specificity
from models.explain.layers import layer_name
from models.explain.methods import METHODS, reads_attention
from models.explain.question import OFF_THE_DIRECTION, Others, Question, Setting
from models.images.preprocessing import square
from models.images.reading import read_image
from models.weights.hub import SHIPPED_TEXT_ENCODERS

TEXTS = ["正常", "松动", "感染"]
LAYER_METHODS = [name for name in METHODS if not reads_attention(name)]
TAKEN_OFF = Others(0.2)
FUSED = EncoderRow("last", "hirescam", "dot", ("early", "late"), True, TAKEN_OFF)


def question(count=3, **options):
    names = [f"文本{i}" for i in range(count)]
    return Question(names, names, **{"method": None, "similarity": None, "subtract_others": None, **options})


@pytest.fixture
def row(monkeypatch):
    """A function that gives the encoder "net" a row; its layers are the row's words."""
    monkeypatch.setattr(defaults, "_module_at", lambda model, path: path)

    def give(encoder_row):
        monkeypatch.setitem(defaults.ENCODERS, "net", encoder_row)

    return give


# -- which setting ----------------------------------------------------------------------------


@pytest.mark.parametrize("encoder", defaults.ENCODERS)
@pytest.mark.parametrize("method", ["gradcam", "layercam", "eigencam"])
def test_a_method_by_name_is_the_guides_whatever_the_default(encoder, method, row, clip, monkeypatch):
    """One layer, the cosine, nothing taken off."""
    target_layer = defaults.ENCODERS[encoder].target_layer
    for default in (defaults.ENCODERS[encoder], FUSED._replace(target_layer=target_layer)):
        monkeypatch.setitem(defaults.ENCODERS, encoder, default)
        for count in (1, 2, 9):
            (setting,) = settings_of(clip, encoder, question(count, method=method))
            assert setting == Setting(method, "cosine", [target_layer])
            assert setting.fused_layers == 1


@pytest.mark.parametrize("encoder", defaults.OWN_ENCODERS)
def test_an_encoders_default_is_its_row(encoder):
    model, of_encoder = on_meta(encoder), defaults.ENCODERS[encoder]
    (setting,) = settings_of(model, encoder, question(3))
    paths = of_encoder.layers or (of_encoder.target_layer,)
    layers = [] if reads_attention(of_encoder.method) else [defaults._module_at(model, path) for path in paths]
    expected = Setting(
        of_encoder.method,
        of_encoder.similarity,
        layers,
        of_encoder.others if of_encoder.subtract_others else None,
        True,
    )
    assert setting == expected and all(isinstance(layer, torch.nn.Module) for layer in setting.layers)


FUSED_LAYERS = {  # the ends of the stages whose maps are fused, of a network of each kind
    "resnet18": ("layer3.1", "layer4.1"),
    "resnet50": ("layer3.5", "layer4.2"),
    "starnet_s1": ("stages.2.8", "stages.3.3"),
    "starnet_dual_pyramid_rcf": ("local.blocks_list.2", "norm"),
    "convnext-tiny": ("features.5.8", "features.7.2"),
    "efficientnet-b0": ("features.5.2", "features.8"),
}


@pytest.mark.parametrize("encoder, names", FUSED_LAYERS.items(), ids=FUSED_LAYERS)
def test_a_network_is_explained_by_the_ends_of_two_stages(encoder, names):
    model = on_meta(encoder)
    (setting,) = settings_of(model, encoder, question(3))
    assert tuple(layer_name(model, layer) for layer in setting.layers) == names
    assert setting[:2] == ("local-gradcam", "dot") and setting.others == Others(0.45)


@pytest.mark.parametrize("encoder", ["vit", "clip-vit", "plain-vit", "dinov2", "siglip-vit", "siglip2-vit"])
def test_a_transformer_is_explained_by_its_attention(encoder):
    row = defaults.ENCODERS[encoder]
    assert row[1:] == ("legrad-attention", "dot", (), True, Others(1.0, of_maps=True), False)


BOTH, TAKEN = ["early", "late"], {"subtract_others": True}
SETTINGS = {
    "nothing": ({}, (), Setting("hirescam", "dot", BOTH, TAKEN_OFF, True)),
    "many texts": ({"count": 30}, (), Setting("hirescam", "dot", BOTH, TAKEN_OFF, True)),
    "two texts": ({"count": 2}, (), Setting("hirescam", "dot", BOTH, is_default=True)),
    "one text": ({"count": 1}, (), Setting("hirescam", "dot", BOTH, is_default=True)),
    "two texts, taken off": ({"count": 2, "subtract_others": True}, (), Setting("hirescam", "dot", BOTH, TAKEN_OFF)),
    "contrast": ({"contrast": 0.6}, (), Setting("hirescam", "dot", BOTH)),
    "not taken off": ({"subtract_others": False}, (), Setting("hirescam", "dot", BOTH)),
    "what is the default": ({"subtract_others": True}, (), Setting("hirescam", "dot", BOTH, TAKEN_OFF, True)),
    "cosine": ({"similarity": "cosine"}, (), Setting("hirescam", "cosine", BOTH, TAKEN_OFF)),
    "a layer": ({}, ["own"], Setting("hirescam", "dot", ["own"], TAKEN_OFF)),
    "a method": ({"method": "hirescam"}, (), Setting("hirescam", "cosine", ["last"])),
    "a method's layers": ({"method": "layercam"}, ["a", "b"], Setting("layercam", "cosine", ["a", "b"])),
    "a method and dot": ({"method": "gradcam", "similarity": "dot"}, (), Setting("gradcam", "dot", ["last"])),
    "a method, taken off": ({"method": "gradcam", **TAKEN}, (), Setting("gradcam", "cosine", ["last"], TAKEN_OFF)),
    "no text known": ({"method": "eigencam", **TAKEN}, (), Setting("eigencam", "cosine", ["last"])),
    "attention": ({"method": "legrad", **TAKEN}, (), Setting("legrad", "cosine", [], TAKEN_OFF)),
    "attention's blocks": ({"method": "legrad"}, ["block"], Setting("legrad", "cosine", ["block"])),
    "no text known, attention": ({"method": "rollout", **TAKEN}, (), Setting("rollout", "cosine", [])),
}  # fmt: skip


@pytest.mark.parametrize("asked, layers, expected", SETTINGS.values(), ids=SETTINGS)
def test_what_is_asked_for_stands_before_the_default(asked, layers, expected, row, clip):
    row(FUSED)
    assert settings_of(clip, "net", question(**asked), layers) == [expected]


def test_a_default_that_reads_attention_gives_way_to_the_guides_where_layers_are_asked_for(row):
    row(EncoderRow("last", "legrad", "cosine", subtract_others=True, others=TAKEN_OFF))
    vit = small_vit()
    assert settings_of(vit, "net", question()) == [Setting("legrad", "cosine", [], TAKEN_OFF, True)]
    assert settings_of(vit, "net", question(), ["own"]) == [Setting("gradcam", "cosine", ["own"])]


def test_a_tower_that_lacks_what_the_default_needs_is_explained_by_the_guides(row, clip):
    """A caller's own: without attention that can be read, or without the embedding before its normalisation."""
    guide = [Setting("gradcam", "cosine", ["last"], is_default=True)]
    row(EncoderRow("last", "legrad", "dot", subtract_others=True))
    assert settings_of(clip, "net", question()) == guide
    row(FUSED)
    bare = SimpleNamespace(image_encoder=torch.nn.Identity())
    assert settings_of(bare, "net", question()) == guide


def test_a_tower_without_the_layers_of_its_row_is_explained_by_the_guides(clip):
    """A caller's own, under a name that the table has."""
    for method, count in ((None, 1), ("all", len(LAYER_METHODS))):
        settings = settings_of(clip, "resnet18", question(method=method), ["own"])
        assert settings[0] == Setting("gradcam", "cosine", ["own"], is_default=False) and len(settings) == count


@pytest.mark.parametrize(
    "asked, layers, marked", [({}, (), True), ({"similarity": "dot"}, (), False), ({}, ["own"], False)], ids=str
)
def test_all_has_the_guides_once_where_it_is_the_default(asked, layers, marked, row, clip):
    row(EncoderRow("last"))
    settings = settings_of(clip, "net", question(method="all", **asked), layers)
    assert [setting.method for setting in settings] == LAYER_METHODS
    assert [setting.is_default for setting in settings] == [marked] + [False] * (len(settings) - 1)


def test_an_encoder_without_a_row_is_explained_at_the_layers_that_are_asked_for(clip):
    assert settings_of(clip, "odd", question(), ["own"]) == [Setting("gradcam", "cosine", ["own"])]
    methods = [setting.method for setting in settings_of(clip, "odd", question(method="all"), ["own"])]
    assert methods == LAYER_METHODS


@pytest.mark.parametrize(
    "asked, similarity, subtracts",
    [({}, "cosine", False), ({"similarity": "dot"}, "dot", False), ({"subtract_others": True}, "cosine", True)],
    ids=str,
)
def test_all_is_the_default_and_then_each_method_as_the_guide_has_it(asked, similarity, subtracts, row, clip):
    """What else is asked for changes the methods; the default stays."""
    row(FUSED)
    default, *others = settings_of(clip, "net", question(method="all", **asked))
    assert default == Setting("hirescam", "dot", BOTH, TAKEN_OFF, True)
    taken_off = {m: TAKEN_OFF if subtracts and METHODS[m].knows_text else None for m in LAYER_METHODS}
    assert others == [Setting(m, similarity, ["last"], taken_off[m]) for m in LAYER_METHODS]


# -- one text or all --------------------------------------------------------------------------


ASKED = [{}, {"similarity": "cosine"}, {"contrast": True}, {"method": "layercam"}, {"method": "gradcam", **TAKEN}]


def explained(clip, picture, target="all", **asked):
    """Three texts that are told apart, on a grid of 6 x 6 at the last layer."""
    return explain(
        clip, picture, TEXTS, img_size=192, target_text_idx=target, text_features=texts(3, 32, seed=6), **asked
    )


@pytest.mark.parametrize("asked", ASKED, ids=str)
def test_a_text_has_one_map_and_one_specificity_whether_it_alone_or_all_are_asked_for(asked, clip, picture):
    together = explained(clip, picture, **asked)
    assert len({value for value in together.specificities if value is not None}) > 1
    for target in range(3):
        alone = explained(clip, picture, target, **asked)
        scale = np.abs(together.maps).max()
        np.testing.assert_allclose(alone.maps[0], together.maps[target], rtol=0, atol=1e-5 * scale)
        assert alone.specificities == pytest.approx(together.specificities[target : target + 1], abs=1e-4)


def test_the_specificity_is_of_the_coarsest_layer_alone_with_the_others_taken_off(clip, picture):
    result = explained(clip, picture)
    assert (result.layer, result.method) == ("stages.2.8 + stages.3.3", "local-gradcam")
    images, every = square(192)(read_image(picture)), torch.arange(3)[None]
    cam = CLIPGradCAM(clip, "stages.3.3", method="local-gradcam", similarity="dot", others=OFF_THE_DIRECTION)
    maps = cam.text_maps(images, texts(3, 32, seed=6), every).maps[0].numpy()
    expected = [text_specificity(maps, k) for k in range(3)]
    assert result.specificities == pytest.approx(expected, abs=1e-4) and None not in expected
    for order in (["stages.1.1", "stages.3.3"], ["stages.3.3", "stages.1.1"]):
        other = explained(clip, picture, target_layer=order)
        assert other.specificities == pytest.approx(expected, abs=1e-4) and other.maps.shape == (3, 24, 24)


def test_the_default_takes_the_others_off_from_three_texts_on(clip, picture):
    row = defaults.ENCODERS["starnet_s1"]
    options = {"method": row.method, "similarity": row.similarity, "target_layer": ["stages.2.8", "stages.3.3"]}
    for count, taken in ((1, False), (2, False), (3, True)):
        result = explain(clip, picture, TEXTS[:count], img_size=64, target_text_idx=0)
        written_out = explain(
            clip, picture, TEXTS[:count], img_size=64, target_text_idx=0, subtract_others=taken, **options
        )
        assert result.is_default and not written_out.is_default
        assert result.question.subtract_others == written_out.question.subtract_others == taken
        np.testing.assert_array_equal(result.maps, written_out.maps)


def test_curves_are_of_the_cosine_whatever_is_explained(clip, picture):
    """Two settings' areas can be compared: one map tested under either has one curve."""
    maps = []
    for similarity in ("cosine", "dot"):
        asked = {"similarity": similarity, "method": "eigencam", "faithfulness": True}
        result = explain(clip, picture, TEXTS, img_size=64, target_text_idx=1, **asked)
        (tested,) = result.faithfulness
        assert tested.deletion_curve[0] == pytest.approx(result.similarities[1], abs=1e-5)
        maps.append((result.maps, tested.deletion_curve))
    assert_same_map(maps[0][0] / maps[0][0].max(), maps[1][0] / maps[1][0].max())
    np.testing.assert_allclose(maps[0][1], maps[1][1], atol=1e-5)


# -- how many passes --------------------------------------------------------------------------


def passes_of(model, asked, monkeypatch, side=64):
    """(sizes of the batches that go through the image tower, backward passes, settings) for one image."""
    batches, backward, genuine = [], [], needs.gradients_of
    monkeypatch.setattr(needs, "gradients_of", lambda *args: backward.append(1) or genuine(*args))
    backbone = model.image_encoder.backbone
    handle = backbone.register_forward_pre_hook(
        lambda module, args, kwargs: batches.append(len(args[0] if args else kwargs["pixel_values"])), with_kwargs=True
    )
    explainer = Explainer(model, texts(3, 32), asked)
    explainer(pictures(1, side, side))
    handle.remove()
    return batches, len(backward), explainer.settings


def test_the_guides_methods_share_one_forward_pass(clip, monkeypatch):
    """The default has a pass of its own, for its layers are others; Score-CAM's masked images come on top, once."""
    batches, _, settings = passes_of(clip, question(targets=[1], method="all"), monkeypatch)
    assert [setting.method for setting in settings] == ["local-gradcam", *LAYER_METHODS]
    assert batches == [1, 1, *[16] * 12]  # 192 channels


def test_methods_of_attention_have_a_pass_each(monkeypatch):
    model = small_vit()
    batches, _, settings = passes_of(model, question(targets=[1], method="all"), monkeypatch)
    assert [setting.method for setting in settings] == ["legrad-attention", *METHODS]
    assert batches == [1, 1, *[16] * 3, *[1] * 5]  # the default, those of a layer, 48 channels, those of attention


def test_a_default_of_two_layers_takes_one_pass_forward_and_few_back(clip, monkeypatch):
    """Of the text at both layers; then of all texts at the last, where it costs less."""
    batches, backward, _ = passes_of(clip, question(targets=[1]), monkeypatch)
    assert batches == [1] and backward == 1 + 3
    batches, backward, _ = passes_of(clip, question(targets=[1], method="gradcam"), monkeypatch)
    assert batches == [1] and backward == 3


# -- the command ------------------------------------------------------------------------------


@pytest.fixture
def run(checkpoint, picture, tmp_path):
    """A function that runs the command on one image as a folder of one, and returns (rows, names of overlays)."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a.png").write_bytes(picture.read_bytes())
    out = tmp_path / "out"

    def run_and_read(*more):
        fixed = ["--model-path", checkpoint, "--image-path", tmp_path / "data", "--output-dir", out, "--num-workers", 0]
        assert main([*map(str, fixed), "--class-texts", *TEXTS, *more]) == 0
        rows = [json.loads(line) for line in (out / "results.jsonl").read_text(encoding="utf-8").splitlines()]
        return rows, sorted(path.name for path in out.glob("*_overlay*"))

    return run_and_read


@pytest.mark.parametrize(
    "flags, explained, subtracted, contrast",
    [
        ([], "dot", 0.45, 0.0),
        (["--method", "gradcam"], "cosine", 0.0, 0.0),
        (["--method", "gradcam", "--subtract-others"], "cosine", 0.45, 0.0),
        (["--method", "eigencam", "--subtract-others"], "cosine", 0.0, 0.0),
        (["--contrast"], "dot", 0.0, 0.6),
    ],
    ids=str,
)
def test_the_table_says_what_was_taken_off(run, flags, explained, subtracted, contrast):
    rows, _ = run(*flags, "--all-texts", "--overlay-only")
    for row in rows:
        assert (row["explained"], row["subtracted"], row["contrast"]) == (explained, subtracted, contrast)
    by_similarity = sorted(rows, key=lambda row: -row["similarity"])
    assert [row["rank"] for row in by_similarity] == [1, 2, 3]


@pytest.mark.parametrize("flags", [[], ["--contrast"], ["--subtract-others"]], ids=str)
def test_all_methods_have_files_and_rows_of_their_own(run, flags):
    """The default's are marked so, though its method comes again as the guide has it."""
    rows, overlays = run("--method", "all", "--overlay-only", *flags)
    assert overlays == sorted(f"clip_gradcam_a_overlay_{mark}.png" for mark in ("default", *LAYER_METHODS))
    assert [row["overlay"] for row in rows] == [
        f"clip_gradcam_a_overlay_{mark}.png" for mark in ("default", *LAYER_METHODS)
    ]
    default, *others = rows
    assert (default["method"], default["layer"]) == ("local-gradcam", "stages.2.8 + stages.3.3")
    assert [(row["method"], row["layer"]) for row in others] == [(m, "stages.3.3") for m in LAYER_METHODS]
    taken = [0.45 if "--subtract-others" in flags and METHODS[m].knows_text else 0.0 for m in LAYER_METHODS]
    assert [row["subtracted"] for row in rows] == [0.0 if "--contrast" in flags else 0.45, *taken]


def test_a_run_is_not_resumed_with_another_text_encoder(run, capsys, tmp_path):
    first, copy, other = (tmp_path / name for name in ("first", "copy", "other"))
    for folder in (first, copy, other):
        shutil.copytree(SHIPPED_TEXT_ENCODERS["bert-base-chinese"], folder)
    run("--text-encoder", str(first))
    run("--text-encoder", str(copy), "--resume")
    lines = (other / "vocab.txt").read_text(encoding="utf-8").split("\n")
    lines[200], lines[201] = lines[201], lines[200]
    (other / "vocab.txt").write_text("\n".join(lines), encoding="utf-8")
    with pytest.raises(AssertionError):
        run("--text-encoder", str(other), "--resume")
    assert "--text-encoder" in capsys.readouterr().err


def test_a_run_that_takes_others_off_is_not_resumed_by_one_that_does_not(run, capsys, checkpoint, tmp_path):
    run("--method", "gradcam", "--overlay-only")
    flags = [
        "--model-path",
        checkpoint,
        "--image-path",
        tmp_path / "data",
        "--output-dir",
        tmp_path / "out",
        "--resume",
    ]
    assert (
        main([*map(str, flags), "--method", "gradcam", "--subtract-others", "--overlay-only", "--class-texts", *TEXTS])
        == 2
    )
    assert "--subtract-others" in capsys.readouterr().err
