"""Does the heatmap answer what is asked? Settings of many models side by side; not collected by pytest.

    python tests/train_judges.py FOLDER                                  # first: small CLIPs that never saw a mask
    python tests/evaluate.py --truth validation --judges FOLDER          # the seeds on which a default is chosen
    python tests/evaluate.py --truth test --judges FOLDER                # the published numbers
    python tests/evaluate.py --truth test --texts --judges FOLDER        # the default with 1, 2, 3 and 5 texts too

Each model is asked all finding texts of phantoms with one finding, and the two texts of phantoms with two:

- point: the finding that is there is asked; the peak hits it. both: two findings, both texts answered right.
- swap: the difference of the two texts' maps, in absolute units, points right both ways.
- wrong: a finding that is not there is asked; the peak falls on the one that is. Its chance: how often places of the
  finding that is asked, in other phantoms, fall on the one that is there. empty: share of those maps that are flat.
- energy, IoU: of the finding that is there. strength, score: how well the map's peak in absolute units, and the cosine,
  tell a finding that is there from one that is not (area under the ROC curve, over all images together).

Where a peak counts as a hit: models/demo/protocol.py. Intervals: bootstrap over images. Everything goes into truth.json
beside the demo's checkpoint, a model at a time, and from there into a table of measurements.zh.md.
"""

import json
import time
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import project  # noqa: F401
import torch
from evaluate_demo import GRID_SIZE, as_the_model_sees, module_at, percent
from judges.networks import JUDGES, build_judge
from results_file import save_results

from clip_gradcam_visualization import CLIPGradCAM
from models.demo import cnn as demo
from models.demo.dataset import SEEDS
from models.demo.findings import FINDINGS, KINDS
from models.demo.protocol import dilate, double_jobs, draw_cases, peaks_in, single_jobs
from models.demo.sentences import class_texts
from models.evaluation.measures import energy, iou
from models.explain.defaults import ENCODERS
from models.explain.heatmap import is_flat, to_heatmap
from models.explain.methods import METHODS, reads_attention
from models.explain.question import LEAST_TEXTS, OFF_THE_DIRECTION, OFF_THE_MAP, Others
from models.images.preprocessing import preprocessing_of
from models.loading.load import load_clip_checkpoint

TRUTH_FILE = "truth.json"
# Beyond the seeds that chose the methods' settings before, and those of the published numbers then
SPLITS = {
    "validation": (range(SEEDS["validation"].start + 300_000, SEEDS["validation"].stop), 162, 90),
    "test": (range(SEEDS["test"].start + 300_000, SEEDS["test"].stop), 225, 120),
}
FEW_TEXTS = (1, 2, 3, 5)
BATCH = 15
NOTHING, MAPS, DIRECTION = "", "less others", "less others' direction"  # what is taken off, as a key says it
TAKEN_OFF = {  # {kind: {what: how}}; 0.3 is the share of maps that validation chose before the direction
    "cnn": {MAPS: Others(0.3, of_maps=True), DIRECTION: OFF_THE_DIRECTION},
    "vit": {MAPS: OFF_THE_MAP},
    "siglip": {MAPS: OFF_THE_MAP},
}


class Candidate(NamedTuple):
    """A setting as it is measured; `layers` a key of the model's, `taken_off` one of its kind."""

    method: str
    layers: str
    similarity: str
    taken_off: str = NOTHING

    @property
    def key(self) -> str:
        return "/".join([self.method, self.layers, self.similarity, *([self.taken_off] if self.taken_off else [])])


def _candidates(methods, layers, similarities, taken_off=(NOTHING, MAPS)) -> list[Candidate]:
    return [Candidate(m, layers, s, taken) for s in similarities for taken in taken_off for m in methods]


