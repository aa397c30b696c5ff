"""Which heatmaps point at what was drawn: every method on both demo encoders; not collected by pytest.

    python tests/evaluate.py --choose                    # validation seeds: layer and similarity of each method
    python tests/evaluate.py                             # test seeds: all parts of both encoders
    python tests/evaluate.py --encoder vit --part sanity # one part of one encoder; what was measured before is kept
    python tests/evaluate.py --figure                    # one phantom, methods x encoders
    python tests/evaluate.py --demo                      # the demo's Grad-CAM alone, by kind (evaluate_demo.py)
    python tests/evaluate.py --truth test --judges FOLDER  # many models, of which most saw no mask (evaluate_truth.py)
    python tests/evaluate.py --words test                # ways of weighing the words of a text (evaluate_words.py)
    python tests/evaluate.py --markdown                  # the tables, from the files

Everything is written to models/assets/demo/methods.json as soon as it is measured, and as a table between the marks of
measurements.zh.md beside it, whose other words are written by hand. Each method is measured in the setting of the guide
(the encoder's target layer, cosine) and in the one that `--choose` found best, and the tool's default beside them;
`maps` measures all settings (of Score-CAM these two), the costly parts only these. Nothing is left out because it looks
bad.

The parts: `maps` (pointing, energy, IoU, text specificity, wrong texts, two findings in one image, baselines),
`faithfulness` (deletion, insertion), `sanity` (Adebayo et al. 2018, arXiv 1810.03292), `libraries` (the same maps by
grad-cam and torchcam, where installed), `time`. Protocols: evaluate_demo.py, models/explain/faithfulness.py, `sanity`
below.

All phantoms are synthetic, and both encoders were trained with masks of their kind: the CNN through its Grad-CAM of
the cosine at the last block, which is favoured there; the ViT through a loss of its patch tokens only.
"""

import argparse
import copy
import importlib.util
import json
import statistics
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import NamedTuple

import cv2
import evaluate_demo
import evaluate_truth
import evaluate_words
import numpy as np
import project  # noqa: F401
import torch
from evaluate_demo import GRID_SIZE, as_the_model_sees, baseline_maps, correlation, interval, module_at, percent
from evaluate_truth import words_of
from results_file import read_results, save_results

from clip_gradcam_visualization import CLIPGradCAM
from models.demo import cnn as demo
from models.demo.dataset import SEEDS
from models.demo.findings import FINDINGS, KINDS
from models.demo.protocol import dilate, double_jobs, draw_cases, peaks_in, single_jobs
from models.demo.sentences import class_texts, short_name
from models.evaluation.measures import energy, iou
from models.explain.defaults import ENCODERS as ENCODER_ROWS
from models.explain.faithfulness import measure_faithfulness
from models.explain.heatmap import is_flat, text_specificity, to_heatmap
from models.explain.layers import as_maps, layers_name, token_grids_of
from models.explain.methods import METHODS, SIMILARITIES, methods_for, reads_attention
from models.explain.needs import Gradients
from models.images.preprocessing import preprocessing_of
from models.loading.load import load_clip_checkpoint
from models.results.colours import Colours, overlay_levels
from models.results.page import Drawing, Picture, Text, draw_pixels
from models.towers.image import ImageEncoder
from models.writing import write_files

METHODS_FILE, EVALUATION_FILE, FIGURE_FILE = "methods.json", "evaluation.json", "figure_methods.jpg"
PAGE_FILE = "measurements.zh.md"
PARTS = ("maps", "faithfulness", "sanity", "libraries", "time")
BATCH = 20
# Away from the seeds on which models.demo watched its training: those chose the CNN's last step by its Grad-CAM
CHOOSING = range(SEEDS["validation"].start + 100_000, SEEDS["validation"].stop)


class Setting(NamedTuple):
    """A method at a layer (a key of the encoder's table; "own" where the method needs none)."""

    method: str
    layer: str
    similarity: str
    subtract: bool = False  # whether the other texts are taken off, as the family does it

    @property
    def key(self) -> str:
        return "/".join([*self[:3], *(["others off"] if self.subtract else [])])


GUIDE = Setting("gradcam", "last", "cosine")


class Encoder(NamedTuple):
    """A demo encoder; paths of layers below its backbone, the guide's first."""

    label: str
    path: Path
    layers: dict[str, tuple[str, ...]]
    default_setting: Setting  # the tool's, which `--truth validation` chose
    blocks: dict[str, tuple[str, ...]] = {}  # of LeGrad

    @property
    def default(self) -> str:
        return self.default_setting.key


def _norms(*numbers: int) -> tuple[str, ...]:
    return tuple(f"encoder.layers.{number}.layer_norm1" for number in numbers)


def _blocks(count: int) -> tuple[str, ...]:
    return tuple(f"encoder.layers.{number}" for number in range(-count, 0))


ENCODERS = {
    "cnn": Encoder(
        "CNN",
        demo.CHECKPOINT,
        {"last": ("stages.-1.-1",), "previous": ("stages.-2.-1",), "both": ("stages.-2.-1", "stages.-1.-1")},
        Setting("local-gradcam", "both", "dot", True),
    ),
    "vit": Encoder(
        "ViT",
        demo.ASSETS.parent / "demo_vit",
        {"last": _norms(-1), "previous": _norms(-2), "third": _norms(-3), "both": _norms(-2, -1)},
        Setting("legrad-attention", "own", "dot", True),
        {"last2": _blocks(2), "last": _blocks(1), "last3": _blocks(3)},
    ),
}


def settings_of(encoder: Encoder, model) -> list[Setting]:
    """All that is measured of an encoder, the guide's setting of each method first; the tool's default last."""
    settings = []
    for method in methods_for(model, "all"):
        layers = ["own"] if reads_attention(method) else list(encoder.layers)
        layers = {"legrad": list(encoder.blocks), "scorecam": layers[:2]}.get(method, layers)  # Score-CAM is slow
        similarities = SIMILARITIES if METHODS[method].knows_text else SIMILARITIES[:1]
        settings += [Setting(method, layer, similarity) for similarity in similarities for layer in layers]
    return [*settings, encoder.default_setting]


