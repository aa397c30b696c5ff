"""The demo: a small CLIP trained on synthetic hip phantoms.

    python -m models.demo.cnn               # draw, train, write models/assets/demo/ (about 30 minutes on 2 cores)

Everything here is synthetic (models/demo/phantoms.py). Training sees the findings' masks: the Grad-CAM of the
cosine at the last block is, for a network that ends in BatchNorm -> mean -> linear, an explicit function
of the block's activations A, so it is trained as such (`cosine_cam`). How well the heatmaps point is measured
by tests/evaluate.py --demo; none of its numbers says anything about real radiographs.
"""

import argparse
import json
import math
import multiprocessing
import time
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F

from ..clip import CLIPModel
from .phantoms import FINDINGS, KINDS, draw_phantom

ASSETS = Path(__file__).resolve().parent.parent / "assets" / "demo"
CHECKPOINT = ASSETS / "clip_starnet_bert.pth"
CLASS_TEXTS = Path(__file__).resolve().parents[2] / "class_texts_hip_prosthesis.json"
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

# One seed draws one hip. The ranges never meet: training / choosing settings / the published numbers / samples.
SEEDS = {
    "train": range(0, 1_000_000),
    "validation": range(1_000_000, 2_000_000),
    "test": range(2_000_000, 3_000_000),
    "pairs": range(3_000_000, 4_000_000),
    "samples": range(4_000_000, 5_000_000),
}
PAIRED = FINDINGS[:-1]  # kinds that are also drawn without their finding; the spacer has no such twin
PROXIMAL, DISTAL = ("cup_loose", "wear", "dislocation"), ("stem_loose", "fracture", "infection")

RECIPE = {
    "image_encoder": "starnet_s1",
    "text_encoder": "bert-base-chinese",
    "embed_dim": 256,
    "img_size": 256,
    "temperature": 0.07,
    "text_config": {
        "num_hidden_layers": 2,
        "hidden_size": 128,
        "intermediate_size": 512,
        "num_attention_heads": 2,
        "initializer_range": 0.05,
    },  # with BERT's own 0.02 the texts start at cosine 0.99998
    "seed": 0,
    "train_per_kind": 1000,
    "stages": [(160, 1400), (256, 200)],
    "warmup": 100,
    "lr": 1.6e-3,
    "decay_over": 2600,  # steps of the cosine schedule. Training stops before its end, where two findings
    # in one image were still told apart best (validation seeds: 86 % of images; 62 % after 200 more steps)
    "text_steps": 300,
    "text_lr": 1e-3,
    "text_lr_later": 2e-4,
    "weight_decay": 0.05,
    "ema": 0.997,
    "findings_per_batch": 3,
    "others_per_batch": 4,
    "named": 2.0,
    "where": 1.0,
    "which": 1.0,
    "elsewhere": 0.5,
    "energy": 0.5,
    "apart": 2.0,
}