BOTH, PLAIN, ALL_WAYS = ("cosine", "dot"), (NOTHING,), (NOTHING, MAPS, DIRECTION)
PEERS = ("gradcam", "hirescam", "gradcam++", "layercam", "xgradcam")  # of grad-cam and torchcam, at the guide's layer
ATTENTION = ("legrad", "grad-eclip", "attention-gradient", "legrad-attention")
CANDIDATES = {
    "cnn": [
        *_candidates(PEERS, "last", BOTH, PLAIN),
        *_candidates(("gradcam",), "last", ("dot",), (MAPS, DIRECTION)),
        *_candidates(("gradcam",), "two", ("cosine",), ALL_WAYS),
        *_candidates(("gradcam", "local-gradcam", "hirescam", "layercam"), "two", ("dot",), ALL_WAYS),
    ],
    "vit": [
        *_candidates(PEERS, "last", ("cosine",), PLAIN),
        *_candidates(("layercam",), "last", ("cosine",), (MAPS,)),
        *_candidates(ATTENTION, "own", BOTH),
    ],
}
CANDIDATES["siglip"] = CANDIDATES["vit"]
ROWS = {"cnn": "starnet_s1", "vit": "clip-vit", "siglip": "siglip-vit"}  # of the tool's table, for each kind


def _default(kind: str) -> Candidate:
    """What the tool explains by default where there are texts enough."""
    row = ENCODERS[ROWS[kind]]
    (taken_off,) = (what for what, how in TAKEN_OFF[kind].items() if how == row.others)
    return Candidate(row.method, "own" if reads_attention(row.method) else "two", row.similarity, taken_off)


DEFAULTS = {kind: _default(kind) for kind in ROWS}
LAYERS = {  # of each model's backbone: the guide's, and the two whose maps are fused
    "starnet-demo": ("stages.-1.-1", "stages.-2.-1"),
    "starnet": ("stages.-1.-1", "stages.-2.-1"),
    "resnet18": ("layer4.-1", "layer3.-1"),
    "lite0": ("head.stages.0", "frozen"),
    "convnext": ("head.stages.1", "head.stages.0"),
    "vit-demo": ("encoder.layers.-1.layer_norm1",),
    "vit": ("head.encoder.layers.-1.layer_norm1",),
    "siglip": ("head.post_layernorm",),
}
DEMOS = {"starnet-demo": ("cnn", demo.CHECKPOINT), "vit-demo": ("vit", demo.ASSETS.parent / "demo_vit")}


# ---------------------------------------------------------------------------------------------
# 1. Models and images


class Subject:
    """A model with the nine class texts; shipped, or a judge of a folder."""

    def __init__(self, name: str, judges: Path | None):
        self.name = name
        if name in DEMOS:
            self.kind, path = DEMOS[name]
            self.model = load_clip_checkpoint(str(path))
        else:
            self.kind, self.model = JUDGES[name].family, build_judge(name)
            weights = torch.load(judges / f"{name}.pt", weights_only=True)["image_encoder"]
            self.model.image_encoder.load_state_dict(weights)
        self.model.eval().requires_grad_(False)
        self.prepare = preprocessing_of(self.model)
        with torch.no_grad():
            self.texts = self.model.text_encoder(texts=list(class_texts().values())).float()

    def layers(self, key: str) -> list | None:
        paths = {"last": LAYERS[self.name][:1], "two": LAYERS[self.name][::-1], "own": ()}[key]
        return [module_at(self.model.image_encoder.backbone, path) for path in paths] or None

    def pixels(self, images: np.ndarray) -> torch.Tensor:
        """Grey uint8 [N, S, S] -> model input [N, 3, S, S]."""
        return self.prepare.normalise(np.repeat(images[..., None], 3, axis=3))

    def explain(self, candidates, pixels, texts, targets) -> tuple[list[np.ndarray], np.ndarray]:
        """One pass of candidates that differ by their method alone: maps [B, T, h, w] of each, cosines [B, K]."""
        first = candidates[0]
        layers, methods = self.layers(first.layers), [candidate.method for candidate in candidates]
        others = TAKEN_OFF[self.kind].get(first.taken_off)
        cam = CLIPGradCAM(self.model, layers, False, first.method, first.similarity, others)
        by_method = cam.maps_of_methods(methods, pixels, texts, targets)
        return [text_maps.maps.numpy() for text_maps in by_method], by_method[0].similarities.numpy()