def together(settings: Sequence[Setting]) -> list[list[Setting]]:
    """Groups that need one pass each: methods of the same layer's gradients; any other by itself."""
    groups = {}
    for setting in settings:
        shares = type(METHODS[setting.method].needs) is Gradients
        groups.setdefault(setting[1:] if shares else setting, []).append(setting)
    return list(groups.values())


# ---------------------------------------------------------------------------------------------
# 1. The images


class Cases(NamedTuple):
    """Phantoms at the model's size; N of them."""

    images: np.ndarray  # uint8 [N, S, S]
    asked: list[tuple[str, ...]]  # the kinds whose texts are asked
    masks: list[dict]  # {finding: bool [224, 224]}
    near: list[dict]  # the same, grown by the tolerance

    def choose(self, indices) -> "Cases":
        return Cases(self.images[indices], *([part[i] for i in indices] for part in self[1:]))

    def findings(self, most: int | None = None) -> "Cases":
        """Those with a finding, at most `most` of them."""
        return self.choose([i for i, asked in enumerate(self.asked) if asked[0] in FINDINGS][:most])

    def head(self, most: int) -> "Cases":
        return self.choose(list(range(min(most, len(self.asked)))))

    @property
    def own(self) -> np.ndarray:
        """Index of the first asked text, [N, 1]."""
        return np.array([[KINDS.index(asked[0])] for asked in self.asked])


@lru_cache(maxsize=8)
def draw(seeds: range, count: int, prepare, doubles: bool = False) -> Cases:
    """`count` phantoms of the nine kinds, or of two findings each."""
    size = prepare.input_size(700, 600)[0]
    if not prepare.region(700, 600).is_whole(700, 600):
        raise ValueError("the masks need a model that sees the whole image")
    kinds, jobs = (double_jobs if doubles else single_jobs)(seeds, count, size)
    images, masks = draw_cases(jobs, partial(as_the_model_sees, prepare=prepare))
    near = [{kind: dilate(mask) for kind, mask in of_image.items()} for of_image in masks]
    return Cases(images, [kind if doubles else (kind,) for kind in kinds], list(masks), near)


@lru_cache(maxsize=1)
def average_places() -> dict:
    return evaluate_demo.average_places(64)  # masks only: the images' size does not matter


# ---------------------------------------------------------------------------------------------
# 2. The maps


class Subject:
    """A demo encoder with the nine class texts, as the tool loads and prepares it."""

    def __init__(self, encoder: Encoder):
        self.encoder = encoder
        self.model = load_clip_checkpoint(str(encoder.path))
        self.prepare = preprocessing_of(self.model)
        with torch.no_grad():
            self.texts = self.model.text_encoder(texts=list(class_texts().values()))
        self.settings = settings_of(encoder, self.model)

    def pixels(self, images: np.ndarray) -> torch.Tensor:
        """Grey uint8 [N, S, S] -> model input [N, 3, S, S]."""
        return self.prepare.normalise(np.repeat(images[..., None], 3, axis=3))

    def maps(self, group: Sequence[Setting], cases: Cases, targets=None, model=None) -> dict[Setting, np.ndarray]:
        """{setting: maps at the layer before the ReLU [N, T, h, w]} of one group; `targets` [N, T], None for all."""
        batches = []
        for start in range(0, len(cases.images), BATCH):
            pixels = self.pixels(cases.images[start : start + BATCH])
            all_texts = torch.arange(len(self.texts)).expand(len(pixels), -1)
            batch_targets = all_texts if targets is None else torch.from_numpy(targets[start : start + BATCH])
            batches.append(self.explain(group, pixels, batch_targets, model))
        return {setting: np.concatenate([batch[setting] for batch in batches]) for setting in group}

    def explain(self, group, pixels, targets, model=None) -> dict[Setting, np.ndarray]:
        """One pass for a group: model input [B, 3, S, S], targets [B, T] -> {setting: [B, T, h, w]}."""
        model, (method, layer, similarity, subtract) = model or self.model, group[0]
        others = ENCODER_ROWS[model.image_encoder_name].others if subtract else None
        cam = CLIPGradCAM(model, self.modules(layer, method, model), False, method, similarity, others)
        by_setting = cam.maps_of_methods([setting.method for setting in group], pixels, self.texts, targets)
        return {setting: text_maps.maps.cpu().numpy() for setting, text_maps in zip(group, by_setting)}

    def modules(self, layer: str, method: str, model=None) -> list | None:
        paths = (self.encoder.blocks if method == "legrad" else self.encoder.layers).get(layer)
        backbone = (model or self.model).image_encoder.backbone
        return None if layer == "own" else [module_at(backbone, path) for path in paths]

    def layer_name(self, setting: Setting) -> str:
        modules = self.modules(setting.layer, setting.method)
        if modules is None:
            needs = METHODS[setting.method].needs
            modules = needs.modules(self.model.image_encoder, setting.method, [])
        return layers_name(self.model, modules)


# ---------------------------------------------------------------------------------------------
# 3. The measures: lists with one value per image


def overlap(shown, mask) -> float:
    """Intersection over union of bool maps, of the foreground and of the background, averaged."""
    return float(np.mean([iou(shown, mask), iou(~shown, ~mask)]))


def measure_map(heatmap, mask, near) -> dict:
    """What one heatmap [224, 224] says of the finding that it was asked for."""
    return {
        "pointing": peaks_in(heatmap, near),
        "energy": energy(heatmap, mask),
        "iou_mean": overlap(heatmap > heatmap.mean(), mask),
        "iou_half": overlap(heatmap > 0.5 * heatmap.max(), mask),
        "flat": heatmap.max() <= heatmap.min(),
    }


def measure_texts(maps: np.ndarray, own: int, near=None) -> dict:
    """What the maps of all texts [T, h, w] say of how much the text matters; `near`: of the image's finding."""
    measures = {}
    specificity = text_specificity(maps, own)
    if specificity is not None:
        measures["text_specificity"] = specificity
    if near is not None:
        others = [to_heatmap(raw, GRID_SIZE) for t, raw in enumerate(maps) if t != own]
        measures["wrong_text_hits"] = np.mean([peaks_in(heatmap, near) for heatmap in others])
    return measures


