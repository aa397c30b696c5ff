"""tests/evaluate.py: its measures on maps whose scores are known, and that it explains what the tool explains."""

import json
import warnings
from pathlib import Path

import evaluate
import numpy as np
import pytest
import torch
from evaluate import Cases, Setting, Subject
from results_file import read_results, save_results
from tiny_pretrained import save_pretrained

from clip_gradcam_visualization import CLIPGradCAM
from models.demo import cnn as demo
from models.demo.dataset import SEEDS
from models.demo.findings import FINDINGS, KINDS
from models.explain.defaults import ENCODERS as ENCODER_ROWS
from models.explain.methods import METHODS
from models.explain.needs import Attention

# -- measures of maps ---------------------------------------------------------------------------


def quarter(row, column):
    """bool [224, 224]: one quarter of the image."""
    mask = np.zeros((2, 2), bool)
    mask[row, column] = True
    return mask.repeat(112, 0).repeat(112, 1)


def peak_in(row, column, side=8):
    """A map [side, side] with one high cell, in the middle of a quarter."""
    raw = np.zeros((side, side), np.float32)
    raw[row * side // 2 + side // 4, column * side // 2 + side // 4] = 1
    return raw


def test_overlap_averages_foreground_and_background():
    mask, shown = np.array([1, 1, 0, 0], bool), np.array([1, 0, 0, 0], bool)
    assert evaluate.overlap(shown, mask) == pytest.approx((1 / 2 + 2 / 3) / 2)
    assert evaluate.overlap(mask, mask) == 1
    assert evaluate.overlap(~mask, mask) == 0
    assert evaluate.overlap(np.zeros(4, bool), np.zeros(4, bool)) == pytest.approx(1 / 2)  # no foreground to agree on


def test_a_map_is_cut_at_its_mean_and_at_half_its_maximum():
    heatmap = np.zeros((224, 224))
    heatmap[quarter(0, 0)], heatmap[quarter(0, 1)] = 1, 0.4  # mean 0.35: both; half of the maximum: the first
    mask = quarter(0, 0)
    measures = evaluate.measure_map(heatmap, mask, mask)
    assert measures["iou_mean"] == pytest.approx((1 / 2 + 2 / 3) / 2)
    assert measures["iou_half"] == 1
    assert measures["energy"] == pytest.approx(1 / 1.4)
    assert measures["pointing"] and not measures["flat"]


def test_a_flat_map_points_nowhere_and_shows_nothing():
    measures = evaluate.measure_map(np.zeros((224, 224)), quarter(0, 0), quarter(0, 0))
    assert not measures["pointing"] and measures["flat"] and measures["energy"] == 0
    assert measures["iou_mean"] == measures["iou_half"] == pytest.approx((0 + 3 / 4) / 2)


def test_wrong_texts_and_specificity():
    maps = np.stack([peak_in(0, 0), peak_in(0, 0), peak_in(1, 1)])
    measures = evaluate.measure_texts(maps, 0, quarter(0, 0))
    assert measures["wrong_text_hits"] == pytest.approx(1 / 2)
    assert measures["text_specificity"] == pytest.approx(1 - (1 - 1 / 63) / 2)
    assert "wrong_text_hits" not in evaluate.measure_texts(maps, 0)


def case(*kinds, places=((0, 0), (1, 1))):
    masks = {kind: quarter(*place) for kind, place in zip(kinds, places) if kind in FINDINGS}
    return Cases(np.zeros((1, 8, 8), np.uint8), [kinds], [masks], [masks])


@pytest.mark.parametrize(
    ("peaks", "both", "each", "swapped"),
    [
        (((0, 0), (1, 1)), 1, 1, 0),
        (((0, 0), (0, 0)), 0, 0.5, 0.5),
        (((1, 1), (0, 0)), 0, 0, 1),
        (((0, 1), (1, 0)), 0, 0, 0),
    ],
)
def test_two_findings_count_where_each_text_finds_its_own(peaks, both, each, swapped):
    maps = np.stack([peak_in(*peak) for peak in peaks])[None]
    measures = evaluate.measure_doubles(maps, case("cup_loose", "fracture"))
    assert measures == {"both": [both], "each": [each], "swapped_texts": [swapped]}


def test_a_phantom_without_a_finding_is_asked_but_not_pointed_at():
    maps = np.stack([peak_in(i % 2, i // 2 % 2) for i in range(len(KINDS))])[None]
    assert set(evaluate.measure_singles(maps, case("normal"))) == {"text_specificity"}
    assert {"pointing", "wrong_text_hits"} <= set(evaluate.measure_singles(maps, case("wear")))


def test_the_own_map_alone_scores_as_among_all():
    maps = np.stack([peak_in(0, 1) if kind != "wear" else peak_in(0, 0) for kind in KINDS])[None]
    among = evaluate.measure_singles(maps, case("wear"))
    alone = evaluate.measure_singles(maps[:, [KINDS.index("wear")]], case("wear"))
    assert alone == {name: among[name] for name in alone} and alone["pointing"] == [1]


# -- likeness -----------------------------------------------------------------------------------


def test_equal_values_share_a_rank():
    assert evaluate.ranks(np.array([[3, 1], [1, 2]])).tolist() == [[3, 0.5], [0.5, 2]]


def test_spearman_sees_the_order_only_and_both_are_blind_to_the_scale():
    rng = np.random.default_rng(0)
    a, other = rng.random((2, 6, 6))
    assert evaluate.spearman(a, a**9) == pytest.approx(1)
    assert evaluate.pearson(a, a**9) < 0.9
    assert evaluate.pearson(1e-9 * a, 1e9 * other) == pytest.approx(evaluate.pearson(a, other))
    assert evaluate.pearson(a, -a) == evaluate.spearman(a, 0 * a) == 0  # nothing is left after the ReLU


# -- what is explained --------------------------------------------------------------------------

STARNET = evaluate.ENCODERS["cnn"]


@pytest.fixture(scope="module")
def cnn(checkpoint):
    return Subject(STARNET._replace(path=checkpoint))


@pytest.fixture(scope="module")
def vit(tmp_path_factory):
    folder, _ = save_pretrained(tmp_path_factory.mktemp("vit"), "chinese_clip")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its tokenizer cuts the descriptions
        return Subject(evaluate.ENCODERS["vit"]._replace(path=folder))


@pytest.fixture(params=["cnn", "vit"])
def subject(request):
    return request.getfixturevalue(request.param)


def some_cases(subject, count=3):
    side = subject.prepare.input_size(100, 100)[0]
    images = np.random.default_rng(0).integers(0, 255, (count, side, side), dtype=np.uint8)
    return Cases(images, [("wear",)] * count, [{}] * count, [{}] * count)


def test_every_method_of_an_encoder_has_the_guides_setting_first(cnn, vit):
    for subject, methods in (
        (cnn, [m for m in METHODS if not isinstance(METHODS[m].needs, Attention)]),
        (vit, list(METHODS)),
    ):
        guide = {}
        for setting in subject.settings:
            guide.setdefault(setting.method, setting)
        assert list(guide) == methods
        assert all(s[2:] == ("cosine", False) and s.layer in ("last", "last2", "own") for s in guide.values())
    assert len(set(vit.settings)) == len(vit.settings)


def test_the_default_is_measured_beside_the_methods(subject):
    default = subject.encoder.default_setting
    assert subject.settings[-1] == default and default.subtract
    assert default in evaluate.shown_settings(subject.settings, {}, subject.encoder.default)
    described = evaluate.describe(subject, default)
    assert described["subtract"] and not described["guide"]


def test_one_pass_for_many_formulas_gives_each_methods_own_map(subject):
    cases = some_cases(subject)
    groups = evaluate.together(subject.settings)
    assert sorted(s for group in groups for s in group) == sorted(subject.settings)
    for group in (group for group in groups if len(group) > 1):
        together = subject.maps(group, cases)
        for setting in group:
            modules = subject.modules(setting.layer, setting.method)
            others = ENCODER_ROWS[subject.model.image_encoder_name].others if setting.subtract else None
            cam = CLIPGradCAM(subject.model, modules, False, setting.method, setting.similarity, others)
            all_texts = torch.arange(len(KINDS)).expand(len(cases.images), -1)
            alone = cam.text_maps(subject.pixels(cases.images), subject.texts, all_texts).maps.numpy()
            assert np.array_equal(together[setting], alone), setting


def test_a_pass_is_shared_by_methods_that_look_at_the_same_gradients():
    plain = [Setting(method, "last", "dot") for method in ("gradcam", "local-gradcam")]
    alone = [Setting(method, "own", "cosine", True) for method in ("attention-gradient", "legrad-attention")]
    taken, blind = plain[0]._replace(subtract=True), Setting("eigencam", "last", "dot")
    assert evaluate.together([*plain, taken, *alone, blind]) == [plain, [taken], *([s] for s in alone), [blind]]


def test_the_others_are_taken_off_where_the_setting_says_so(cnn):
    cases, plain = some_cases(cnn), Setting("gradcam", "last", "cosine")
    taken = plain._replace(subtract=True)
    maps = {setting: cnn.maps([setting], cases)[setting] for setting in (plain, taken)}
    cam = CLIPGradCAM(cnn.model, cnn.modules("last", "gradcam"), False, others=ENCODER_ROWS["starnet_s1"].others)
    all_texts = torch.arange(len(KINDS)).expand(len(cases.images), -1)
    expected = cam.text_maps(cnn.pixels(cases.images), cnn.texts, all_texts).maps.numpy()
    assert np.array_equal(maps[taken], expected) and not np.array_equal(maps[plain], expected)


# -- the sanity check ---------------------------------------------------------------------------


def test_the_cascade_replaces_every_weight_from_the_top_down(subject):
    tower = subject.model.image_encoder
    before = {name: tensor.clone() for name, tensor in tower.state_dict().items()}
    learned = {name for name, parameter in tower.named_parameters() if parameter.ndim > 1}
    changed, pixels = set(), subject.pixels(some_cases(subject).images)
    for step, model in evaluate.randomised(subject.model, pixels):
        state = model.image_encoder.state_dict()
        now = {name for name in learned if not torch.equal(state[name], before[name])}
        assert changed < now, step
        if not changed:
            assert now == {"projection.weight"}
        changed = now
    assert changed == learned
    assert all(torch.equal(tensor, before[name]) for name, tensor in tower.state_dict().items())


def test_fresh_batch_norms_take_the_statistics_of_the_images(cnn):
    pixels = cnn.pixels(some_cases(cnn, 4).images)
    *_, (_, model) = evaluate.randomised(cnn.model, pixels)
    bn, seen = model.image_encoder.backbone.stages[1][0].bn, []
    bn.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    with torch.no_grad():
        model.image_encoder(pixels)
    torch.testing.assert_close(bn.running_mean, seen[0].mean((0, 2, 3)), rtol=0.02, atol=2e-3)
    torch.testing.assert_close(bn.running_var, seen[0].var((0, 2, 3)), rtol=0.02, atol=2e-3)
    assert not torch.allclose(bn.running_var, torch.ones_like(bn.running_var), rtol=0.5)
    assert not any(module.training for module in model.modules())


# -- choosing -----------------------------------------------------------------------------------


def test_the_choosing_seeds_are_their_own():
    drawn = [set(range(CHOOSING + part, CHOOSING + part + 1000)) for part in (0, 500_000)]
    assert all(seed in SEEDS["validation"] for seeds in drawn for seed in seeds)
    watched = SEEDS["validation"].start
    taken = [range(watched + start, watched + end) for start, end in ((0, 1000), (500_000, 501_000))]
    places = range(watched + 700_000, watched + 800_000)
    assert all(seeds.isdisjoint(used) for seeds in drawn for used in (*taken, places))


CHOOSING = evaluate.CHOOSING.start


def test_behind_is_the_difference_of_the_scores_over_shared_images():
    best = {"pointing": [1, 1, 1, 0]}, {"both": [1, 0]}
    other = {"pointing": [1, 0, 1, 0]}, {"both": [0, 0]}
    assert evaluate.behind(best, best) == [0, 0, 0]
    mean, low, high = evaluate.behind(best, other)
    assert mean == pytest.approx((1 / 4 + 1 / 2) / 2)
    assert low <= mean <= high
    fewer = {"pointing": [1, 0]}, {"both": [1]}
    assert evaluate.behind(best, fewer)[0] == pytest.approx((1 / 2 + 0) / 2)
    assert evaluate.choosing_score(*best) == pytest.approx((3 / 4 + 1 / 2) / 2)


def test_shown_are_the_guides_and_the_chosen_settings():
    settings = [Setting("gradcam", layer, similarity) for similarity in ("cosine", "dot") for layer in ("last", "both")]
    settings.append(Setting("rollout", "own", "cosine"))
    chosen = {"gradcam": "gradcam/both/dot", "rollout": "rollout/own/cosine"}
    assert evaluate.shown_settings(settings, chosen) == [settings[0], settings[3], settings[4]]
    assert evaluate.shown_settings(settings, {}) == [settings[0], settings[4]]
    taken = Setting("gradcam", "both", "dot", True)
    assert taken.key == "gradcam/both/dot/others off"
    assert evaluate.shown_settings([*settings, taken], {}, taken.key) == [settings[0], settings[4], taken]


# -- the file ---------------------------------------------------------------------------------


def test_what_was_measured_before_stays(tmp_path):
    path = tmp_path / "methods.json"
    save_results(path, {"cnn": {"settings": {"a": {"maps": {"pointing": [0.5, 0.4, 0.6]}}}}})
    save_results(path, {"cnn": {"settings": {"a": {"sanity": [{"step": "all"}]}, "b": {"maps": {}}}}})
    results = save_results(path, {"vit": {"winner": "b"}})
    assert results == json.loads(path.read_text(encoding="utf-8"))
    assert results["cnn"]["settings"]["a"] == {"maps": {"pointing": [0.5, 0.4, 0.6]}, "sanity": [{"step": "all"}]}
    assert results["cnn"]["settings"]["b"] == {"maps": {}} and results["vit"] == {"winner": "b"}
    assert "[0.5, 0.4, 0.6]" in path.read_text(encoding="utf-8")


def test_an_unknown_layer_path_is_an_error():
    backbone = torch.nn.Sequential(torch.nn.Sequential(torch.nn.ReLU(), torch.nn.Tanh()))
    assert isinstance(evaluate.module_at(backbone, "0.-1"), torch.nn.Tanh)
    with pytest.raises(AttributeError):
        evaluate.module_at(backbone, "0.norm")


PUBLISHED = read_results(demo.ASSETS / evaluate.METHODS_FILE)


@pytest.mark.skipif("maps" not in PUBLISHED.get("cnn", {}).get("seconds", {}), reason="not measured yet")
def test_the_guides_row_is_what_the_demo_publishes():
    demo_says = json.loads((demo.ASSETS / "evaluation.json").read_text(encoding="utf-8"))
    published = PUBLISHED["cnn"]["settings"][evaluate.GUIDE.key]["maps"]
    for name in ("pointing", "energy", "wrong_text_hits"):
        assert published[name][0] == pytest.approx(demo_says["overall"][name][0], abs=2e-3)
    for name in ("both", "each", "swapped_texts"):
        assert published[name][0] == pytest.approx(demo_says["two_findings"][name][0], abs=2e-3)
    assert (published["images"], published["doubles"]) == (388, 100)


def test_the_defaults_of_the_tool_are_those_of_the_table():
    """What is marked as the default is what the script explains where nothing is asked for."""
    for encoder, family in ((evaluate.ENCODERS["cnn"], "starnet_s1"), (evaluate.ENCODERS["vit"], "clip-vit")):
        setting, default = encoder.default_setting, ENCODER_ROWS[family]
        assert encoder.default == setting.key
        assert (default.method, default.similarity, default.subtract_others) == (setting.method, *setting[2:])
        assert default.layers == encoder.layers.get(setting.layer, ())


# -- the tables -------------------------------------------------------------------------------


def test_a_row_says_what_is_taken_off_and_shows_dashes_until_it_is_measured():
    default = evaluate.ENCODERS["cnn"].default
    row = {"method": "local-gradcam", "layer": "a + b", "similarity": "dot", "subtract": True, "guide": False}
    old = {"method": "gradcam", "layer": "b", "similarity": "cosine", "guide": True}
    table = evaluate.markdown({"cnn": {"settings": {default: row, evaluate.GUIDE.key: old}}})
    guide, shown = (line for line in table.splitlines() if line.startswith("| CNN"))
    assert guide.startswith("| CNN | Grad-CAM（b，余弦） | — / — / — / — |")
    assert shown.startswith("| CNN | Local Grad-CAM，**默认**（a + b，点积，减去其他文本） | — / — / — / — | — |")


def test_a_page_keeps_its_words_and_gets_the_sections_that_it_lacks(tmp_path, monkeypatch):
    tables = {name: (f"{name}.json", str, f"标题 {name}") for name in ("methods", "truth", "evaluation")}
    monkeypatch.setattr(evaluate, "TABLES", tables)
    page = tmp_path / evaluate.PAGE_FILE
    page.write_text("前\n<!-- methods -->\n旧\n<!-- end of methods -->\n后\n", encoding="utf-8")
    for name in ("methods", "truth"):
        save_results(tmp_path / f"{name}.json", {"a": 1})
    evaluate.write_tables(tmp_path)
    new = "\n## 标题 truth\n\n<!-- truth -->\n{'a': 1}\n<!-- end of truth -->\n"
    kept = "前\n<!-- methods -->\n{'a': 1}\n<!-- end of methods -->\n后\n"
    assert page.read_text(encoding="utf-8") == kept + new
    evaluate.write_tables(tmp_path)
    assert page.read_text(encoding="utf-8") == kept + new


def test_the_truth_is_asked_of_the_other_program(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(evaluate.evaluate_truth, "main", lambda *arguments: calls.append(arguments))
    command = ["evaluate.py", "--truth", "validation", "--texts", "--judges", "j", "--model", "vit", "lite0"]
    monkeypatch.setattr("sys.argv", [*command, "--output", str(tmp_path), "--threads", "1"])
    evaluate.main()
    assert calls == [("validation", tmp_path, Path("j"), ["vit", "lite0"], True)]