class Cases(NamedTuple):
    """Phantoms at the model's size, N of them: of one finding or none, then of two."""

    images: np.ndarray  # uint8 [N, S, S]
    kinds: list[tuple[str, ...]]  # what is there
    masks: list[dict]  # {finding: bool [224, 224]}
    near: list[dict]  # the same, grown by the tolerance


def draw(split: str, prepare) -> Cases:
    """The phantoms of a split, squeezed as the model's preprocessing does it."""
    seeds, singles, doubles = SPLITS[split]
    size = prepare.input_size(700, 600)[0]
    images, masks, kinds = [], [], []
    for jobs_of, count in ((single_jobs, singles), (double_jobs, doubles)):
        names, jobs = jobs_of(seeds, count, size)
        drawn, of_images = draw_cases(jobs, partial(as_the_model_sees, prepare=prepare))
        images.append(drawn)
        masks += of_images
        kinds += [name if isinstance(name, tuple) else (name,) for name in names]
    near = [{kind: dilate(mask) for kind, mask in of_image.items()} for of_image in masks]
    return Cases(np.concatenate(images), kinds, masks, near)


# ---------------------------------------------------------------------------------------------
# 2. Measures: a dict of each image, then of all


def measure_image(maps: dict[str, np.ndarray], present: tuple[str, ...], mask: dict, near: dict) -> dict:
    """What the maps {finding asked: [h, w]} of one image say; `mask`, `near`: of the findings that are there."""
    heatmaps = {kind: to_heatmap(raw, GRID_SIZE) for kind, raw in maps.items()}
    if len(present) == 2:
        a, b = (np.maximum(maps[kind], 0) for kind in present)
        swapped = [to_heatmap(one, GRID_SIZE) for one in (a - b, b - a)]
        return {
            "both": all(peaks_in(heatmaps[kind], near[kind]) for kind in present),
            "swap": all(peaks_in(one, near[kind]) for one, kind in zip(swapped, present)),
        }
    (own,) = present
    measured = {}
    if own in heatmaps:
        shown = heatmaps[own] > heatmaps[own].mean()
        measured = {
            "point": peaks_in(heatmaps[own], near[own]),
            "energy": energy(heatmaps[own], mask[own]),
            "iou": float(np.mean([iou(shown, mask[own]), iou(~shown, ~mask[own])])),
        }
    absent = [kind for kind in maps if kind != own]
    if absent:
        measured["wrong"] = np.mean([peaks_in(heatmaps[kind], near[own]) for kind in absent])
        measured["empty"] = np.mean([is_flat(maps[kind]) for kind in absent])
    return measured


def chance_of_wrong(cases: Cases) -> list[float]:
    """Of each image with one finding, how often places of other findings in other images fall on it."""
    rng = np.random.default_rng(0)
    singles = [i for i, kinds in enumerate(cases.kinds) if len(kinds) == 1 and kinds[0] in FINDINGS]
    places = {kind: [] for kind in FINDINGS}
    for i in singles:
        (kind,) = cases.kinds[i]
        rows, columns = np.nonzero(cases.masks[i][kind])
        if len(rows):
            place = rng.integers(len(rows))
            places[kind].append((rows[place], columns[place]))
    chances = []
    for i in singles:
        (own,) = cases.kinds[i]
        falls = [np.mean([cases.near[i][own][place] for place in places[kind]]) for kind in FINDINGS if kind != own]
        chances.append(float(np.mean(falls)))
    return chances


def auc(present: np.ndarray, absent: np.ndarray) -> float:
    """How often a value of `present` is above one of `absent`, equal ones counting half."""
    order = np.sort(absent)
    below, not_above = np.searchsorted(order, present, "left"), np.searchsorted(order, present, "right")
    return float((below + not_above).mean() / 2 / len(order))