def gather(rows) -> dict[str, list]:
    """Dicts of one image each -> {name: the values of all that have it}."""
    columns = {}
    for row in rows:
        for name, value in row.items():
            columns.setdefault(name, []).append(float(value))
    return columns


def measure_singles(maps: np.ndarray, cases: Cases) -> dict[str, list]:
    """Maps of all texts [N, T, h, w], or of the image's own [N, 1, h, w], of phantoms with at most one finding."""
    rows = []
    for raw, (kind,), mask, near in zip(maps, cases.asked, cases.masks, cases.near, strict=True):
        own = KINDS.index(kind) if len(raw) > 1 else 0
        rows.append(measure_texts(raw, own, near.get(kind)) if len(raw) > 1 else {})
        if kind in FINDINGS:
            rows[-1] |= measure_map(to_heatmap(raw[own], GRID_SIZE), mask[kind], near[kind])
    return gather(rows)


def measure_doubles(maps: np.ndarray, cases: Cases) -> dict[str, list]:
    """Two findings in one image; maps [N, 2, h, w] of the two texts, each asked in turn."""
    rows = []
    for raw, pair, near in zip(maps, cases.asked, cases.near, strict=True):
        heatmaps = [to_heatmap(of_text, GRID_SIZE) for of_text in raw]
        hits = [peaks_in(heatmap, near[kind]) for heatmap, kind in zip(heatmaps, pair, strict=True)]
        swapped = [peaks_in(heatmap, near[kind]) for heatmap, kind in zip(heatmaps, pair[::-1], strict=True)]
        rows.append({"both": all(hits), "each": np.mean(hits), "swapped_texts": np.mean(swapped)})
    return gather(rows)


def pair_targets(cases: Cases) -> np.ndarray:
    return np.array([[KINDS.index(kind) for kind in pair] for pair in cases.asked])


def summarise(columns: dict[str, list]) -> dict:
    """{name: [mean, 2.5 %, 97.5 %]}, "images": how many gave the first value."""
    rng = np.random.default_rng(0)
    return {name: interval(values, rng) for name, values in columns.items()}


def unit_map(raw) -> np.ndarray:
    """Map before the ReLU -> after it, its maximum 1; zeros where it is flat."""
    raw = np.asarray(raw, np.float64)
    return np.zeros_like(raw) if is_flat(raw) else np.maximum(raw, 0) / raw.max()


def pearson(a, b) -> float:
    """Correlation of two maps before the ReLU; 0 where one is flat."""
    return correlation(unit_map(a), unit_map(b)) or 0.0


def spearman(a, b) -> float:
    """Correlation of ranks, equal values sharing theirs; 0 where one is flat."""
    return correlation(*(ranks(unit_map(raw)) for raw in (a, b))) or 0.0


def ranks(values) -> np.ndarray:
    """Rank of each value among all, 0 the smallest, the mean of theirs for equal ones."""
    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts + 1) / 2)[places].reshape(values.shape)


# ---------------------------------------------------------------------------------------------
# 4. The parts; each gives {"settings" | "libraries" | "baselines" | ...: ...} as often as it has something


def part_maps(subject: Subject, sizes) -> Iterator[dict]:
    singles = draw(SEEDS["test"], sizes.images, subject.prepare)
    doubles = draw(SEEDS["pairs"], sizes.doubles, subject.prepare, True)
    yield {"model": measure_model(subject, singles)}
    yield {"baselines": measure_baselines(singles.findings(), doubles)}
    for group in together([s for s in subject.settings if s.method != "scorecam" or s in sizes.shown]):
        measured = measure_group(subject, group, *reduced(group, singles, doubles, sizes))
        yield {"settings": {s.key: describe(subject, s) | {"maps": counted(*measured[s])} for s in group}}


def reduced(group, singles: Cases, doubles: Cases, sizes) -> tuple[Cases, Cases]:
    """Fewer images for the one method that runs the model hundreds of times per image."""
    if group[0].method != "scorecam":
        return singles, doubles
    return singles.findings(sizes.scorecam_images), doubles.head(sizes.scorecam_images)


def measure_group(subject, group, singles, doubles, all_texts=True) -> dict[Setting, tuple[dict, dict]]:
    """{setting: (lists of the single findings, lists of the doubles)}; the singles asked all texts or their own."""
    single_maps = subject.maps(group, singles, None if all_texts else singles.own)
    double_maps = subject.maps(group, doubles, pair_targets(doubles))
    return {s: (measure_singles(single_maps[s], singles), measure_doubles(double_maps[s], doubles)) for s in group}


def counted(singles: dict, doubles: dict) -> dict:
    """Intervals of both, and how many images they stand on."""
    numbers = {"images": len(singles["pointing"]), "doubles": len(doubles["both"])}
    return numbers | summarise(singles) | summarise(doubles)


def describe(subject: Subject, setting: Setting) -> dict:
    """What the table says of a setting; `guide`: whether it is the guide's."""
    guide = setting in shown_settings(subject.settings, {})
    names = {"method": setting.method, "layer": subject.layer_name(setting), "similarity": setting.similarity}
    return names | {"subtract": setting.subtract, "guide": guide}


def measure_model(subject: Subject, singles: Cases) -> dict:
    """How often the nine texts are told apart."""
    right = []
    with torch.no_grad():
        for start in range(0, len(singles.images), BATCH):
            pixels = subject.pixels(singles.images[start : start + BATCH])
            answers = (subject.model.image_encoder(pixels) @ subject.texts.T).argmax(-1)
            right += (answers.numpy() == singles.own[start : start + BATCH, 0]).tolist()
    return {"images": len(right), "input": list(singles.images.shape[1:]), **summarise({"accuracy": right})}


def measure_baselines(singles: Cases, doubles: Cases) -> dict:
    """Four ways of pointing without looking."""
    rng, places, rows, pairs = np.random.default_rng(0), average_places(), {}, {}
    for (kind,), mask, near in zip(singles.asked, singles.masks, singles.near, strict=True):
        for name, heatmap in baseline_maps(places, kind, rng).items():
            rows.setdefault(name, []).append(measure_map(heatmap, mask[kind], near[kind]))
    for pair, near in zip(doubles.asked, doubles.near, strict=True):
        of_pair = [baseline_maps(places, kind, rng) for kind in pair]
        for name in rows:
            hits = [peaks_in(maps[name], near[kind]) for maps, kind in zip(of_pair, pair, strict=True)]
            pairs.setdefault(name, []).append({"both": all(hits), "each": np.mean(hits)})
    return {name: {"maps": counted(gather(rows[name]), gather(pairs[name]))} for name in rows}


