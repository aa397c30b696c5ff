"""Which way of weighing the words of a text is true to the model? Not collected by pytest.

    python tests/evaluate.py --words validation     # the seeds on which the method was chosen
    python tests/evaluate.py --words test           # the published numbers

Each phantom is held against the description of its own kind, by both demo models:

- agreement: Spearman's correlation of a method's contributions with leave-one-out, the similarity that is lost when
  one word is hidden.
- deletion, insertion: words are hidden from the strongest on, a tenth at a time, or uncovered in that order when all
  are hidden; the area under the similarity, against that of a random order. Hidden words are masked from the attention,
  or cut out of the text ("cut"): the second judge does not hide as the default does.
- sanity: correlation with the contributions of the same tower with random weights, from the top down (Adebayo et al.
  2018, arXiv 1810.03292).
- cost: process seconds of one core for a BERT of full size with random weights, in forwards of the nine texts.

Everything goes into words.json beside the demo's checkpoint and from there into a table of measurements.zh.md.
"""

import copy
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import project  # noqa: F401
import torch
from evaluate_demo import as_the_model_sees, correlation, interval
from results_file import save_results
from torch.nn import functional as F

from models.demo import cnn as demo
from models.demo.dataset import SEEDS
from models.demo.findings import KINDS
from models.demo.protocol import draw_cases, single_jobs
from models.demo.sentences import class_texts
from models.explain.words import contributions as weigh
from models.images.preprocessing import preprocessing_of
from models.loading.load import load_clip_checkpoint
from models.towers.text import TextEncoder
from models.towers.words import clauses

WORDS_FILE = "words.json"
SPLITS = {name: range(SEEDS[name].start + 600_000, SEEDS[name].stop) for name in ("validation", "test")}
MODELS = {"CNN": demo.CHECKPOINT, "ViT": demo.ASSETS.parent / "demo_vit"}
IMAGES, SANITY_IMAGES, STEPS, LAST_BLOCKS, ORDERS, BATCH = 200, 30, 50, 8, 8, 128
SHARES = np.linspace(0, 1, 11)  # of the words that are hidden


# ---------------------------------------------------------------------------------------------
# 1. A text, and what the tower says of it with words hidden


class Sentence:
    """A text of N words before a BERT tower."""

    def __init__(self, tower, text: str):
        self.tower, self.text, self.words = tower, text, tower.words(text)
        self.ids = tower.tokenizer([text], return_tensors="pt")["input_ids"]  # (1, T)
        self.vocabulary = tower.backbone.embeddings.word_embeddings
        self.members = torch.zeros(len(self.words), self.ids.shape[1])  # (N, T), 1 where a token is a word's
        for row, word in enumerate(self.words):
            self.members[row, list(word.tokens)] = 1

    def hidden(self, shown: np.ndarray) -> torch.Tensor:
        """Words that are shown, bool [n, N] -> unit features [n, D]: no token attends to the others."""
        attended = self._attended(shown)
        return self._embed(self.ids.expand(len(attended), -1), attended)

    def cut(self, shown: np.ndarray) -> torch.Tensor:
        """The same of texts without these words, as though nobody had written them."""
        attended = self._attended(shown)
        order = attended.argsort(dim=1, descending=True, stable=True)  # the tokens that stay, in order, then the rest
        return self._embed(self.ids.expand(len(attended), -1).gather(1, order), attended.gather(1, order))

    def masked(self, shown: np.ndarray) -> torch.Tensor:
        """The same of texts with [MASK] in their places."""
        attended, mask = self._attended(shown), self.tower.tokenizer.mask_token_id
        return self._embed(torch.where(attended > 0, self.ids, mask), torch.ones_like(attended))

    def _attended(self, shown: np.ndarray) -> torch.Tensor:
        hidden = torch.from_numpy(~np.asarray(shown, bool)).float() @ self.members
        return (hidden == 0).long()  # (n, T)

    @torch.no_grad()
    def _embed(self, ids, attended) -> torch.Tensor:
        parts = zip(ids.split(BATCH), attended.split(BATCH))
        return torch.cat([self.tower(None, *part) for part in parts])

    def features(self, embeddings: torch.Tensor, **options):
        """Word embeddings [n, T, H] -> unit features [n, D], and what else the backbone says."""
        output = self.tower.backbone(inputs_embeds=embeddings, **options)
        return F.normalize(self.tower.projection(output.last_hidden_state[:, 0]), dim=-1), output


