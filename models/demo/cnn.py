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
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F

from ..clip import CLIPModel
from .dataset import SEEDS, augment, draw_dataset, sample_batch
from .findings import FINDINGS, KINDS
from .phantoms import draw_phantom
from .protocol import double_jobs, draw_cases, print_validation, quick_validation, single_jobs
from .sentences import class_texts, sample_texts, short_name

ASSETS = Path(__file__).resolve().parent.parent / "assets" / "demo"
CHECKPOINT = ASSETS / "clip_starnet_bert.pth"

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


@torch.no_grad()
def similarities_and_maps(model):
    """What `quick_validation` asks: the maps are those of `cosine_cam`."""
    texts = model.text_encoder(texts=list(class_texts().values()))

    def ask(pixels):
        activations, z, scale = encode_with_activations(model.image_encoder, pixels)
        maps = cosine_cam(activations, scale, model.image_encoder.projection.weight, z, texts).relu()
        return F.normalize(z, dim=-1) @ texts.T, maps

    return ask


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