def part_faithfulness(subject: Subject, sizes) -> Iterator[dict]:
    """Deletion and insertion of the finding's text, scored by its cosine whatever similarity made the map."""
    cases = draw(SEEDS["test"], sizes.images, subject.prepare).findings(sizes.faithfulness_images)
    for group in together(sizes.shown):
        fewer = cases.head(sizes.scorecam_images) if group[0].method == "scorecam" else cases
        maps = {s.key: raw[:, 0] for s, raw in subject.maps(group, fewer, fewer.own).items()}
        blind = blind_maps(fewer, maps[GUIDE.key].shape[1:]) if GUIDE in group else {}
        measured = measure_faithful(subject, maps | blind, fewer)
        yield {"settings": {key: {"faithfulness": measured[key]} for key in maps}}
        if blind:  # at the grid of the guide's layer, as the random maps are that all are held against
            yield {"baselines": {name: {"faithfulness": measured[name]} for name in blind}}


def blind_maps(cases: Cases, grid) -> dict[str, np.ndarray]:
    """{baseline: maps [N, h, w]} at a layer's grid."""
    rng, places = np.random.default_rng(0), average_places()
    rows = [baseline_maps(places, asked[0], rng) for asked in cases.asked]
    return {
        name: np.stack([cv2.resize(row[name], grid[::-1], interpolation=cv2.INTER_AREA) for row in rows])
        for name in rows[0]
    }


def measure_faithful(subject: Subject, maps: dict[str, np.ndarray], cases: Cases) -> dict[str, dict]:
    """{name: maps [N, h, w]} -> {name: intervals of areas and margins}."""
    cam, rows = CLIPGradCAM(subject.model, None, use_cuda=False), {name: [] for name in maps}
    names = ("deletion", "insertion", "deletion_margin", "insertion_margin")
    for i, (own,) in enumerate(cases.own):
        image = subject.pixels(cases.images[i : i + 1])
        raw = np.stack([of_name[i] for of_name in maps.values()])
        score = partial(cam.score, text_features=subject.texts)
        tested = measure_faithfulness(score, image, raw, [own] * len(raw), seed=i)
        for name, faithfulness in zip(maps, tested, strict=True):
            if faithfulness is not None:
                rows[name].append({measure: getattr(faithfulness, measure) for measure in names})
    return {name: {"images": len(values)} | summarise(gather(values)) for name, values in rows.items()}


# -- the sanity check of Adebayo et al.


def part_sanity(subject: Subject, sizes) -> Iterator[dict]:
    """How alike a map is to that of the same network with its weights replaced from the top down, step by step.

    Each step gives one more stage or block fresh weights, as before training; batch norms whose input changed take
    the statistics of the images. The texts' features stay. Score-CAM: first and last step only.
    """
    cases = draw(SEEDS["test"], sizes.images, subject.prepare).findings(sizes.sanity_images)
    groups, before, rows, last = together(sizes.shown), {}, {}, len(cascade(subject.model.image_encoder)) - 1
    for step, (name, model) in enumerate(randomised(subject.model, subject.pixels(cases.images))):
        for group in groups:
            if group[0].method == "scorecam" and step not in (0, last):
                continue
            fewer = cases.head(sizes.scorecam_sanity) if group[0].method == "scorecam" else cases
            if group[0] not in before:
                before |= subject.maps(group, fewer, fewer.own)
            for s, after in subject.maps(group, fewer, fewer.own, model).items():
                alike = [measure_likeness(a[0], b[0]) for a, b in zip(before[s], after, strict=True)]
                row = {"step": name, "images": len(alike)} | summarise(gather(alike))
                rows.setdefault(s, []).append(row)
    yield {"settings": {s.key: {"sanity": steps} for s, steps in rows.items()}}


def measure_likeness(a, b) -> dict:
    return {"pearson": pearson(a, b), "spearman": spearman(a, b), "flat": is_flat(b)}


def cascade(tower) -> list[tuple[str, tuple[str, ...]]]:
    """[(step, beginnings of its weights' names)] of an image tower from the top down; the last is all that is left."""
    backbone = tower.backbone
    if tower.transformer() is None:
        top, path, count = "norm", "stages", len(backbone.stages)
    else:
        top, path, count = "post_layernorm", "encoder.layers", len(backbone.encoder.layers)
    blocks = [(f"{path}.{i}", (f"backbone.{path}.{i}.",)) for i in reversed(range(count))]
    return [(f"projection + {top}", ("projection.", f"backbone.{top}.")), *blocks, ("all", ("",))]


