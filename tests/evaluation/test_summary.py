"""models/evaluation/summary.py: against scikit-learn, a slow bootstrap written plainly, and numbers by hand."""

import json

import numpy as np
import pytest
from evaluation_rows import NAMES, random_rows, row
from sklearn.metrics import confusion_matrix, roc_auc_score

from models.errors import InputError
from models.evaluation import summary
from models.evaluation.measures import GRID, measure_heatmap, pack_coverage
from models.evaluation.summary import CASES, MEASURES, OF_HEATMAPS, evaluate


def only_group(rows, coverages=None, tolerance=15):
    (group,) = evaluate(rows, coverages or {}, NAMES, tolerance)["groups"]
    return group


def value(group, measure, line="overall"):
    return (group[line] if line in ("overall", "macro") else group["classes"][line])[measure]["value"]


# -- against others ---------------------------------------------------------------------------


def test_accuracy_confusion_and_areas_are_those_of_scikit_learn():
    rows, _ = random_rows(60)
    group = only_group(rows)
    images = {each["id"]: each for each in rows}.values()
    predicted = [NAMES.index(each["predicted"]) for each in images]
    true = [
        p if p in each["label_indices"] else each["label_indices"][0] for p, each in zip(predicted, images, strict=True)
    ]
    assert group["confusion"] == confusion_matrix(true, predicted, labels=range(len(NAMES))).tolist()
    assert value(group, "accuracy") == round(np.mean(np.array(true) == predicted), 4)
    labels = np.array([[index in each["label_indices"] for index in range(len(NAMES))] for each in images])
    probabilities = np.array([each["probabilities"] for each in images])
    assert (np.diff(np.sort(probabilities[:, 0])) == 0).any()  # there are ties
    areas = [roc_auc_score(labels[:, index], probabilities[:, index]) for index in range(len(NAMES))]
    for name, area in zip(NAMES, areas, strict=True):
        assert value(group, "auc", name) == round(area, 4)
    assert value(group, "auc") == value(group, "auc", "macro") == round(np.mean(areas), 4)
    assert group["class_sizes"] == labels.sum(0).tolist()
    assert [group["classes"][name]["auc"]["n"] for name in NAMES] == group["class_sizes"]


def plain_measure(rows, measure, tolerance):
    """{line: value} of rows of one image and annotation each; what cannot be computed is left out."""
    if measure == "auc":
        by_class = {}
        for index, name in enumerate(NAMES):
            scores = {True: [], False: []}
            for each in rows:
                scores[index in each["label_indices"]].append(each["probabilities"][index])
            if scores[True] and scores[False]:
                by_class[name] = (np.sign(np.subtract.outer(scores[True], scores[False])).mean() + 1) / 2
        overall = np.mean(list(by_class.values())) if by_class else None
        return {**by_class, **({} if overall is None else {"overall": overall, "macro": overall})}
    pairs = []
    for each in rows:
        predicted = NAMES.index(each["predicted"])
        right = predicted in each["label_indices"]
        hit = each["distance"] is not None and each["distance"] <= tolerance
        of_case = {"right": predicted == each["annotated"], "wrong": predicted != each["annotated"]}
        values = {
            "accuracy": right,
            "pointing": hit,
            "pointing_strict": each["distance"] == 0,
            **{case: of_case[case.split("_")[0]] and hit == case.endswith("inside") for case in CASES},
            **{name: each[name] for name in ("iou_half", "iou_otsu", "energy", "contrast_to_noise")},
            **{name: each[name] for name in OF_HEATMAPS},
        }
        line = {
            "accuracy": predicted if right else each["label_indices"][0],
            **dict.fromkeys(OF_HEATMAPS, each["target_text_idx"]),
        }
        line = line.get(measure, each["annotated"])
        if line is not None and values[measure] is not None:
            pairs.append((NAMES[line], float(values[measure])))
    lines = {name: np.mean([v for n, v in pairs if n == name]) for name in {name for name, _ in pairs}}
    if pairs:
        lines |= {"macro": np.mean(list(lines.values())), "overall": np.mean([v for _, v in pairs])}
    return lines


def plain_intervals(rows, measure, tolerance, key):
    clusters = {}
    for each in rows:
        clusters.setdefault(each[key], []).append(each)
    members = list(clusters.values())
    rng, draws = np.random.default_rng(0), {}
    for _ in range(1000):
        drawn = [each for index in rng.integers(len(members), size=len(members)) for each in members[index]]
        for line, number in plain_measure(drawn, measure, tolerance).items():
            draws.setdefault(line, []).append(number)
    return {line: np.percentile(numbers, [2.5, 97.5]) for line, numbers in draws.items()}