# ---------------------------------------------------------------------------------------------
# 2. The methods: a sentence, unit embeddings of images [n, D] -> contributions [n, N]


def one_less(sentence: Sentence, images: torch.Tensor, embed: Callable) -> torch.Tensor:
    """Leave-one-out: the similarity of the whole less that without each word."""
    count = len(sentence.words)
    features = embed(sentence, np.concatenate([np.ones((1, count), bool), ~np.eye(count, dtype=bool)]))
    return images @ (features[0] - features[1:]).T


def default(sentence: Sentence, images: torch.Tensor) -> torch.Tensor:
    """What the tool computes."""
    return weigh(sentence.tower, sentence.text, sentence.words, images)


def alone(sentence: Sentence, images: torch.Tensor) -> torch.Tensor:
    """What a word adds to the empty text."""
    count = len(sentence.words)
    features = sentence.hidden(np.concatenate([np.zeros((1, count), bool), np.eye(count, dtype=bool)]))
    return images @ (features[1:] - features[0]).T


def in_clause(sentence: Sentence, images: torch.Tensor) -> torch.Tensor:
    """What the clause of a word, the others hidden, loses without it."""
    numbers = np.array(clauses(sentence.text, [word.start for word in sentence.words]))
    clause = numbers[:, None] == numbers
    features = sentence.hidden(np.concatenate([clause, clause & ~np.eye(len(numbers), dtype=bool)]))
    return images @ (features[: len(numbers)] - features[len(numbers) :]).T


def averaged_orders(sentence: Sentence, images: torch.Tensor, orders: int = ORDERS) -> torch.Tensor:
    """Shapley values by permutations: what a word adds to those uncovered before it, over random orders."""
    rng, count = np.random.default_rng(0), len(sentence.words)
    added = torch.zeros(len(images), count)
    for order in [rng.permutation(count) for _ in range(orders)]:
        shown = np.argsort(order)[None] < np.arange(count + 1)[:, None]
        added[:, order] += (images @ sentence.hidden(shown).T).diff(dim=1) / orders
    return added


def gradient_input(sentence: Sentence, images: torch.Tensor) -> torch.Tensor:
    return integrated(sentence, images, torch.zeros(sentence.vocabulary.embedding_dim), steps=None)


def integrated(
    sentence: Sentence, images: torch.Tensor, baseline: torch.Tensor, steps: int | None = STEPS
) -> torch.Tensor:
    """Integrated gradients over the words' embeddings, from a baseline [H] (arXiv 1703.01365).

    The nodes are Gauss-Legendre's, as captum's; `steps` None takes the gradient at the text itself.
    """
    nodes, weights = np.polynomial.legendre.leggauss(steps) if steps else (np.ones(1), np.full(1, 2.0))
    nodes, weights = (torch.from_numpy(part).float()[:, None, None] for part in ((nodes + 1) / 2, weights / 2))
    of_text = sentence.vocabulary(sentence.ids).detach()
    change = (of_text - baseline) * sentence.members.sum(0)[None, :, None]  # special tokens stay
    inputs = (of_text - (1 - nodes) * change).requires_grad_()  # (steps, T, H)
    similarities = sentence.features(inputs)[0] @ images.T  # (steps, n)
    rows = []
    for of_image in similarities.T:
        (gradient,) = torch.autograd.grad(of_image.sum(), inputs, retain_graph=True)
        rows.append(sentence.members @ ((weights * gradient).sum(0) * change[0]).sum(-1))
    return torch.stack(rows).detach()