def fresh_weights(tower, seed: int = 1) -> dict[str, torch.Tensor]:
    """The state of an image tower of this kind before any training; the demos' own training began with seed 0."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if tower.transformer() is None:
            return ImageEncoder(tower.model_name, tower.projection.out_features).state_dict()
        fresh = copy.deepcopy(tower)
        fresh.backbone = type(tower.backbone)(tower.backbone.config)
        fresh.projection.reset_parameters()
        return fresh.state_dict()


def randomised(model, pixels: torch.Tensor, seed: int = 1) -> Iterator[tuple[str, torch.nn.Module]]:
    """(step, the model so far) for each step of the cascade; the model given stays as it is."""
    model = copy.deepcopy(model)
    tower, done = model.image_encoder, set()
    fresh = fresh_weights(tower, seed)
    for step, beginnings in cascade(tower):
        done |= {name for name in fresh if name.startswith(beginnings)}
        tower.load_state_dict({name: fresh[name] if name in done else old for name, old in tower.state_dict().items()})
        norms = [m for name, m in tower.named_modules() if f"{name}.running_mean" in done]
        settle(tower, norms, pixels)
        yield step, model


@torch.no_grad()
def settle(tower, norms, pixels: torch.Tensor) -> None:
    """Give batch norms the statistics of what reaches them."""
    if not norms:
        return
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the mean over the batches
        norm.train()
    for batch in pixels.split(BATCH):
        tower(batch)
    for norm in norms:
        norm.eval()


# -- the same maps by other libraries

LIBRARIES = {  # (library, module): {its class: our name}
    ("grad-cam", "pytorch_grad_cam"): {
        "GradCAM": "gradcam", "HiResCAM": "hirescam", "GradCAMPlusPlus": "gradcam++", "LayerCAM": "layercam",
        "XGradCAM": "xgradcam", "EigenCAM": "eigencam",
    },
    ("torchcam", "torchcam.methods"): {
        "GradCAM": "gradcam",
        "GradCAMpp": "gradcam++",
        "LayerCAM": "layercam",
        "XGradCAM": "xgradcam",
    },
}  # fmt: skip


class Similarity(torch.nn.Module):
    """What the libraries expect: images in, one score per text out; the cosine."""

    def __init__(self, model, texts):
        super().__init__()
        self.image_encoder, self.texts = model.image_encoder, texts

    def forward(self, images):
        return self.image_encoder(images) @ self.texts.T


def library_calls(subject: Subject) -> dict[tuple[str, str, str], Callable]:
    """{(library, class, our method): call(pixels [B, 3, S, S], texts [B]) -> maps [B, h, w]} at the guide's layer."""
    network = Similarity(subject.model, subject.texts).eval()
    (layer,) = subject.modules("last", "gradcam")
    size = subject.prepare.input_size(700, 600)
    grids = token_grids_of(subject.model, size)
    options = {"reshape_transform": partial(as_maps, image_hw=size, token_grids=grids)} if grids else {}
    calls = {}
    for (library, module), names in LIBRARIES.items():
        if importlib.util.find_spec(module.split(".")[0]) is None:
            continue
        classes = importlib.import_module(module)
        make = _torchcam_call if library == "torchcam" else _grad_cam_call
        for name, ours in names.items():
            calls[library, name, ours] = partial(make, getattr(classes, name), network, layer, options)
    return calls


def _grad_cam_call(kind, network, layer, options, pixels, texts):
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    with kind(model=network, target_layers=[layer], **options) as extractor:
        return extractor(input_tensor=pixels, targets=[ClassifierOutputTarget(int(text)) for text in texts])


def _torchcam_call(kind, network, layer, options, pixels, texts):
    with kind(network, layer, **options) as extractor:
        return extractor([int(text) for text in texts], network(pixels))[0].numpy()


def part_libraries(subject: Subject, sizes) -> Iterator[dict]:
    """As `part_maps`, on fewer images: a library runs the network once per text."""
    cases = draw(SEEDS["test"], sizes.images, subject.prepare).findings(sizes.library_images)
    doubles = draw(SEEDS["pairs"], sizes.doubles, subject.prepare, True).head(sizes.library_doubles)
    fewer = cases.head(sizes.library_texts)
    for (library, name, method), call in library_calls(subject).items():
        ask = partial(library_maps, subject, call)
        theirs = ask(cases, cases.own)
        ours = GUIDE._replace(method=method)
        mine = subject.maps([ours], cases, cases.own)[ours]
        rows = []
        for a, b, (kind,), mask, near in zip(theirs, mine, *cases[1:], strict=True):
            heatmap = to_heatmap(a[0], GRID_SIZE)
            likeness = correlation(heatmap, to_heatmap(b[0], GRID_SIZE)) or 0.0
            rows.append(measure_map(heatmap, mask[kind], near[kind]) | {"likeness_to_ours": likeness})
        nine = ask(fewer, np.tile(np.arange(len(subject.texts)), (len(fewer.asked), 1)))
        for raw, (kind,), near in zip(nine, fewer.asked, fewer.near, strict=True):
            rows.append(measure_texts(raw, KINDS.index(kind), near[kind]))
        pairs = measure_doubles(ask(doubles, pair_targets(doubles)), doubles)
        measures = counted(gather(rows), pairs) | {"texts_images": len(fewer.asked)}
        times = measure_time(subject, lambda pixels, texts, call=call: [call(pixels, [t]) for t in texts])
        described = {"library": library, "class": name, "method": method, "layer": subject.layer_name(ours)}
        yield {"libraries": {f"{library}/{name}": described | {"maps": measures, "time": times}}}


def library_maps(subject: Subject, call: Callable, cases: Cases, targets: np.ndarray) -> np.ndarray:
    """Maps [N, T, h, w] of the texts in `targets` [N, T]; NaN, which some give for an empty map, counts as 0."""
    batches = []
    for start in range(0, len(targets), BATCH):
        pixels = subject.pixels(cases.images[start : start + BATCH])
        columns = [call(pixels, texts) for texts in targets[start : start + BATCH].T]
        batches.append(np.stack(columns, axis=1))
    return np.nan_to_num(np.concatenate(batches))


# -- time


def part_time(subject: Subject, sizes) -> Iterator[dict]:
    for setting in sizes.shown:
        few = setting.method == "scorecam"
        call = partial(_explain_texts, subject, setting)
        yield {"settings": {setting.key: {"time": measure_time(subject, call, 2 if few else 7)}}}


def _explain_texts(subject, setting, pixels, texts):
    return subject.explain([setting], pixels, torch.tensor([texts]))


def measure_time(subject: Subject, call: Callable, repetitions: int = 7) -> dict:
    """Milliseconds of one core for one image and one text, for nine texts, and for a plain forward pass.

    Medians, taken in turn; the process's own time, which other work on the machine does not lengthen.
    """
    pixels = subject.pixels(draw(CHOOSING, 9, subject.prepare).images[-1:])
    texts = list(range(len(subject.texts)))

    def forward():
        with torch.no_grad():
            subject.model.image_encoder(pixels)

    calls = {"one_text": lambda: call(pixels, texts[:1]), "nine_texts": lambda: call(pixels, texts), "forward": forward}
    seconds, threads = {name: [] for name in calls}, torch.get_num_threads()
    torch.set_num_threads(1)
    for _ in range(repetitions + 1):
        for name, run in calls.items():
            start = time.process_time()
            run()
            seconds[name].append(time.process_time() - start)
    torch.set_num_threads(threads)
    return {name: round(1000 * statistics.median(values[1:]), 2) for name, values in seconds.items()}