@pytest.mark.parametrize("key, measures", [("patient", MEASURES), ("id", ("accuracy", "pointing", "energy"))])
def test_intervals_are_those_of_a_bootstrap_written_plainly(key, measures):
    rows, coverages = random_rows(24)
    if key == "id":
        rows[5]["patient"] = None  # not known of each: images are drawn
    group = only_group(rows, coverages, 9)
    assert group["patients"] == (12 if key == "patient" else None)
    for measure in measures:
        expected, intervals = plain_measure(rows, measure, 9), plain_intervals(rows, measure, 9, key)
        lines = {"overall": group["overall"], "macro": group["macro"], **group["classes"]}
        numbers = {line: of_line[measure] for line, of_line in lines.items() if measure in of_line}
        assert numbers.keys() == expected.keys()
        for line, number in numbers.items():
            low, high = intervals[line]
            got = [number[name] for name in ("value", "low", "high")]
            assert got == pytest.approx([expected[line], low, high], abs=5.01e-5), (measure, line)


def test_a_perfect_map_points_always_and_a_shuffled_one_by_chance():
    rng, rows, coverages = np.random.default_rng(0), {"perfect": [], "shuffled": []}, {}
    for number in range(150):
        mask = np.zeros((GRID, GRID), bool)
        top, left = rng.integers(0, 150, 2)
        mask[top : top + 60, left : left + 50] = True
        heatmap, at = mask.astype(np.float32), np.flatnonzero(mask)[0]
        coverages[f"{number}", 0] = pack_coverage(mask)
        for setting, order in (("perfect", np.arange(GRID * GRID)), ("shuffled", rng.permutation(GRID * GRID))):
            place = int(np.flatnonzero(order == at)[0])
            moved = heatmap.ravel()[order].reshape(GRID, GRID)
            measures = measure_heatmap(moved, mask, (place % GRID, place // GRID))
            rows[setting].append(row(f"{number}", [0], 0, annotated=0, setting=setting, **measures._asdict()))
    perfect, shuffled = evaluate([*rows["perfect"], *rows["shuffled"]], coverages, NAMES)["groups"]
    assert value(perfect, "pointing") == value(perfect, "energy") == value(perfect, "iou_half") == 1
    assert value(perfect, "pointing_strict") == value(perfect, "iou_otsu") == 1
    for measure in ("pointing", "pointing_strict"):
        numbers = shuffled["overall"][measure]
        assert numbers["low"] <= numbers["chance"] <= numbers["high"], measure
    assert value(shuffled, "energy") == pytest.approx(shuffled["overall"]["energy"]["chance"], abs=1e-3)
    assert value(shuffled, "contrast_to_noise") == pytest.approx(0, abs=0.01)
    assert shuffled["overall"]["pointing"]["gaussian"] == perfect["overall"]["pointing"]["gaussian"] < 1


# -- by hand ----------------------------------------------------------------------------------


def test_the_true_class_of_several_labels_is_the_predicted_one_else_the_first():
    group = only_group([row("a", [0, 1], 1), row("b", [0, 1], 2), row("c", [2], 2), row("d", [], 0)])
    assert group["confusion"] == [[0, 0, 1], [0, 1, 0], [0, 0, 1]]
    assert group["images"] == 4 and group["labelled"] == 3 and group["annotated"] == 0
    assert group["overall"]["accuracy"]["n"] == 3 and value(group, "accuracy") == 0.6667
    assert value(group, "accuracy", NAMES[0]) == 0 and value(group, "accuracy", NAMES[1]) == 1
    assert value(group, "accuracy", "macro") == 0.6667 and group["macro"]["accuracy"]["n"] == 3


def test_the_table_of_four():
    rows = [
        row("a", [0], 0, annotated=0, distance=15),
        row("b", [0], 0, annotated=0, distance=15.01),
        row("c", [0], 1, annotated=0, distance=0),
        row("d", [0], 1, annotated=0, distance=None),
        row("e", [0], 2, annotated=0, distance=0),
        row("f", [0], 0),
    ]
    group = only_group(rows)
    assert group["cases"] == dict(zip(CASES, (1, 1, 2, 1)))
    assert [value(group, case) for case in CASES] == [0.2, 0.2, 0.4, 0.2]
    assert value(group, "pointing") == 0.6 and value(group, "pointing_strict") == 0.4
    assert group["overall"]["pointing"]["n"] == 5


def test_an_image_counts_once_and_its_annotation_on_its_own_text():
    rows = [
        row("a", [0, 1], 0, target=2, annotated=0, distance=100),
        row("a", [0, 1], 0, target=0, annotated=0, distance=0),
        row("a", [0, 1], 0, target=1, annotated=0, distance=100),
        row("a", [0, 1], 0, target=1, annotated=1, distance=100),
        row("a", [0, 1], 0, target=1, annotated=1, distance=0),  # once more: the first one counts
    ]
    group = only_group(rows)
    assert group["images"] == group["overall"]["accuracy"]["n"] == 1 and group["annotated"] == 1
    assert group["overall"]["pointing"]["n"] == 2 and value(group, "pointing") == 0.5
    assert value(group, "pointing", NAMES[0]) == 1 and value(group, "pointing", NAMES[1]) == 0


def test_the_only_heatmap_of_another_text_is_measured():
    group = only_group([row("a", [0], 1, target=1, annotated=0, distance=0)])
    assert value(group, "pointing", NAMES[0]) == 1 and NAMES[1] not in group["classes"]


def test_splits_and_settings_are_never_mixed():
    rows = [
        row("a", [0], 0, split="train", setting="two"),
        row("b", [0], 1, split="test", setting="one"),
        row("a", [0], 0, split="train", setting="one"),
        row("c", [0], 0, split="test", setting="one"),
    ]
    groups = evaluate(rows, {}, NAMES)["groups"]
    assert [(g["split"], g["setting"]) for g in groups] == [("train", "two"), ("train", "one"), ("test", "one")]
    assert [value(g, "accuracy") for g in groups] == [1, 1, 0.5]


def test_the_place_of_a_class_is_of_its_own_split():
    mask = np.zeros((GRID, GRID))
    mask[50:60, 50:60] = 1
    coverages = {(image, 0): pack_coverage(mask) for image in "abc"}
    options = {"annotated": 0, "distance": 0}
    rows = [row(image, [0], 0, split=split, **options) for image, split in zip("abc", ("train", "train", "test"))]
    train, test = evaluate(rows, coverages, NAMES)["groups"]
    assert train["overall"]["pointing"]["class_place"] == 1
    assert "class_place" not in test["overall"]["pointing"] and "chance" in test["overall"]["pointing"]


def test_baselines_are_of_what_was_measured():
    mask = np.zeros((GRID, GRID))
    mask[50:60, 50:60] = 1
    coverages = {("a", 0): pack_coverage(mask), ("b", 0): pack_coverage(np.ones((GRID, GRID)))}
    rows = [
        row("a", [0], 0, annotated=0, distance=3, energy=0.5),
        row("b", [0], 0, annotated=0, distance=0),  # an annotation without an area to measure
        row("c", [0], 0, annotated=0, distance=0, energy=0.25),  # whose coverage is missing
    ]
    numbers = only_group(rows, coverages)["overall"]
    assert numbers["energy"]["n"] == 2 and numbers["energy"]["value"] == 0.375
    assert numbers["energy"]["chance"] == round(100 / GRID**2, 4)
    assert numbers["pointing"]["n"] == 3 and "iou_half" not in numbers


def test_failed_images_are_left_out_and_missing_values_stand_for_nothing():
    failed = {"id": "x", "setting": "one", "method": "gradcam", "error": "无法读取"}
    missing = row("b", [1], 1, specificity=0.5)
    missing["probabilities"] = [None, 0.5, 0.5]
    group = only_group([failed, row("a", [0], 0), missing])
    assert group["images"] == 2 and "auc" not in group["overall"] and "pointing" not in group["overall"]
    assert group["overall"]["text_specificity"] == {"n": 1, "value": 0.5, "low": 0.5, "high": 0.5}


def test_without_labels_there_is_pointing_alone():
    group = only_group([row("a", [], 0, annotated=1, distance=0, energy=1.0)])
    assert list(group["overall"]) == ["pointing", "pointing_strict", "energy"]
    assert group["cases"] == dict.fromkeys(CASES, 0) and sum(map(sum, group["confusion"])) == 0
    assert list(group["classes"]) == [NAMES[1]]


def test_measures_stand_in_their_order_and_json_takes_them():
    rows, coverages = random_rows(30)
    evaluation = evaluate(iter(rows), coverages, NAMES)
    assert list(evaluation["groups"][0]["overall"]) == list(MEASURES)
    assert json.loads(json.dumps(evaluation, allow_nan=False)) == evaluation
    assert evaluate([], {}, NAMES)["groups"] == []


@pytest.mark.parametrize(
    "column, damaged",
    [
        ("predicted", "no class"), ("label_indices", [3]), ("label_indices", 7), ("annotated", -1), ("id", ["a"]),
        ("annotated", "0"), ("target_text_idx", None), ("probabilities", [0.5]), ("probabilities", ["a", "b", "c"]),
        ("distance", "far"), ("energy", [1, 2]), ("text_specificity", "low"), ("split", {}),
    ],
)  # fmt: skip
def test_a_row_that_is_none_of_ours_is_said(column, damaged):
    with pytest.raises(InputError, match="结果中有一行不是本工具写的"):
        only_group([{**row("a", [0], 0, annotated=0, distance=0), column: damaged}])


def test_a_split_of_each_image_is_said(monkeypatch):
    monkeypatch.setattr(summary, "MOST_GROUPS", 3)
    rows = [row(f"{number}", [0], 0, split=f"P{number}") for number in range(4)]
    assert len(evaluate(rows[:3], {}, NAMES)["groups"]) == 3
    with pytest.raises(InputError, match="共 4 组，至多评估 3 组：请检查列表的 split 列"):
        evaluate(rows, {}, NAMES)