def interval_of(values, statistic=np.mean, draws: int = 1000) -> list[float]:
    """[statistic, 2.5 %, 97.5 %] by bootstrap over the images, of which `values` has one row each."""
    values, rng = np.asarray(values, float), np.random.default_rng(0)
    sampled = [statistic(values[rng.integers(len(values), size=len(values))]) for _ in range(draws)]
    return [round(float(v), 4) for v in (statistic(values), *np.percentile(sampled, [2.5, 97.5]))]


def auc_of_rows(rows: np.ndarray) -> float:
    """Rows (value of the finding that is there, values of those that are not) -> AUC over all of them."""
    return auc(rows[:, 0], rows[:, 1:].ravel())


def summarise(rows: list[dict], strengths, scores) -> dict:
    """Intervals of what was measured of the images, and of what the strength and the score tell."""
    columns = {}
    for row in rows:
        for name, value in row.items():
            columns.setdefault(name, []).append(float(value))
    summary = {name: interval_of(values) for name, values in columns.items()}
    for name, values in (("strength", strengths), ("score", scores)):
        if len(values):
            summary[name] = interval_of(values, auc_of_rows, draws=200)
    return summary


# ---------------------------------------------------------------------------------------------
# 3. Asking


def measure_candidates(subject: Subject, candidates: list[Candidate], cases: Cases) -> dict[str, dict]:
    """{candidate: intervals} of candidates that differ by their method alone, asked all nine texts."""
    rows = {candidate.key: [] for candidate in candidates}
    strengths, scores = {key: [] for key in rows}, []
    numbers = [KINDS.index(kind) for kind in FINDINGS]
    for start in range(0, len(cases.images), BATCH):
        pixels = subject.pixels(cases.images[start : start + BATCH])
        targets = torch.tensor(numbers).expand(len(pixels), -1)
        by_candidate, cosines = subject.explain(candidates, pixels, subject.texts, targets)
        for i, present in enumerate(cases.kinds[start : start + BATCH]):
            if present[0] not in FINDINGS:
                continue
            truth = cases.masks[start + i], cases.near[start + i]
            own_first = [FINDINGS.index(present[0]), *(j for j, kind in enumerate(FINDINGS) if kind != present[0])]
            if len(present) == 1:
                scores.append(cosines[i][numbers][own_first])
            for candidate, maps in zip(candidates, by_candidate):
                rows[candidate.key].append(measure_image(dict(zip(FINDINGS, maps[i])), present, *truth))
                if len(present) == 1:
                    strengths[candidate.key].append(np.maximum(maps[i].max((1, 2)), 0)[own_first])
    return {key: summarise(of_key, strengths[key], np.array(scores)) for key, of_key in rows.items()}


def measure_few_texts(subject: Subject, candidate: Candidate, cases: Cases, count: int) -> dict:
    """The same with `count` texts, another choice for each image: one that is asked, the others at random.

    Of an image with one finding its own text is asked once and an absent one's once; of two findings each in turn.
    """
    rng, rows, strengths = np.random.default_rng(count), [], []
    for image, present, mask, near in zip(*cases):
        if present[0] not in FINDINGS:
            continue
        findings = present if len(present) == 2 else (*present, rng.choice([k for k in FINDINGS if k not in present]))
        maps = {}
        for kind in findings:
            others = rng.permutation([k for k in range(len(KINDS)) if KINDS[k] != kind])[: count - 1]
            texts = subject.texts[[KINDS.index(kind), *others]]
            taken = candidate if count >= LEAST_TEXTS else candidate._replace(taken_off=NOTHING)
            maps[kind] = subject.explain([taken], subject.pixels(image[None]), texts, 0)[0][0][0, 0]
        rows.append(measure_image(maps, present, mask, near))
        if len(present) == 1:
            strengths.append([max(maps[kind].max(), 0) for kind in findings])
    return summarise(rows, np.array(strengths), [])