RUN_PART = {
    "maps": part_maps, "faithfulness": part_faithfulness, "sanity": part_sanity, "libraries": part_libraries,
    "time": part_time,
}  # fmt: skip


# ---------------------------------------------------------------------------------------------
# 5. Choosing, on validation seeds


def choose(subject: Subject, sizes) -> Iterator[dict]:
    """Measure all settings; the best of each method and of all by the mean of `pointing` and `both`."""
    singles = draw(CHOOSING, sizes.images, subject.prepare).findings()
    doubles = draw(CHOOSING, sizes.doubles, subject.prepare, True)
    measured = {}
    for group in together(subject.settings):
        measured |= measure_group(subject, group, *reduced(group, singles, doubles, sizes), all_texts=False)
        print(f"  {len(measured)} of {len(subject.settings)} settings", flush=True)
    best = {}
    for method in dict.fromkeys(setting.method for setting in measured):
        best[method] = max((s for s in measured if s.method == method), key=lambda s: choosing_score(*measured[s]))
    whole = [s for s in measured if len(measured[s][0]["pointing"]) == len(singles.asked)]
    winner = max(whole, key=lambda s: choosing_score(*measured[s]))
    rows = {}
    for s, lists in measured.items():
        rows[s.key] = describe(subject, s) | counted(*lists) | {"score": round(choosing_score(*lists), 4)}
        rows[s.key]["behind_the_winner"] = behind(measured[winner], lists)
        rows[s.key]["behind_the_method"] = behind(measured[best[s.method]], lists)
    chosen = {method: setting.key for method, setting in best.items()}
    yield {"validation": rows, "chosen": chosen, "winner": winner.key}


def choosing_score(singles: dict, doubles: dict) -> float:
    return (np.mean(singles["pointing"]) + np.mean(doubles["both"])) / 2


def behind(best: tuple[dict, dict], other: tuple[dict, dict], draws: int = 2000) -> list[float]:
    """[difference of the scores, 2.5 %, 97.5 %] by bootstrap over the images that both have, pair by pair."""
    rng, total = np.random.default_rng(0), 0.0
    for part, name in enumerate(("pointing", "both")):
        pairs = zip(best[part][name], other[part][name])
        difference = np.array([a - b for a, b in pairs])
        sampled = difference[rng.integers(len(difference), size=(draws, len(difference)))].mean(1)
        total = total + np.concatenate([[difference.mean()], sampled]) / 2
    return [round(float(v), 4) for v in (total[0], *np.percentile(total[1:], [2.5, 97.5]))]


def shown_settings(settings: Sequence[Setting], chosen: dict, default: str = "") -> list[Setting]:
    """Of each method the guide's setting and, where they are others, the chosen one and the tool's default."""
    guide = {}
    for setting in settings:
        guide.setdefault(setting.method, setting)
    return [s for s in settings if s in (guide[s.method],) or s.key in (chosen.get(s.method), default)]


# ---------------------------------------------------------------------------------------------
# 6. The tables


BASELINES = {"class_place": "该类平均位置", "global_place": "总平均位置", "gaussian": "居中高斯", "random": "随机图"}
COLUMNS = (
    "编码器", "方法（层，相似度）", "图像数¹", "指向", "两处都指对", "能量", "IoU 均值 / 半高²",
    "删除（优于随机）³", "插入（优于随机）³", "文本特异性", "问错仍命中",
    "随机化：顶层 / 全部⁴", "毫秒：1 / 9 个文本⁵",
)  # fmt: skip
NOTES = (
    "★ 在验证种子上选出的该方法的层和相似度，★★ 是其中最好的；“默认”是不给参数时的设置，"
    "其余各行是指南的设置（目标层，余弦）。全部设置的数字见 methods.json。括号是对图像做自助法的 95 % 区间。",
    "¹ 单处病变、两处病变、删除与插入、随机化各用了多少张图像（空的热力图不计入删除与插入）。"
    "² 热力图在自身的均值处、最大值的一半处二值化，前景与背景的交并比取平均。"
    "³ 该文本的余弦的曲线下面积；括号是比随机图好多少，正数为好。"
    "⁴ 与原热力图的 Pearson 相关：先只把最上面的投影层、最后把全部权重换成训练之前的（Adebayo 等 2018），"
    "越接近 0 越好。"
    "⁵ 单核，一张图像；grad-cam 和 torchcam 每个文本都重新前向。",
    "两个编码器的训练都见过同一类掩膜：CNN 通过它自己最后一个块上余弦的 Grad-CAM，所以这一行在 CNN 上占便宜；"
    "ViT 只通过图块词元的辅助损失。全部是合成图像，不能说明在真实X光片上的表现。",
)


def markdown(results: dict) -> str:
    """The table of all that was measured, Chinese, and its notes."""
    lines = ["| " + " | ".join(COLUMNS) + " |", "| --- " * len(COLUMNS) + "|"]
    for name, encoder in ENCODERS.items():
        lines += [f"| {encoder.label} | {line}" for line in _encoder_rows(results.get(name, {}), encoder.default)]
    accuracy = [
        f"{encoder.label} {100 * results[name]['model']['accuracy'][0]:.0f} %"
        for name, encoder in ENCODERS.items()
        if "model" in results.get(name, {})
    ]
    stars, numbers, training = NOTES
    notes = (stars, numbers, f"九个文本的分类准确率：{'，'.join(accuracy)}。{training}")
    return "\n\n".join(["\n".join(lines), *notes])


def _encoder_rows(results: dict, default: str) -> list[str]:
    """The lines of one encoder, without its name."""
    chosen, order, rows = results.get("chosen", {}), list(METHODS), []
    settings = sorted(results.get("settings", {}).items(), key=lambda item: order.index(item[1]["method"]))
    for key, row in settings:
        method = row["method"]
        star = "" if key != chosen.get(method) else "★★" if key == results["winner"] else "★"
        star += "，**默认**" if key == default else ""
        if star or row["guide"]:
            where = "，".join([row["layer"], *words_of(method, row["similarity"], row.get("subtract", False))])
            rows.append(_line(f"{METHODS[method].label}{star}（{where}）", row))
    rows += [_line(f"{row['library']} {row['class']}", row) for row in results.get("libraries", {}).values()]
    return rows + [_line(BASELINES[name], row) for name, row in results.get("baselines", {}).items()]


