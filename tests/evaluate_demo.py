"""How well the demo's Grad-CAM points, and the measures of pointing that evaluate.py shares.

    python tests/evaluate.py --demo     # writes models/assets/demo/evaluation.json and its table in measurements.zh.md

The heatmaps are the guide's Grad-CAM (the cosine, the last block), made by the tool's own code on seeds that training
and tuning never saw. Where a peak counts as a hit: models/demo/protocol.py.
"""

import cv2
import numpy as np
import project  # noqa: F401
import torch

from clip_gradcam_visualization import CLIPGradCAM, get_target_layer_for_clip
from models.demo import cnn as demo
from models.demo.dataset import SEEDS, normalise
from models.demo.findings import FINDINGS, KINDS
from models.demo.protocol import (
    DISTAL,
    PROXIMAL,
    dilate,
    double_jobs,
    draw_cases,
    peaks_in,
    single_jobs,
    squash_as_the_tool,
)
from models.demo.sentences import class_texts, short_name
from models.evaluation.baselines import gaussian_map
from models.evaluation.measures import GRID, TOLERANCE, energy
from models.explain.heatmap import to_heatmap
from models.loading.load import load_clip_checkpoint

GRID_SIZE = (GRID, GRID)

# ---------------------------------------------------------------------------------------------
# 1. Measures


def correlation(a, b):
    """Pearson correlation of two maps; None where one is flat."""
    return None if a.std() < 1e-6 or b.std() < 1e-6 else float(np.corrcoef(a.ravel(), b.ravel())[0, 1])


def interval(values, rng, draws=2000):
    """[mean, 2.5 %, 97.5 %] by bootstrap over the images."""
    values = np.asarray(values, float)
    means = values[rng.integers(len(values), size=(draws, len(values)))].mean(1)
    return [round(float(v), 4) for v in (values.mean(), *np.percentile(means, [2.5, 97.5]))]


def percent(value, with_interval=False):
    """[mean, low, high] of shares as text, a dash for None."""
    if value is None:
        return "—"
    mean, low, high = (100 * v for v in value)
    return f"{mean:.0f} %（{low:.0f}–{high:.0f}）" if with_interval else f"{mean:.0f} %"


def as_the_model_sees(image, size, prepare):
    """Grey uint8 [H, W] -> [S, S], squeezed as the model's own preprocessing does it."""
    return prepare.resize_and_crop(np.repeat(image[..., None], 3, axis=2))[..., 0]


def module_at(backbone, path: str):
    """The module at a dotted path; numbers, also negative ones, count members."""
    for part in path.split("."):
        backbone = backbone[int(part)] if part.lstrip("-").isdigit() else getattr(backbone, part)
    return backbone


# ---------------------------------------------------------------------------------------------
# 2. Pointing without looking


def average_places(img_size, per_kind=60):
    """What knows where findings usually are but never looks: {kind: `place_map` [224, 224]}, from validation seeds."""
    maps = {}
    for i, kind in enumerate(FINDINGS):
        start = SEEDS["validation"].start + 700_000 + 1000 * i
        _, masks = draw_cases([(start + j, (kind,), False, img_size) for j in range(per_kind)])
        maps[kind] = place_map([mask[kind] for mask in masks])
    return maps


def place_map(masks):
    """bool [224, 224] each -> float [224, 224]: how often a peak there would hit; its peak is the best blind guess."""
    return np.mean([dilate(mask) for mask in masks], axis=0).astype(np.float32)


def baseline_maps(places, kind, rng):
    """{name: heatmap [224, 224]} of four ways of pointing without looking."""
    return {
        "class_place": places[kind],
        "global_place": np.mean(list(places.values()), axis=0),
        "random": cv2.resize(rng.random((8, 8)).astype(np.float32), GRID_SIZE, interpolation=cv2.INTER_LINEAR),
        "gaussian": gaussian_map(),
    }


# ---------------------------------------------------------------------------------------------
# 3. The measurement


@torch.no_grad()
def ask_everything(model, texts, short, images, batch=20):
    """Images uint8 [N, S, S], asked every text by the tool's own Grad-CAM.

    Returns the best of the descriptions [N], of the short names [N], and heatmaps float32 [N, T, 224, 224].
    """
    cam = CLIPGradCAM(model, get_target_layer_for_clip(model), use_cuda=False)
    answers, short_answers, heatmaps = [], [], []
    for i in range(0, len(images), batch):
        pixels = normalise(torch.from_numpy(images[i : i + batch])[:, None].float() / 255)
        explanation = cam.text_maps(pixels, texts, torch.arange(len(texts)).expand(len(pixels), -1))
        answers += explanation.similarities.argmax(-1).tolist()
        short_answers += (model.image_encoder(pixels) @ short.T).argmax(-1).tolist()
        heatmaps += [[to_heatmap(raw, GRID_SIZE) for raw in maps] for maps in explanation.maps]
    return answers, short_answers, np.array(heatmaps)