def measure_accuracy(subject: Subject, cases: Cases) -> list[float]:
    right = []
    with torch.no_grad():
        for start in range(0, len(cases.images), BATCH):
            kinds = cases.kinds[start : start + BATCH]
            answers = subject.model.image_encoder(subject.pixels(cases.images[start : start + BATCH])) @ subject.texts.T
            right += [KINDS[a] == k[0] for a, k in zip(answers.argmax(-1).tolist(), kinds) if len(k) == 1]
    return interval_of(right)


def evaluate(name: str, split: str, folder: Path, judges: Path | None, few_texts: bool) -> None:
    """Measure one model on one split, saving after each group of candidates that share their passes."""
    subject = Subject(name, judges)
    cases = draw(split, subject.prepare)
    singles = sum(len(kinds) == 1 and kinds[0] in FINDINGS for kinds in cases.kinds)
    doubles = sum(len(kinds) == 2 for kinds in cases.kinds)
    facts = {
        "kind": subject.kind,
        "singles": singles,
        "doubles": doubles,
        "chance of wrong": interval_of(chance_of_wrong(cases)),
    }
    save(folder, {name: {split: facts | {"accuracy": measure_accuracy(subject, cases)}}})
    if few_texts:
        default = DEFAULTS[subject.kind]
        for count in FEW_TEXTS:
            measured = measure_few_texts(subject, default, cases, count)
            save(folder, {name: {split: {"few texts": {default.key: {str(count): measured}}}}})
        return
    groups = {}
    for candidate in CANDIDATES[subject.kind]:
        alone = candidate.method if candidate.layers == "own" else ""
        groups.setdefault((*candidate[1:], alone), []).append(candidate)
    for group in groups.values():
        start = time.time()
        save(folder, {name: {split: {"settings": measure_candidates(subject, group, cases)}}})
        print(f"{name} {split} {[candidate.key for candidate in group]}: {time.time() - start:.0f} s", flush=True)


def save(folder: Path, new: dict) -> None:
    save_results(folder / TRUTH_FILE, new)


def main(split: str, folder: Path, judges: Path | None, names, few_texts: bool) -> None:
    """Measure all models that are there, or those of `names`; SystemExit where one of them is not."""
    there = [*DEMOS, *(name for name in JUDGES if judges and (judges / f"{name}.pt").is_file())]
    missing = [name for name in names or () if name not in there]
    if missing:
        raise SystemExit(
            f"no model {', '.join(missing)} (--judges FOLDER, by train_judges.py); there: {', '.join(there)}"
        )
    for name in names or there:
        evaluate(name, split, folder, judges, few_texts)
    print(json.dumps({"written": str(folder / TRUTH_FILE)}))


# ---------------------------------------------------------------------------------------------
# 4. The tables