# Sentences besides the nine descriptions. Short names first; users ask in either way.
PARAPHRASES = {
    "native": [
        "自然髋关节",
        "自体髋关节",
        "无假体的髋关节",
        "正常髋关节，未行关节置换",
        "未见人工关节",
        "髋关节骨质结构完整，未见金属植入物",
        "股骨头及股骨颈完整，无人工髋关节假体",
    ],
    "normal": [
        "正常假体",
        "假体正常",
        "假体位置良好",
        "假体在位，未见松动",
        "假体稳定",
        "人工髋关节未见异常",
        "髋关节置换术后，假体位置良好，未见松动、骨折或感染征象",
        "人工关节置换术后改变，假体与骨质贴合良好",
    ],
    "stem_loose": [
        "股骨柄松动",
        "股骨假体松动",
        "假体柄松动",
        "股骨侧假体松动",
        "股骨柄周围透亮线",
        "股骨柄与骨质之间可见透亮带",
        "股骨柄周围出现连续透亮线，提示松动",
        "股骨干内假体柄旁透亮影，考虑松动",
    ],
    "cup_loose": [
        "髋臼杯松动",
        "髋臼假体松动",
        "髋臼侧假体松动",
        "臼杯松动",
        "髋臼杯周围透亮线",
        "髋臼杯与髋臼骨质之间可见弧形透亮带",
        "髋臼杯周围出现连续透亮线，提示松动",
        "臼杯骨床间透亮影，考虑松动",
    ],
    "dislocation": [
        "假体脱位",
        "人工髋关节脱位",
        "髋关节假体脱位",
        "股骨头脱出髋臼杯",
        "全髋置换术后脱位",
        "人工股骨头不在髋臼杯内",
        "股骨头与髋臼杯失去对应关系，考虑脱位",
    ],
    "fracture": [
        "假体周围骨折",
        "股骨假体周围骨折",
        "股骨骨折",
        "假体旁骨折",
        "骨皮质中断，可见骨折线",
        "假体周围股骨可见骨折线",
        "股骨柄旁骨折，断端移位",
    ],
    "infection": [
        "假体周围感染",
        "假体感染",
        "人工关节感染",
        "感染",
        "假体周围骨质破坏伴骨膜反应",
        "虫蚀样骨质破坏及软组织积气，提示感染",
        "假体周围骨溶解边界不清，伴骨膜反应，考虑感染",
    ],
    "wear": [
        "聚乙烯磨损",
        "内衬磨损",
        "聚乙烯内衬磨损",
        "衬垫磨损",
        "股骨头在髋臼杯内偏心",
        "人工股骨头偏心上移，提示内衬磨损",
        "髋臼杯周围骨溶解，股骨头偏心，考虑聚乙烯磨损",
    ],
    "spacer": [
        "骨水泥间隔器",
        "间隔器",
        "抗生素骨水泥间隔器",
        "骨水泥占位器",
        "间隔器植入术后",
        "假体取出后骨水泥间隔器在位",
        "髋关节内见骨水泥间隔器影",
    ],
}
EITHER_LOOSENING = ["假体松动", "人工关节松动", "假体周围透亮线，提示松动", "髋关节假体松动", "松动"]
TEMPLATES = ["{}", "{}", "{}", "X光片显示{}", "髋关节正位片：{}", "这是一张{}的X光片", "影像提示{}", "{}的影像表现"]


# ---------------------------------------------------------------------------------------------
# drawing the data


def random_size(seed, low, high):
    """(height, width): side between low and high, sides in the ratio 0.72 to 1.35."""
    rng = np.random.default_rng([seed, 50])
    side, ratio = rng.uniform(low, high), math.sqrt(rng.uniform(0.72, 1.35))
    return round(side * ratio), round(side / ratio)