def embedding_of(sentence: Sentence, token: str) -> torch.Tensor:
    """[H] of a special token, zeros without one."""
    weight = sentence.vocabulary.weight.detach()
    return weight[getattr(sentence.tower.tokenizer, token)] if token else torch.zeros_like(weight[0])


def attention_gradient(sentence: Sentence, images: torch.Tensor) -> torch.Tensor:
    """Attention times its gradient at the token that is read out, over heads and the last eight blocks.

    The text side of Grad-ECLIP (arXiv 2502.18816) without its ReLU, that words may speak against a text.
    """
    backbone = sentence.tower.backbone
    usual = backbone.config._attn_implementation
    backbone.set_attn_implementation("eager")
    try:
        feature, output = sentence.features(sentence.vocabulary(sentence.ids), output_attentions=True)
    finally:
        backbone.set_attn_implementation(usual)
    attentions = output.attentions[-LAST_BLOCKS:]  # (1, heads, T, T) each
    rows = []
    for similarity in feature[0] @ images.T:
        gradients = torch.autograd.grad(similarity, attentions, retain_graph=True)
        of_tokens = sum((a * g)[0, :, 0].sum(0) for a, g in zip(attentions, gradients))
        rows.append(sentence.members @ of_tokens)
    return torch.stack(rows).detach()


def integrated_from(token: str, sentence: Sentence, images: torch.Tensor, steps: int | None = STEPS) -> torch.Tensor:
    return integrated(sentence, images, embedding_of(sentence, token), steps)


METHODS: dict[str, tuple[str, Callable]] = {
    "default": ("积分梯度（零，8 步），**默认**", default),
    "both": ("单独出现与在分句中遮住的平均", lambda *of: (alone(*of) + in_clause(*of)) / 2),
    "alone": ("单独出现", alone),
    "clause": ("在分句中遮住（只有该分句）", in_clause),
    "ends": ("单独出现与逐词遮住的平均", lambda *of: (alone(*of) + one_less(*of, Sentence.hidden)) / 2),
    "hidden": ("逐词遮住（注意力）", partial(one_less, embed=Sentence.hidden)),
    "cut": ("逐词删去", partial(one_less, embed=Sentence.cut)),
    "mask": ("逐词换成 [MASK]", partial(one_less, embed=Sentence.masked)),
    "shapley": (f"Shapley 值（{ORDERS} 个次序）", averaged_orders),
    "gradient": ("梯度 × 输入", gradient_input),
    "attention": ("注意力 × 梯度（Grad-ECLIP 的文本侧）", attention_gradient),
    "integrated_zero": ("积分梯度（零）", partial(integrated_from, "")),
    "integrated_pad": ("积分梯度（[PAD]）", partial(integrated_from, "pad_token_id")),
    "integrated_mask": ("积分梯度（[MASK]）", partial(integrated_from, "mask_token_id")),
}
TRUTH = "hidden"
JUDGES = {"": Sentence.hidden, "_cut": Sentence.cut}  # how words are hidden for the curves


# ---------------------------------------------------------------------------------------------
# 3. The measures


class Subject(NamedTuple):
    """A demo model's nine sentences, and phantoms: unit embeddings [n, D], and which sentence is each one's own."""

    sentences: list[Sentence]
    images: torch.Tensor
    own: list[int]


def read_subject(path: Path, seeds: range, count: int = IMAGES) -> Subject:
    model = load_clip_checkpoint(str(path))
    prepare = preprocessing_of(model)
    kinds, jobs = single_jobs(seeds, count, prepare.input_size(700, 600)[0])
    images, _ = draw_cases(jobs, partial(as_the_model_sees, prepare=prepare))
    pixels = prepare.normalise(np.repeat(images[..., None], 3, axis=3))
    with torch.no_grad():
        embeddings = torch.cat([F.normalize(model.image_encoder(part), dim=-1) for part in pixels.split(20)])
    sentences = [Sentence(model.text_encoder, text) for text in class_texts().values()]
    return Subject(sentences, embeddings, [KINDS.index(kind) for kind in kinds])