NAMES = {
    "starnet-demo": "随附的 StarNet（见过掩膜）",
    "vit-demo": "随附的 ViT（见过掩膜）",
    "resnet18": "ResNet18",
    "starnet": "StarNet S1",
    "lite0": "EfficientNet-Lite0",
    "convnext": "ConvNeXt",
    "vit": "ViT",
    "siglip": "SigLIP 式",
}
SPLIT_LABELS = {"test": "测试种子", "validation": "验证种子"}  # the first that was measured is shown
LAYER_LABELS = {"last": "目标层", "two": "两层"}
SIMILARITY_LABELS = {"cosine": "余弦", "dot": "点积"}
GUIDE = Candidate("gradcam", "last", "cosine")
PREVIOUS = {
    "cnn": Candidate("gradcam", "two", "cosine"),
    "vit": Candidate("layercam", "last", "cosine"),
    "siglip": GUIDE,
}
OTHER_PEERS = ("legrad", "grad-eclip")  # of transformers, in libraries of their own
COLUMNS = {  # {measure: (heading, whether its interval is shown)}
    "point": ("指向", True), "both": ("两处都指对", True), "wrong": ("问错仍命中", True), "swap": ("交换", False),
    "empty": ("空", False), "energy": ("能量", False), "iou": ("IoU", False), "strength": ("强弱 AUC", False),
    "score": ("分数 AUC", False),
}  # fmt: skip
SHORT = ("point", "both", "wrong")
ALL_TEXTS = len(KINDS)
NOTES = (
    "“偶然”是别的图像中所问病变的位置落在图中病变上的比例：不看图、只知道病变常在哪里，问错也会命中这么多。"
    "张数是一处病变的与两处病变的图像；括号中的范围是对图像做自助法的 95 % 区间。粗体是默认设置；“默认，不减”不减去"
    "其他文本，“减去的是热力图”从热力图而不从所解释的方向减去它们（多一次反向）；“指南”是目标层上余弦的 Grad-CAM；"
    "“最好的同类方法”是 grad-cam、torchcam 也有的方法（ViT 另有 LeGrad 和 Grad-ECLIP）中“两处都指对”最高的，"
    "就在这些图像上挑选，所以对它有利。全部设置的数字见 truth.json。",
    "指向：问图中有的病变，峰落在它的掩膜外扩 15 像素之内。两处都指对：一图两处病变，两个文本都指对。"
    "问错仍命中：问图中没有的病变，峰却落在图中的病变上，越低越好；空：这时没有峰的比例。"
    "交换：两个文本的热力图按绝对单位相减，正反都指对。能量、IoU：图中病变的热力图落在掩膜内的份额，"
    "在自身均值处二值化后与掩膜的交并比（前景与背景平均）。强弱 AUC、分数 AUC：凭热力图峰的绝对高低、凭余弦，"
    "能否分出图中有的与没有的病变（全部图像放在一起；50 % 等于猜）。",
    "两个随附的模型训练时见过同一类掩膜；其余模型只用对比损失训练，没有见过掩膜（tests/train_judges.py）。"
    "全部是合成图像，不能说明在真实X光片上的表现。",
)
FEW_NOTE = (
    "默认设置用几个文本提问，指向 / 两处都指对 / 问错仍命中。"
    f"不到 {LEAST_TEXTS} 个文本时不减去其他文本；不到 {ALL_TEXTS} 个时其余文本随机取，每张图像只问一个图中没有的病变。"
)


def markdown(results: dict) -> str:
    """The tables of truth.json, Chinese, and their notes: settings of each model, then the default with few texts."""
    headings = ["模型（准确率）", "设置", *(heading for heading, _ in COLUMNS.values())]
    models = [name for name in NAMES if name in results]
    lines = [line for name in models for line in _model_rows(NAMES[name], results[name])]
    parts = [_table(headings, lines), *NOTES]
    few = [line for name in models for line in _few_texts_row(NAMES[name], results[name])]
    counts = [f"{count} 个文本" for count in (*FEW_TEXTS, ALL_TEXTS)]
    return "\n\n".join([*parts, *([_table(["模型", *counts], few), FEW_NOTE] if few else [])])


SHORT_HEADINGS = ["模型（九个文本的准确率）", "默认", "`--method gradcam`", "别的库中最好的方法"]


def short_markdown(results: dict) -> str:
    """What the README shows of truth.json: point / both / wrong of three settings of each model."""
    rows = []
    for name in NAMES:
        split = _split_with(results.get(name, {}), "settings")
        if split is None:
            continue
        facts = results[name][split]
        roles = {role: c for c, of_it in shown_candidates(facts["kind"], facts["settings"]).items() for role in of_it}
        shown = [roles[role] for role in ("默认", "指南", "最好的同类方法")]
        cells = [" / ".join(percent(facts["settings"][c.key].get(m)) for m in SHORT) for c in shown]
        cells[2] += f"（{METHODS[shown[2].method].label}）"
        rows.append([f"{NAMES[name]}，{percent(facts['accuracy'])}", *cells])
    return _table(SHORT_HEADINGS, rows)