def evaluate_singles(kinds, masks, answers, short_answers, maps, places, rng):
    """Accuracy, pointing, energy, baselines, wrong texts and text specificity on phantoms with at most one finding."""
    names = ("accuracy", "accuracy_short_names", "pointing", "energy", "wrong_text_hits", "text_specificity")
    rows = {kind: {name: [] for name in names} for kind in KINDS}
    flat = []
    for kind, mask, answer, short, heat in zip(kinds, masks, answers, short_answers, maps, strict=True):
        row, own = rows[kind], KINDS.index(kind)
        others = [heat[t] for t in range(len(KINDS)) if t != own]
        row["accuracy"].append(KINDS[answer] == kind)
        row["accuracy_short_names"].append(KINDS[short] == kind)
        row["text_specificity"] += [1 - r for r in (correlation(heat[own], other) for other in others) if r is not None]
        if kind not in FINDINGS:
            continue
        near = dilate(mask[kind])
        flat.append(heat[own].max() <= heat[own].min())
        row["pointing"].append(peaks_in(heat[own], near))
        row["energy"].append(energy(heat[own], mask[kind]))
        row["wrong_text_hits"].append(np.mean([peaks_in(other, near) for other in others]))
        for name, baseline in baseline_maps(places, kind, rng).items():
            row.setdefault(f"pointing_{name}", []).append(peaks_in(baseline, near))
            row.setdefault(f"energy_{name}", []).append(energy(baseline, mask[kind]))
    measures = {name: [v for kind in KINDS for v in rows[kind].get(name, [])] for name in rows[FINDINGS[0]]}
    overall = {name: interval(values, rng) for name, values in measures.items()}
    by_kind = {
        kind: {name: interval(values, rng) for name, values in row.items() if values} for kind, row in rows.items()
    }
    return {"overall": overall, "by_kind": by_kind, "flat_maps": float(np.mean(flat))}


def evaluate_doubles(both, masks, maps, places, rng):
    """Two findings in one image, each text asked in turn: share of images with both found, of findings found."""
    hits, swapped, blind, each = [], [], [], {kind: [] for kind in PROXIMAL + DISTAL}
    for pair, mask, heat in zip(both, masks, maps, strict=True):
        near = [dilate(mask[kind]) for kind in pair]
        heatmaps = [heat[KINDS.index(kind)] for kind in pair]
        hits.append([peaks_in(heatmap, region) for heatmap, region in zip(heatmaps, near)])
        swapped.append([peaks_in(heatmap, region) for heatmap, region in zip(heatmaps, near[::-1])])
        blind.append([peaks_in(places[kind], region) for kind, region in zip(pair, near)])
        for kind, hit in zip(pair, hits[-1]):
            each[kind].append(hit)
    return {
        "both": interval(np.all(hits, axis=1), rng),
        "each": interval(np.mean(hits, axis=1), rng),
        "swapped_texts": interval(np.mean(swapped, axis=1), rng),
        "both_class_place": interval(np.all(blind, axis=1), rng),
        "each_class_place": interval(np.mean(blind, axis=1), rng),
        "each_by_kind": {kind: interval(values, rng) for kind, values in each.items() if values},
    }


def evaluate(checkpoint=demo.CHECKPOINT, count=500, doubles=100):
    """Measure a checkpoint on the test seeds; returns a dict of [mean, low, high] (95 %)."""
    model = load_clip_checkpoint(str(checkpoint))
    rng, size = np.random.default_rng(0), model.img_size
    places, described = average_places(size), class_texts()
    with torch.no_grad():
        texts, short = (model.text_encoder(texts=list(part)) for part in (described.values(), described))
    kinds, jobs = single_jobs(SEEDS["test"], count, size)
    images, masks = draw_cases(jobs, squash_as_the_tool)
    result = evaluate_singles(kinds, masks, *ask_everything(model, texts, short, images), places, rng)
    both, jobs = double_jobs(SEEDS["pairs"], doubles, size)
    images, masks = draw_cases(jobs, squash_as_the_tool)
    _, _, maps = ask_everything(model, texts, short, images)
    result["two_findings"] = evaluate_doubles(both, masks, maps, places, rng)
    result["setting"] = {
        "images": count, "two_finding_images": doubles, "img_size": size, "synthetic": True,
        "tolerance": f"{TOLERANCE} px at {GRID}", "interval": "95 % bootstrap over images",
    }  # fmt: skip
    return result


# ---------------------------------------------------------------------------------------------
# 4. The tables

COLUMNS = {
    "accuracy": "分类准确率", "accuracy_short_names": "只用短名称", "pointing": "指向准确率",
    "pointing_class_place": "该类平均位置", "pointing_global_place": "总平均位置",
    "pointing_gaussian": "居中高斯", "pointing_random": "随机图", "energy": "能量占比",
    "energy_class_place": "能量（平均位置）", "wrong_text_hits": "问错文本仍命中",
}  # fmt: skip


def markdown(result):
    """The measurement as Markdown tables with Chinese headings."""
    two, (mean, low, high) = result["two_findings"], result["overall"]["text_specificity"]
    by_kind = [_row(short_name(kind), result["by_kind"][kind]) for kind in KINDS]
    lines = [
        "| 类别 | " + " | ".join(COLUMNS.values()) + " |",
        "| --- " * (len(COLUMNS) + 1) + "|",
        _row("**全部**", result["overall"], True),
        *by_kind,
        "",
        "文本特异性（1 − 正确文本与其他文本热力图的平均相关系数；1 表示不相关，0 表示热力图不随文本变化）："
        f"{mean:.2f}（{low:.2f}–{high:.2f}）",
        "",
        "| 一图两处病变，逐个文本提问 | 结果 | 该类平均位置 |",
        "| --- | --- | --- |",
        f"| 两处都指对 | {percent(two['both'], True)} | {percent(two['both_class_place'], True)} |",
        f"| 单处指对 | {percent(two['each'], True)} | {percent(two['each_class_place'], True)} |",
        f"| 指到另一处病变 | {percent(two['swapped_texts'], True)} | — |",
    ]
    for kind, hits in two["each_by_kind"].items():
        lines.append(f"| 单处指对：{short_name(kind)} | {percent(hits, True)} | — |")
    return "\n".join(lines)


def _row(name, row, with_interval=False):
    return f"| {name} | " + " | ".join(percent(row.get(column), with_interval) for column in COLUMNS) + " |"