def _line(label: str, row: dict) -> str:
    maps, faithful, steps = row.get("maps", {}), row.get("faithfulness", {}), row.get("sanity", [])
    numbers = (maps.get("images"), maps.get("doubles"), faithful.get("images"), steps[0]["images"] if steps else None)
    cells = [
        label,
        " / ".join("—" if number is None else str(number) for number in numbers),
        percent(maps.get("pointing"), True),
        percent(maps.get("both"), True),
        percent(maps.get("energy")),
        f"{_decimal(maps.get('iou_mean'))} / {_decimal(maps.get('iou_half'))}",
        *(f"{_decimal(faithful.get(name))}（{_decimal(faithful.get(name + '_margin'), '+')}）" for name in TESTS),
        _decimal(maps.get("text_specificity")),
        percent(maps.get("wrong_text_hits")),
        " / ".join(_decimal(steps[i]["pearson"] if steps else None) for i in (0, -1)),
        " / ".join(f"{row['time'][name]:.0f}" if "time" in row else "—" for name in ("one_text", "nine_texts")),
    ]
    return " | ".join(cells) + " |"


TESTS = ("deletion", "insertion")


def _decimal(value, sign: str = "") -> str:
    return "—" if value is None else f"{round(value[0], 2) + 0.0:{sign}.2f}"


TABLES = {  # {mark: (file, its table, heading of the section where a page has none)}
    "methods": (METHODS_FILE, markdown, "哪种方法指得准"),
    "truth": (evaluate_truth.TRUTH_FILE, evaluate_truth.markdown, "热力图回答的是不是所问的"),
    "evaluation": (EVALUATION_FILE, evaluate_demo.markdown, "演示模型（CNN）指得准不准"),
    "words": (evaluate_words.WORDS_FILE, evaluate_words.markdown, "哪些词重要，怎样算"),
}


def write_tables(folder: Path) -> None:
    """The tables of the folder's results into its page, each between its marks; the rest of the page stays."""
    page = folder / PAGE_FILE
    text = page.read_text(encoding="utf-8") if page.is_file() else ""
    for name, (file, table, heading) in TABLES.items():
        if (folder / file).is_file():
            begin, end = f"<!-- {name} -->\n", f"<!-- end of {name} -->"
            if begin not in text:
                text = f"{text}\n## {heading}\n\n{begin}{end}\n".lstrip()
            before, rest = text.split(begin)
            _, after = rest.split(end)
            text = f"{before}{begin}{table(read_results(folder / file))}\n{end}{after}"
    write_files({page: text.encode()})


# ---------------------------------------------------------------------------------------------
# 7. The figure: the first phantom with two findings of the seeds for samples, whatever it shows

TILE, GAP, LABEL, HEAD, FOOT = 148, 6, 96, 30, 34
LARGEST_FIGURE = 250_000  # bytes
HIT = {True: ("指对", "#1e8449"), False: ("指错", "#b03a2e")}


def draw_figure(subjects: dict[str, Subject], results: dict) -> np.ndarray:
    """Methods x (encoder, text): RGB uint8 [H, W, 3]."""
    rows = [(name, kind) for name in subjects for kind in figure_case(subjects[name]).asked[0]]
    columns = ["", *METHODS]
    items = [
        Text(
            LABEL + i * (TILE + GAP) + TILE // 2,
            20,
            (METHODS[method].label if method in METHODS else "图像与掩膜"),
            15,
            "m",
        )
        for i, method in enumerate(columns)
    ]
    for r, (name, kind) in enumerate(rows):
        top = HEAD + r * (TILE + FOOT)
        items += [Text(8, top + 60, ENCODERS[name].label, 17), Text(8, top + 86, short_name(kind), 14)]
        for c, method in enumerate(columns):
            items += _tile(subjects[name], results, method, kind, LABEL + c * (TILE + GAP), top)
    page = Drawing(LABEL + len(columns) * (TILE + GAP), HEAD + len(rows) * (TILE + FOOT), items)
    return draw_pixels(page)


def figure_case(subject: Subject) -> Cases:
    return draw(SEEDS["samples"], 1, subject.prepare, True)