def draw_for_training(job):
    """(seed, kind, with_finding, img_size) -> image uint8 [S, S], region uint8 [S/4, S/4]: mask, or the subject."""
    cv2.setNumThreads(1)
    seed, kind, with_finding, img_size = job
    wanted = (kind,) if kind in FINDINGS else ()
    phantom = draw_phantom(seed, wanted if with_finding else (), random_size(seed, 340, 520), kind == "native", wanted)
    image = cv2.resize(phantom.image, (img_size, img_size), interpolation=cv2.INTER_AREA)
    region = phantom.masks[kind] if with_finding and wanted else phantom.subject
    quarter = cv2.resize(region.astype(np.float32) * 255, (img_size // 4,) * 2, interpolation=cv2.INTER_AREA)
    return image, np.round(quarter).astype(np.uint8)


def draw_dataset(seeds, per_kind, img_size):
    """{kind: (images [n, 2, S, S], regions [n, 2, S/4, S/4])} uint8; index 1 is the twin without the finding."""
    dataset, start = {}, seeds.start
    with multiprocessing.Pool(2) as pool:
        for kind in (kind for kind in KINDS if kind != "normal"):
            twins = (True, False) if kind in PAIRED else (True,)
            jobs = [(start + i, kind, twin, img_size) for i in range(per_kind) for twin in twins]
            start += per_kind
            drawn = pool.map(draw_for_training, jobs, chunksize=32)
            images, regions = (
                np.stack(part).reshape(per_kind, len(twins), *part[0].shape) for part in zip(*drawn, strict=True)
            )
            dataset[kind] = torch.from_numpy(images), torch.from_numpy(regions)
            print(f"drew {len(jobs)} phantoms: {kind}", flush=True)
    return dataset


def sample_batch(dataset, recipe, rng):
    """images uint8 [B, S, S], regions uint8 [B, s, s], labels [B] (index into KINDS).

    Per finding `findings_per_batch` images, a third of them (rounded up) next to their twin without the finding.
    """
    images, regions, labels = [], [], []
    for kind, (pictures, masks) in dataset.items():
        n = recipe["findings_per_batch"] if kind in PAIRED else recipe["others_per_batch"]
        chosen = torch.from_numpy(rng.choice(len(pictures), n, replace=False))
        take = [(chosen, 0, kind)] + ([(chosen[: -(-n // 3)], 1, "normal")] if kind in PAIRED else [])
        for index, twin, name in take:
            images.append(pictures[index, twin])
            regions.append(masks[index, twin])
            labels += [KINDS.index(name)] * len(index)
    return torch.cat(images), torch.cat(regions), torch.tensor(labels)


def augment(images, regions, size, rng):
    """Mirror, turn, zoom, shift; brightness, contrast, gamma. uint8 -> [B, 3, size, size] normalised, [B, s, s]."""
    b = len(images)
    angle, zoom = torch.from_numpy(rng.uniform(-0.12, 0.12, b)), torch.from_numpy(rng.uniform(0.9, 1.1, b))
    mirror = torch.from_numpy(rng.choice([-1.0, 1.0], b))
    cos, sin, shift = torch.cos(angle) * zoom, torch.sin(angle) * zoom, torch.from_numpy(rng.uniform(-0.1, 0.1, (b, 2)))
    theta = torch.stack([cos * mirror, -sin, shift[:, 0], sin * mirror, cos, shift[:, 1]], 1).view(b, 2, 3).float()
    grey = images[:, None].float() / 255
    if size < grey.shape[-1]:  # antialias before sampling a smaller image
        grey = F.interpolate(grey, size=(size, size), mode="bilinear", antialias=True)
    grid = F.affine_grid(theta, (b, 1, size, size), align_corners=False)
    grey = F.grid_sample(grey, grid, padding_mode="border", align_corners=False)
    s = regions.shape[-1]
    masks = F.grid_sample(
        regions[:, None].float() / 255, F.affine_grid(theta, (b, 1, s, s), align_corners=False), align_corners=False
    )
    column = [
        torch.from_numpy(rng.uniform(low, high, (b, 1, 1, 1))).float()
        for low, high in ((0.8, 1.3), (0.85, 1.15), (-0.06, 0.06))
    ]
    grey = (grey.clamp(1e-4, 1) ** column[0] * column[1] + column[2]).clamp(0, 1)
    return normalise(grey), masks[:, 0]


def normalise(grey):
    """[B, 1, S, S] in [0, 1] -> [B, 3, S, S] with ImageNet's mean and standard deviation."""
    return (grey - torch.tensor(MEAN).view(1, 3, 1, 1)) / torch.tensor(STD).view(1, 3, 1, 1)


def sample_texts(rng):
    """A sentence for each kind, sometimes one for both loosenings. Returns texts [T] and column [9]: kind -> text."""
    described = dict(zip(KINDS, class_texts().values(), strict=True))
    texts, column = [], []
    either = rng.random() < 0.25
    for kind in KINDS:
        if either and kind == "cup_loose":  # shares the sentence before it, "loosening"
            column.append(len(texts) - 1)
            continue
        words = EITHER_LOOSENING if either and kind == "stem_loose" else PARAPHRASES[kind]
        text = described[kind]
        if words is EITHER_LOOSENING or rng.random() < 0.6:
            text = words[rng.integers(len(words))]
            text = TEMPLATES[rng.integers(len(TEMPLATES))].format(text)
        column.append(len(texts))
        texts.append(text)
    return texts, torch.tensor(column)


# ---------------------------------------------------------------------------------------------
# the loss


def encode_with_activations(encoder, images):
    """Activations A [B, K, h, w] of the last block, z [B, E] before the L2 norm, BatchNorm's scale [K].

    In training the scale is that of the batch, which running statistics follow.
    """
    backbone = encoder.backbone
    with torch.autocast("cpu", torch.bfloat16, enabled=encoder.training):
        x = backbone.stem(images)
        for stage in backbone.stages:
            x = stage(x)
    activations, norm = x.float(), backbone.norm
    variance = activations.var(dim=(0, 2, 3), unbiased=False) if norm.training else norm.running_var
    scale = norm.weight / torch.sqrt(variance + norm.eps)
    return activations, encoder.projection(norm(activations).mean(dim=(2, 3))), scale


def cosine_cam(activations, scale, projection, z, texts, mix=None):
    """Grad-CAM of cos(z, t) before its ReLU, for every text, up to a positive factor per image and text.

    With z = P(mean(scale * A + ...)) + b the channel weight <d cos / dA_k> is scale_k (P^T d)_k / hw, where
    d = (t - (u.t) u) / |z| and u = z / |z|. Here d is brought to length 1, so that all texts' maps compare.
    mix [B, E]: unit vectors that replace u (see `mixed_direction`). Returns [B, T, h, w].
    """
    u = F.normalize(z, dim=-1) if mix is None else mix
    direction = texts[None] - (u @ texts.T)[..., None] * u[:, None]  # (B, T, E)
    direction = F.normalize(direction, dim=-1)
    cells = torch.einsum("ek,bkhw->behw", projection * scale, activations)
    centred = cells.detach() - cells.detach().mean(dim=(0, 2, 3), keepdim=True)
    spread = centred.pow(2).sum(1).mean().sqrt().clamp_min(1e-6)
    return torch.einsum("bte,behw->bthw", direction, cells) / spread


def mixed_direction(z, texts, rng):
    """u, for half of the images drawn towards another text: the map must not hang on a pure embedding."""
    u = F.normalize(z, dim=-1)
    share = torch.from_numpy(rng.uniform(0, 0.6, len(z)) * (rng.random(len(z)) < 0.5)).float()[:, None]
    other = texts[torch.from_numpy(rng.integers(len(texts), size=len(z)))]
    return F.normalize((1 - share) * u + share * other, dim=-1)


def losses(maps, logits, cells, kinds, column, sharpness):
    """Terms of the loss. maps [B, T, h, w], logits [B, T], cells [B, h, w] region's share of each cell, kinds [B].

    where: the own text's map, as a distribution over cells, is the region. which: in the region's cells the
    own text wins ("well fixed" does on the implant, so that a twin without the finding says so). elsewhere:
    other findings' maps stay off it. energy: share of the positive map outside.
    """
    target = column[kinds]
    b = torch.arange(len(kinds))
    finding = torch.tensor([KINDS[k] in FINDINGS for k in kinds])
    weight = torch.tensor([1.0 if f else 0.25 for f in finding]) * (cells.sum((1, 2)) > 0.02)
    place = cells.flatten(1) / cells.sum((1, 2)).clamp_min(1e-6)[:, None]  # (B, hw)
    scaled = sharpness * maps.flatten(2)  # (B, T, hw)
    where = -(place * scaled[b, target].log_softmax(-1)).sum(-1)
    which = -(place * scaled.log_softmax(1)[b, target]).sum(-1)
    inside = (cells.flatten(1) > 0.04).float()
    leak = -torch.log1p(-(scaled.softmax(-1) * inside[:, None]).sum(-1).clamp(max=0.99))  # (B, T)
    wrong = torch.ones_like(leak)
    wrong[b, target] = 0
    wrong[:, column[KINDS.index("normal")]] = 0
    elsewhere = (leak * wrong).sum(-1) / wrong.sum(-1)
    positive = maps[b, target].flatten(1).relu()
    energy = 1 - (positive * (4 * cells.flatten(1)).clamp(max=1)).sum(-1) / (positive.sum(-1) + 1e-3)
    balance = torch.tensor([{"normal": 0.5, "native": 0.67, "spacer": 0.67}.get(KINDS[k], 1.0) for k in kinds])
    named = F.cross_entropy(logits, target, label_smoothing=0.05, reduction="none")
    only = weight * finding

    def mean(term, w):
        return (term * w).sum() / w.sum().clamp_min(1e-6)

    return {
        "named": mean(named, balance),
        "where": mean(where, weight),
        "which": mean(which, balance),
        "elsewhere": mean(elsewhere, only),
        "energy": mean(energy, only),
    }


# ---------------------------------------------------------------------------------------------
# training


def build_model(recipe):
    return CLIPModel(
        image_encoder_name=recipe["image_encoder"],
        text_encoder_name=recipe["text_encoder"],
        embed_dim=recipe["embed_dim"],
        temperature=recipe["temperature"],
        text_config=recipe["text_config"],
    )


def training_step(model, sharpness, batch, recipe, size, rng):
    """One batch: {term: loss}."""
    images, regions, kinds = batch
    images, masks = augment(images, regions, size, rng)
    texts, column = sample_texts(rng)
    text_features = model.text_encoder(texts=texts).float()
    images = images.contiguous(memory_format=torch.channels_last)
    activations, z, scale = encode_with_activations(model.image_encoder, images)
    logits = F.normalize(z, dim=-1) @ text_features.T / recipe["temperature"]
    maps = cosine_cam(
        activations,
        scale,
        model.image_encoder.projection.weight,
        z,
        text_features,
        mixed_direction(z, text_features, rng),
    )
    cells = F.adaptive_avg_pool2d(masks[:, None], maps.shape[-2:])[:, 0]
    terms = losses(maps, logits, cells, kinds, column, sharpness.exp())
    cosine = text_features @ text_features.T - 2 * torch.eye(len(texts))
    return terms | {"apart": (cosine - 0.1).relu().pow(2).mean()}  # texts of different kinds must not collapse


def warm_up_texts(encoder, recipe, rng):
    """Teach the text tower alone which sentences mean the same kind; images would wait long for it."""
    optimizer = torch.optim.AdamW(encoder.parameters(), recipe["text_lr"], weight_decay=recipe["weight_decay"])
    for step in range(recipe["text_steps"]):
        for group in optimizer.param_groups:
            group["lr"] = recipe["text_lr"] * min(1, (step + 1) / 50)
        drawn = [sample_texts(rng) for _ in range(3)]
        kinds = torch.cat([F.one_hot(column, len(texts)).T for texts, column in drawn]).float()  # (N, 9): text has kind
        features = encoder(texts=[text for texts, _ in drawn for text in texts])
        other = 1 - torch.eye(len(kinds))
        same = ((kinds @ kinds.T > 0) * other).float()
        scores = (features @ features.T / 0.1 - 1e4 * (1 - other)).log_softmax(-1)
        loss = -(scores * same).sum() / same.sum()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(encoder.parameters(), 1.0)
        optimizer.step()
    print(f"text tower alone: loss {loss.item():.3f}", flush=True)


def train(recipe, dataset, validate, validation_period=200):
    """Train from scratch; returns the exponential moving average of the model, in eval mode."""
    torch.manual_seed(recipe["seed"])
    rng = np.random.default_rng(recipe["seed"])
    model, average = build_model(recipe), build_model(recipe)
    warm_up_texts(model.train().text_encoder, recipe, rng)
    average.load_state_dict(model.state_dict())
    model.image_encoder.to(memory_format=torch.channels_last)
    sharpness = torch.nn.Parameter(torch.tensor(math.log(4.0)))
    text = list(model.text_encoder.parameters())
    image = list(model.image_encoder.parameters()) + [sharpness]
    groups = [{"params": image, "lr": recipe["lr"]}, {"params": text, "lr": recipe["text_lr_later"]}]
    optimizer = torch.optim.AdamW(groups, weight_decay=recipe["weight_decay"])
    sizes = [size for size, steps in recipe["stages"] for _ in range(steps)]
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: min(
            (step + 1) / recipe["warmup"], 0.5 * (1 + math.cos(math.pi * step / recipe["decay_over"])) + 1e-3
        ),
    )
    start = time.time()
    for step, size in enumerate(sizes):
        terms = training_step(model, sharpness, sample_batch(dataset, recipe, rng), recipe, size, rng)
        loss = sum(recipe.get(name, 1.0) * term for name, term in terms.items())
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(image + text, 2.0)
        optimizer.step()
        schedule.step()
        update_average(average, model, min(recipe["ema"], (step + 1) / (step + 20)))
        if step % 50 == 0 or step + 1 == len(sizes):
            shown = "  ".join(f"{name} {term.item():.3f}" for name, term in terms.items())
            print(
                f"step {step:5d}  {size} px  {time.time() - start:5.0f} s  {shown}  "
                f"sharpness {sharpness.exp().item():.2f}",
                flush=True,
            )
        if (step + 1) % validation_period == 0 or step + 1 == len(sizes):
            validate(average.eval(), step + 1)
    return average.eval()


@torch.no_grad()
def update_average(average, model, decay):
    """Exponential moving average of weights and batch-norm statistics."""
    for mean, new in zip(average.state_dict().values(), model.state_dict().values(), strict=True):
        if mean.is_floating_point():
            mean.lerp_(new.detach(), 1 - decay)
        else:
            mean.copy_(new)


# ---------------------------------------------------------------------------------------------
# watching the training

POINTING_GRID, TOLERANCE = 224, 15  # a hit: the peak within 15 pixels of the mask, both at 224 x 224


def squash(image, size):
    """uint8 [H, W] -> [size, size] by area, as for training."""
    return cv2.resize(image, (size, size), interpolation=cv2.INTER_AREA)


def squash_as_the_tool(image, size):
    """The same with the tool's own filter (`preprocess` of models.images.preprocessing)."""
    return np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.BILINEAR))


def draw_case(job, resize=squash):
    """(seed, findings, native, img_size) -> image uint8 [S, S] and {finding: bool [224, 224]}."""
    cv2.setNumThreads(1)
    seed, findings, native, img_size = job
    phantom = draw_phantom(seed, findings, random_size(seed, 500, 900), native)
    return resize(phantom.image, img_size), {name: shrink(mask, POINTING_GRID) for name, mask in phantom.masks.items()}


def shrink(mask, size):
    """bool [H, W] -> bool [size, size]: pixels that the mask covers at least a quarter of."""
    return cv2.resize(mask.astype(np.float32), (size, size), interpolation=cv2.INTER_AREA) > 0.25


def dilate(mask, pixels=TOLERANCE):
    """bool [H, W] grown by a disk of `pixels`."""
    disk = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * pixels + 1,) * 2)
    return cv2.dilate(mask.astype(np.uint8), disk) > 0


def single_jobs(seeds, count, img_size):
    """`count` phantoms, the nine kinds in turn, at most one finding each."""
    kinds = [KINDS[i % len(KINDS)] for i in range(count)]
    jobs = [
        (seeds.start + i, (kind,) if kind in FINDINGS else (), kind == "native", img_size)
        for i, kind in enumerate(kinds)
    ]
    return kinds, jobs


def double_jobs(seeds, count, img_size):
    """`count` phantoms with two findings, one at the cup or head and one at the femur."""
    both = [(PROXIMAL[i % 3], DISTAL[i // 3 % 3]) for i in range(count)]
    return both, [(seeds.start + 500_000 + i, pair, False, img_size) for i, pair in enumerate(both)]


def draw_cases(jobs, resize=squash):
    """-> images uint8 [N, S, S], masks [N] of {finding: bool [224, 224]}."""
    with multiprocessing.Pool(2) as pool:
        images, masks = zip(*pool.map(partial(draw_case, resize=resize), jobs, chunksize=8), strict=True)
    return np.stack(images), masks


def peak(heatmap):
    """(row, column) of the maximum; the middle of the plateau that bilinear resizing leaves at the border."""
    rows, columns = np.nonzero(heatmap >= heatmap.max() - 1e-6)
    return round(rows.mean()), round(columns.mean())


def is_hit(heatmap, mask):
    """Whether the heatmap's peak lies within TOLERANCE of the mask; a flat map never hits."""
    return peaks_in(heatmap, dilate(mask))


def peaks_in(heatmap, region):
    """Whether the heatmap's peak lies in the region, bool [H, W]; a flat map has none."""
    return bool(heatmap.max() > heatmap.min() and region[peak(heatmap)])


@torch.no_grad()
def quick_validation(ask, singles, doubles, batch=32):
    """(accuracy, pointing, both of two), for watching the training. singles, doubles: (kinds, (images, masks)).

    ask: pixels [B, 3, S, S] -> similarities [B, 9] of the kinds' descriptions and their maps [B, 9, h, w].
    """
    answers, hits = [], []
    for kinds, (images, masks) in (singles, doubles):
        for i in range(0, len(kinds), batch):
            similarities, maps = ask(normalise(torch.from_numpy(images[i : i + batch])[:, None].float() / 255))
            maps = F.interpolate(maps, size=(POINTING_GRID,) * 2, mode="bilinear").numpy()
            answers += similarities.argmax(-1).tolist()
            hits += [
                {name: is_hit(maps[j][KINDS.index(name)], mask) for name, mask in masks[i + j].items()}
                for j in range(len(maps))
            ]
    return summarise(answers, hits, singles[0])


@torch.no_grad()
def similarities_and_maps(model):
    """What `quick_validation` asks: the maps are those of `cosine_cam`."""
    texts = model.text_encoder(texts=list(class_texts().values()))

    def ask(pixels):
        activations, z, scale = encode_with_activations(model.image_encoder, pixels)
        maps = cosine_cam(activations, scale, model.image_encoder.projection.weight, z, texts).relu()
        return F.normalize(z, dim=-1) @ texts.T, maps

    return ask


def summarise(answers, hits, kinds):
    """(accuracy, pointing, both of two) of answers and {kind: hit}; the first belong to images of these `kinds`."""
    n = len(kinds)
    right = [KINDS[answer] == kind for answer, kind in zip(answers, kinds, strict=False)]
    by_kind = {
        k: (
            np.mean([r for r, q in zip(right, kinds, strict=True) if q == k]),
            np.mean([h[k] for h in hits[:n] if k in h] or [np.nan]),
        )
        for k in KINDS
    }
    return {
        "accuracy": float(np.mean(right)),
        "pointing": float(np.mean([v for h in hits[:n] for v in h.values()])),
        "both": float(np.mean([all(h.values()) for h in hits[n:]])),
        "by_kind": by_kind,
    }


def print_validation(validation, step):
    shown = {name: tuple(round(float(v), 2) for v in pair) for name, pair in validation["by_kind"].items()}
    print(
        f"validation, step {step}: accuracy {validation['accuracy']:.3f}  pointing {validation['pointing']:.3f}  "
        f"both of two {validation['both']:.3f}  {shown}",
        flush=True,
    )


# ---------------------------------------------------------------------------------------------
# what is shipped

# file name, place in SEEDS["samples"], findings, (height, width)
SAMPLES = [
    ("well_fixed.png", 7, (), (900, 700)),
    ("stem_loosening.png", 19, ("stem_loose",), (900, 700)),
    ("infection.png", 20, ("infection",), (720, 560)),
    ("dislocation.png", 35, ("dislocation",), (640, 640)),
    ("two_findings.png", 44, ("cup_loose", "fracture"), (900, 700)),
]


def class_texts():
    """The nine short names and descriptions, in the order of KINDS: {name: description}."""
    return json.loads(CLASS_TEXTS.read_text(encoding="utf-8"))


def short_name(kind):
    return list(class_texts())[KINDS.index(kind)]


def bounding_box(mask):
    """bool [H, W] -> [left, top, right, bottom] in pixels, the last two exclusive."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return [int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1]


def write_samples(folder):
    """Draw SAMPLES as PNG files and describe them in samples.json."""
    entries = []
    for name, place, findings, size in SAMPLES:
        phantom = draw_phantom(SEEDS["samples"].start + place, findings, size)
        fewer_greys = phantom.image // 3 * 3  # a smaller file
        Image.fromarray(fewer_greys).save(folder / name, compress_level=9)
        entries.append(
            {
                "file": name,
                "synthetic": True,
                "seed": SEEDS["samples"].start + place,
                "size": list(size),
                "findings": [
                    {"kind": kind, "name": short_name(kind), "box": bounding_box(mask)}
                    for kind, mask in phantom.masks.items()
                ],
            }
        )
    text = json.dumps(entries, ensure_ascii=False, indent=1)
    (folder / "samples.json").write_text(text + "\n", encoding="utf-8")


def save_checkpoint(model, recipe, validation, path):
    """Matrices in float16; vectors, which batch norm's variances are among, in float32."""
    weights = {
        name: tensor.half() if tensor.is_floating_point() and tensor.ndim > 1 else tensor.clone()
        for name, tensor in model.state_dict().items()
    }
    names = ("image_encoder", "text_encoder", "embed_dim", "img_size", "text_config")
    config = {name: recipe[name] for name in names} | {"temperature": model.temperature.item()}
    torch.save(
        {
            "epoch": len(recipe["stages"]),
            "model_state_dict": weights,
            "config": config,
            "val_acc": validation["accuracy"],
            "val_pointing": validation["pointing"],
            "class_to_idx": {name: i for i, name in enumerate(class_texts())},
            "class_texts": list(class_texts().values()),
            "recipe": recipe,
            "note": "trained on synthetic phantoms; not for real radiographs",
        },
        path,
    )


def make(recipe=RECIPE, folder=ASSETS):
    """Draw, train, validate, write the checkpoint and the samples."""
    start = time.time()
    folder.mkdir(parents=True, exist_ok=True)
    size = recipe["img_size"]
    dataset = draw_dataset(SEEDS["train"], recipe["train_per_kind"], size)
    kinds, jobs = single_jobs(SEEDS["validation"], 270, size)
    both, double = double_jobs(SEEDS["validation"], 90, size)
    singles, doubles = (kinds, draw_cases(jobs)), (both, draw_cases(double))
    print(f"drawing took {time.time() - start:.0f} s", flush=True)

    def report(model, step):
        validation = quick_validation(similarities_and_maps(model), singles, doubles)
        save_checkpoint(model, recipe, validation, folder / CHECKPOINT.name)
        print_validation(validation, step)

    train(recipe, dataset, report)
    write_samples(folder)
    print(f"wrote {folder} after {(time.time() - start) / 60:.0f} minutes")


def main():
    parser = argparse.ArgumentParser(description="用合成的髋关节示意图像训练演示检查点（与真实X光片无关）")
    parser.add_argument("--samples", action="store_true", help="只重画示例图像")
    parser.add_argument("--output", type=Path, default=ASSETS, help="输出文件夹（默认 models/assets/demo）")
    arguments = parser.parse_args()
    if arguments.samples:
        arguments.output.mkdir(parents=True, exist_ok=True)
        write_samples(arguments.output)
    else:
        make(RECIPE, arguments.output)


if __name__ == "__main__":
    main()