def contributions(subject: Subject, method: Callable) -> list[np.ndarray]:
    """Of each phantom, those of the words of its own sentence."""
    values = [None] * len(subject.own)
    for index, sentence in enumerate(subject.sentences):
        places = [i for i, own in enumerate(subject.own) if own == index]
        if places:
            for i, of_image in zip(places, method(sentence, subject.images[places]).numpy()):
                values[i] = of_image
    return values


def spearman(a: np.ndarray, b: np.ndarray) -> float:
    """Correlation of ranks; 0 where one is flat."""
    return correlation(*(np.argsort(np.argsort(values)).astype(float) for values in (a, b))) or 0.0


def shown_words(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """bool [11, N] each: what is shown while words go from the strongest on, and while they come in that order."""
    ranks = np.argsort(np.argsort(-values, kind="stable"))
    gone = np.round(SHARES * len(values))[:, None]
    return ranks[None] >= gone, ranks[None] < gone


def areas(subject: Subject, by_method: dict[str, list[np.ndarray]], embed: Callable) -> dict[str, list[tuple]]:
    """Of each method and phantom, the areas under the similarity while words are deleted and inserted."""
    shown = {
        name: [np.concatenate(shown_words(values)) for values in of_images] for name, of_images in by_method.items()
    }
    measured = {name: [None] * len(subject.own) for name in by_method}
    for index, sentence in enumerate(subject.sentences):
        places = [(name, i) for name in shown for i, own in enumerate(subject.own) if own == index]
        rows, inverse = np.unique(np.concatenate([shown[name][i] for name, i in places]), axis=0, return_inverse=True)
        features = embed(sentence, rows)[inverse.ravel()]
        for (name, i), part in zip(places, features.split(2 * len(SHARES))):
            curves = (part @ subject.images[i]).numpy().reshape(2, -1)
            measured[name][i] = tuple(np.trapezoid(curves, SHARES, axis=1))
    return measured


def measure(subject: Subject) -> dict:
    """{method: {measure: [mean, low, high]}} but for the cost."""
    rng = np.random.default_rng(0)
    by_method = {name: contributions(subject, method) for name, (_, method) in METHODS.items()}
    results = {
        name: {"agreement": interval([spearman(a, b) for a, b in zip(values, by_method[TRUTH])], rng)}
        for name, values in by_method.items()
    }
    by_method["random"] = [rng.random(len(values)) for values in by_method[TRUTH]]
    for suffix, embed in JUDGES.items():
        by_area = areas(subject, by_method, embed)
        chance = np.array(by_area.pop("random"))
        for name, of_images in by_area.items():
            better = (np.array(of_images) - chance) * (-1, 1)
            for curve, values in zip(("deletion", "insertion"), better.T):
                results[name][curve + suffix] = interval(values, rng)
    for name, steps in sanity(subject).items():
        results[name]["sanity"] = {step: interval(values, rng) for step, values in steps.items()}
    return results


def randomised(tower) -> dict[str, torch.nn.Module]:
    """{step: the tower with fresh weights from the top down to there}."""
    steps, fresh = {}, copy.deepcopy(tower)
    torch.manual_seed(1)
    parts = [("projection", fresh.projection), *_blocks(fresh.backbone), ("all", fresh.backbone.embeddings)]
    for name, part in parts:
        for module in part.modules():
            if isinstance(module, (torch.nn.Linear, torch.nn.Embedding)):
                module.weight.data.normal_(0, 0.02)
        steps[name] = copy.deepcopy(fresh)
    return steps


def _blocks(backbone) -> list[tuple[str, torch.nn.Module]]:
    layers = list(backbone.encoder.layer)
    return [(f"layer.{number}", layers[number]) for number in reversed(range(len(layers)))]


def sanity(subject: Subject) -> dict[str, dict[str, list[float]]]:
    """{method: {step: correlations with what the method says of the trained tower}}."""
    few = subject._replace(images=subject.images[:SANITY_IMAGES], own=subject.own[:SANITY_IMAGES])
    likeness = {name: {} for name in METHODS}
    before = {name: contributions(few, method) for name, (_, method) in METHODS.items()}
    for step, tower in randomised(few.sentences[0].tower).items():
        fresh = few._replace(sentences=[Sentence(tower, sentence.text) for sentence in few.sentences])
        for name, (_, method) in METHODS.items():
            after = contributions(fresh, method)
            likeness[name][step] = [correlation(a, b) or 0.0 for a, b in zip(before[name], after)]
    return likeness


def measure_cost() -> dict[str, float]:
    """{method: for one text of nine, in forwards of the nine texts} of a BERT of full size; one core."""
    torch.manual_seed(0)
    tower, texts = TextEncoder("bert-base-chinese").eval(), list(class_texts().values())
    sentence, image = Sentence(tower, texts[6]), torch.eye(1, tower.projection.out_features)
    with torch.no_grad():
        forward = seconds(lambda: tower(texts))
    names = ("default", "hidden", "shapley", "gradient", "attention", "integrated_pad")
    return {name: round(seconds(partial(METHODS[name][1], sentence, image)) / forward, 2) for name in names}


def seconds(call: Callable) -> float:
    """Process time of a second call on one core."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    for _ in range(2):
        start = time.process_time()
        call()
    torch.set_num_threads(threads)
    return time.process_time() - start


# ---------------------------------------------------------------------------------------------
# 4. The table


COLUMNS = (
    "模型", "方法", "与逐词遮住的秩相关", "删除 / 插入（遮住）¹", "删除 / 插入（删去）¹", "随机化：投影 / 全部²",
    "代价³",
)  # fmt: skip
NOTES = (
    "{images} 张合成图像，各用自己类别的描述；九个文本，两个演示模型的文本编码器都是很小的 BERT（两层，128 维）。"
    "括号中是对图像做自助法的 95 % 区间。",
    "¹ 从贡献最大的词起每次去掉（或从一个词也没有起放回）十分之一，余弦曲线下的面积比随机次序好多少，×1000；"
    "去掉是让其他词元看不到它（遮住），或从文本中删去。"
    "² 与训练后的文本编码器的贡献的 Pearson 相关：只把投影、把全部权重换成随机的。"
    "³ 一个文本，以“九个文本前向一次”为单位，BERT-base 大小、随机权重、单核；"
    "各种梯度每张图像算一次，其余方法对全部图像只算一次。",
)


def markdown(results: dict) -> str:
    """The table of all that was measured on the test seeds, Chinese, and its notes."""
    lines = ["| " + " | ".join(COLUMNS) + " |", "| --- " * len(COLUMNS) + "|"]
    for model in MODELS:
        for name, row in results.get("test", {}).get(model, {}).items():
            cost = results.get("cost", {}).get(name)
            cells = [
                model,
                METHODS[name][0],
                "1" if name == TRUTH else _decimal(row["agreement"]),
                *(
                    " / ".join(_thousandths(row[curve + suffix]) for curve in ("deletion", "insertion"))
                    for suffix in JUDGES
                ),
                " / ".join(f"{row['sanity'][step][0]:.2f}" for step in ("projection", "all")),
                "—" if cost is None else f"{cost:.1f}",
            ]
            lines.append("| " + " | ".join(cells) + " |")
    return "\n\n".join(["\n".join(lines), *NOTES]).format(images=results["images"])


def _decimal(value) -> str:
    return "{:.2f}（{:.2f}–{:.2f}）".format(*value)


def _thousandths(value) -> str:
    mean, low, high = (1000 * v for v in value)
    return f"{mean:+.0f}（{low:.0f}–{high:.0f}）"


def main(split: str, folder: Path) -> None:
    """Measure both models on a split, saving as it goes; the cost with the test."""
    file = folder / WORDS_FILE
    save_results(file, {"images": IMAGES})
    for name, path in MODELS.items():
        start = time.time()
        save_results(file, {split: {name: measure(read_subject(path, SPLITS[split]))}})
        print(f"{name}: {time.time() - start:.0f} s", flush=True)
    if split == "test":
        save_results(file, {"cost": measure_cost()})