def _table(headings: list[str], rows: list[list[str]]) -> str:
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [headings, ["---"] * len(headings), *rows])


def _split_with(of_model: dict, part: str) -> str | None:
    """The split whose numbers are shown: the test's where it has the part."""
    return next((split for split in SPLIT_LABELS if part in of_model.get(split, {})), None)


def _model_rows(name: str, of_model: dict) -> list[list[str]]:
    """The rows of one model, which stands in the first."""
    split = _split_with(of_model, "settings")
    if split is None:
        return []
    facts = of_model[split]
    words = f"准确率 {percent(facts['accuracy'])}，偶然 {percent(facts['chance of wrong'])}"
    model = f"{name}：{words}；{SPLIT_LABELS[split]}，{facts['singles']} + {facts['doubles']} 张"
    rows = []
    for candidate, roles in shown_candidates(facts["kind"], facts["settings"]).items():
        label = f"{'、'.join(roles)}：{label_of(candidate)}"
        label = f"**{label}**" if candidate == DEFAULTS[facts["kind"]] else label
        measured = facts["settings"][candidate.key]
        cells = [percent(measured.get(key), with_interval) for key, (_, with_interval) in COLUMNS.items()]
        rows.append(["" if rows else model, label, *cells])
    return rows


def shown_candidates(kind: str, settings: dict) -> dict[Candidate, list[str]]:
    """{candidate: what it is shown as} of those that were measured."""
    default = DEFAULTS[kind]
    roles = {
        "默认": default,
        "默认，不减": default._replace(taken_off=NOTHING),
        **({"默认，减去的是热力图": default._replace(taken_off=MAPS)} if default.taken_off == DIRECTION else {}),
        "以前的默认": PREVIOUS[kind],
        "指南": GUIDE,
    }
    peers = [candidate for candidate in CANDIDATES[kind] if is_peer(candidate) and candidate.key in settings]
    if peers:
        roles["最好的同类方法"] = max(peers, key=lambda candidate: settings[candidate.key]["both"][0])
    shown = {}
    for role, candidate in roles.items():
        if candidate.key in settings:
            shown.setdefault(candidate, []).append(role)
    return shown


def is_peer(candidate: Candidate) -> bool:
    """Whether other libraries have it: at the guide's layer, or of attention, nothing taken off."""
    at_guide = candidate.method in PEERS and candidate.layers == "last"
    return not candidate.taken_off and (at_guide or candidate.method in OTHER_PEERS)


def label_of(candidate: Candidate) -> str:
    """The candidate in Chinese words."""
    layers = [] if reads_attention(candidate.method) else [LAYER_LABELS[candidate.layers]]
    words = [*layers, *words_of(candidate.method, candidate.similarity, candidate.taken_off)]
    return f"{METHODS[candidate.method].label}（{'，'.join(words)}）"


def words_of(method: str, similarity: str, subtract) -> list[str]:
    """What is explained by a method that knows the text, in Chinese words; none of one that does not."""
    if not METHODS[method].knows_text:
        return []
    return [SIMILARITY_LABELS[similarity], *(["减去其他文本"] if subtract else [])]


def _few_texts_row(name: str, of_model: dict) -> list[list[str]]:
    """One row, or none where it was not measured."""
    split = _split_with(of_model, "few texts")
    if split is None:
        return []
    facts, key = of_model[split], DEFAULTS[of_model[split]["kind"]].key
    by_count = {**facts["few texts"].get(key, {}), str(ALL_TEXTS): facts.get("settings", {}).get(key, {})}
    cells = [by_count.get(str(count), {}) for count in (*FEW_TEXTS, ALL_TEXTS)]
    cells = [" / ".join(percent(measured.get(measure)) for measure in SHORT) for measured in cells]
    return [[f"{name}（{SPLIT_LABELS[split]}）", *cells]]