def _tile(subject: Subject, results: dict, method: str, kind: str, left: int, top: int) -> list:
    """The image with the finding's outline, or a method's overlay and where its setting points."""
    case = figure_case(subject)
    pixels = np.repeat(cv2.resize(case.images[0], (TILE, TILE), interpolation=cv2.INTER_AREA)[..., None], 3, axis=2)
    mask = cv2.resize(case.masks[0][kind].astype(np.uint8), (TILE, TILE), interpolation=cv2.INTER_NEAREST)
    outline, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    if not method:
        cv2.drawContours(pixels, outline, -1, (255, 220, 0), 1)
        return [Picture(left, top, pixels)]
    setting = _chosen(subject, results, method)
    if setting is None:
        return [Text(left + TILE // 2, top + TILE // 2, "—", 16, "m")]
    raw = subject.maps([setting], case, np.array([[KINDS.index(kind)]]))[setting][0, 0]
    pixels = overlay_levels(pixels, to_heatmap(raw, (TILE, TILE)), Colours("jet", "constant", 0.45))
    cv2.drawContours(pixels, outline, -1, (255, 255, 255), 1)
    hit, colour = HIT[peaks_in(to_heatmap(raw, GRID_SIZE), case.near[0][kind])]
    words = "，".join([hit, *words_of(method, setting.similarity, setting.subtract)])
    return [Picture(left, top, pixels), Text(left + TILE // 2, top + TILE + 15, words, 13, "m", colour)]


def _chosen(subject: Subject, results: dict, method: str) -> Setting | None:
    """The setting of a method that validation chose, else the guide's; None where the encoder has no such method."""
    of_method = [setting for setting in subject.settings if setting.method == method]
    return next((s for s in of_method if s.key == results.get("chosen", {}).get(method)), (of_method or [None])[0])


def encode_small_jpeg(pixels: np.ndarray) -> bytes:
    """The best quality that fits LARGEST_FIGURE."""
    for quality in range(92, 30, -4):
        data = cv2.imencode(".jpg", cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
        if len(data) <= LARGEST_FIGURE:
            break
    return data.tobytes()


# ---------------------------------------------------------------------------------------------
# 8. The command


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--encoder", choices=tuple(ENCODERS), help="one encoder instead of all that are there")
    parser.add_argument("--part", choices=PARTS, action="append", help="one part, or several, instead of all")
    parser.add_argument("--method", choices=tuple(METHODS), action="append", help="one method, or several, of ours")
    parser.add_argument("--choose", action="store_true", help="choose each method's setting on validation seeds")
    parser.add_argument("--figure", action="store_true", help="draw the figure")
    parser.add_argument("--demo", action="store_true", help="measure the demo's Grad-CAM by kind instead")
    parser.add_argument(
        "--truth", choices=tuple(evaluate_truth.SPLITS), help="measure many models on one of the splits"
    )
    parser.add_argument(
        "--words", choices=tuple(evaluate_words.SPLITS), help="measure ways of weighing words on one of the splits"
    )
    parser.add_argument("--texts", action="store_true", help="with --truth: the default with fewer texts")
    parser.add_argument("--judges", type=Path, metavar="FOLDER", help="with --truth: of train_judges.py")
    parser.add_argument("--model", nargs="+", metavar="NAME", help="with --truth: these models instead of all there")
    parser.add_argument("--markdown", action="store_true", help="write the tables from the results")
    parser.add_argument("--output", type=Path, default=demo.ASSETS, help="folder of the results, tables and figure")
    parser.add_argument("--vit-path", type=Path, default=ENCODERS["vit"].path, help="folder of the ViT")
    parser.add_argument("--threads", type=int, default=2)
    for name, count, words in (
        ("images", 500, "phantoms of the nine kinds"),
        ("doubles", 100, "phantoms with two findings"),
        ("faithfulness-images", 40, "with a finding, for deletion and insertion"),
        ("sanity-images", 30, "with a finding, for the sanity check"),
        ("library-images", 60, "with a finding, for the other libraries"),
        ("library-doubles", 30, "with two findings, for the other libraries"),
        ("library-texts", 15, "of them asked all nine texts"),
        ("scorecam-images", 20, "of each kind, for Score-CAM"),
        ("scorecam-sanity", 4, "for the sanity check of Score-CAM"),
    ):
        parser.add_argument(f"--{name}", type=int, default=count, help=f"{words} (default {count})")
    return parser


def run(arguments, name: str, subject: Subject) -> None:
    """Measure what was asked of one encoder, saving as it goes."""
    path = arguments.output / METHODS_FILE
    parts = {"choose": choose} if arguments.choose else {part: RUN_PART[part] for part in arguments.part or PARTS}
    for part, measure in parts.items():
        chosen = read_results(path).get(name, {}).get("chosen", {})
        arguments.shown = shown_settings(subject.settings, chosen, subject.encoder.default)
        save_results(path, {name: {"settings": {s.key: describe(subject, s) for s in arguments.shown}}})
        start = time.time()
        print(f"{name} {part} ...", flush=True)
        for results in measure(subject, arguments):
            save_results(path, {name: results})
        save_results(path, {name: {"seconds": {part: round(time.time() - start)}}})
        print(f"{name} {part}: {time.time() - start:.0f} s", flush=True)


def print_choice(name: str, results: dict) -> None:
    """What validation says, the best first."""
    rows = sorted(results["validation"].items(), key=lambda item: -item[1]["score"])
    print(f"{name}: score = (pointing + both) / 2, behind the best with its 95 % interval")
    for key, row in rows:
        mark = "**" if key == results["winner"] else "*" if key in results["chosen"].values() else ""
        numbers = f"{row['score']:.3f}  pointing {row['pointing'][0]:.3f}  both {row['both'][0]:.3f}"
        print(f"  {key:40s}{mark:3s} {numbers}  behind {row['behind_the_winner']}  ({row['images']}/{row['doubles']})")


def main() -> None:
    arguments = build_parser().parse_args()
    path = arguments.output / METHODS_FILE
    if arguments.markdown:
        write_tables(arguments.output)
        return
    warnings.simplefilter("ignore")  # of the libraries
    torch.set_num_threads(arguments.threads)
    cv2.setNumThreads(1)  # before its first use: the forks that draw would wait forever for the threads it started here
    if arguments.demo:
        evaluation = evaluate_demo.evaluate(arguments.output / demo.CHECKPOINT.name)
        text = json.dumps(evaluation, ensure_ascii=False, indent=1) + "\n"
        write_files({arguments.output / EVALUATION_FILE: text.encode()})
        write_tables(arguments.output)
        return
    if arguments.truth:
        evaluate_truth.main(arguments.truth, arguments.output, arguments.judges, arguments.model, arguments.texts)
        write_tables(arguments.output)
        return
    if arguments.words:
        evaluate_words.main(arguments.words, arguments.output)
        write_tables(arguments.output)
        return
    encoders = {**ENCODERS, "vit": ENCODERS["vit"]._replace(path=arguments.vit_path)}
    names = [arguments.encoder] if arguments.encoder else [name for name, e in encoders.items() if e.path.exists()]
    subjects = {name: Subject(encoders[name]) for name in names}
    if arguments.figure:
        results = read_results(path)
        pages = [draw_figure({name: subject}, results.get(name, {})) for name, subject in subjects.items()]
        pixels = np.concatenate([pages[0], *(page[HEAD:] for page in pages[1:])])
        write_files({arguments.output / FIGURE_FILE: encode_small_jpeg(pixels)})
        print(arguments.output / FIGURE_FILE)
        return
    for name, subject in subjects.items():
        subject.settings = [s for s in subject.settings if s.method in (arguments.method or METHODS)]
        run(arguments, name, subject)
        if arguments.choose:
            print_choice(name, read_results(path)[name])
    write_tables(arguments.output)


if __name__ == "__main__":
    main()
