"""models/explain/attention.py: LeGrad, Grad-ECLIP and rollout against attention written out by hand, in float64."""

import copy
import functools
import gc
import math

import numpy as np
import pytest
import torch
from test_gradcam import assert_same_state, hook_count, pictures, state_of, texts
from test_methods import assert_close, built, small_vit
from tiny import Clip, vit_blocks
from tiny_pretrained import save_pretrained
from torch import nn
from torch.nn import functional as F

from clip_gradcam_visualization import CLIPGradCAM, get_target_layer_for_clip
from models.errors import InputError
from models.explain.attention import captured_attention
from models.explain.methods import SIMILARITIES
from models.explain.question import OFF_THE_MAP, Others

METHODS = ["legrad", "attention-gradient", "legrad-attention", "grad-eclip", "rollout"]
ASKED = [("cosine", 0.0), ("dot", 0.0), ("cosine", 0.6)]
TARGETS = torch.tensor([[0, 2], [1, 0]])
FAMILIES = ["vit", "clip", "chinese_clip", "siglip", "siglip2"]
PATCH = {"vit": 16}  # 8 in the others


@pytest.fixture(scope="module")
def tower(tmp_path_factory):
    """A function: family -> model, made once."""

    @functools.cache
    def make(family):
        if family == "vit":
            return small_vit(3)
        from models.loading.load import load_clip_checkpoint

        folder, _ = save_pretrained(tmp_path_factory.mktemp(family), family)
        return load_clip_checkpoint(folder, text_tower=False)

    return make


def asked_of(family):
    """Two images, as high as two patches and as wide as three for our ViT; and three texts."""
    size = (48, 64) if family == "vit" else (32, 32)
    width = {"vit": 32, "siglip": 32, "siglip2": 32}.get(family, 28)
    return pictures(2, *size), texts(3, width)


# -- the oracle: a vision transformer written out ---------------------------------------------


def parts_of(block):
    """(first norm, query, key, value, output projection, second norm, function of the MLP) of a block."""
    if hasattr(block, "self_attn"):
        a = block.self_attn
        return block.layer_norm1, a.q_proj, a.k_proj, a.v_proj, a.out_proj, block.layer_norm2, block.mlp
    norms = block.layernorm_before, block.layernorm_after
    if hasattr(block.attention, "q_proj"):
        a = block.attention
        return norms[0], a.q_proj, a.k_proj, a.v_proj, a.o_proj, norms[1], block.mlp
    a = block.attention.attention  # transformers 4
    output = block.attention.output.dense
    return norms[0], a.query, a.key, a.value, output, norms[1], lambda x: block.output.dense(block.intermediate(x))


def attend(q, k, v, heads):
    """Queries [Q, D], keys and values [N, D] -> (attention [heads, Q, N], what it mixes [Q, D])."""
    width = q.shape[1] // heads
    parts = [slice(head * width, (head + 1) * width) for head in range(heads)]
    attention = torch.stack([torch.softmax(q[:, p] @ k[:, p].T / math.sqrt(width), dim=-1) for p in parts])
    return attention, torch.cat([attention[head] @ v[:, p] for head, p in enumerate(parts)], dim=1)


class WrittenOut:
    """One image through a double-precision copy of a tower, everything kept: q, k, v, attention and o of each block."""

    def __init__(self, model, image):
        self.tower = copy.deepcopy(model.image_encoder).double().requires_grad_(False)
        self.vision = self.tower.backbone
        blocks = vit_blocks(Clip(self.tower)) if hasattr(self.vision, "layernorm") else self.vision.encoder.layers
        self.heads = self.vision.config.num_attention_heads
        self.prefix = 0 if hasattr(self.vision, "head") else 1
        entering = []
        handle = blocks[0].register_forward_pre_hook(lambda module, args: entering.append(args[0]))
        with torch.no_grad():
            self.expected = self.tower.embed(image[None].double())[0]
        handle.remove()
        x = entering[0][0].clone().requires_grad_()
        self.kept, self.outputs = [], []
        for block in blocks:
            norm1, query, key, value, output, norm2, mlp = parts_of(block)
            q, k, v = (linear(norm1(x)) for linear in (query, key, value))
            attention, o = attend(q, k, v, self.heads)
            x = x + output(o)
            x = x + mlp(norm2(x))
            self.kept.append((q, k, v, attention, o, output))
            self.outputs.append(x)

    def embed(self, tokens):
        """Output of a block [N, D] -> (embedding, what the pool kept: None for a class token)."""
        if self.prefix:
            return self.project(tokens[0]), None
        normed, head = self.vision.post_layernorm(tokens), self.vision.head
        weights, biases = head.attention.in_proj_weight.chunk(3), head.attention.in_proj_bias.chunk(3)
        q = head.probe[0] @ weights[0].T + biases[0]
        k, v = normed @ weights[1].T + biases[1], normed @ weights[2].T + biases[2]
        attention, o = attend(q, k, v, self.heads)
        pooled = head.attention.out_proj(o)
        pooled = pooled + head.mlp(head.layernorm(pooled))
        return pooled[0], (q, k, v, attention, o, head.attention.out_proj)

    def project(self, token):
        """A class token [D], or what takes its place -> embedding."""
        norm = self.vision.layernorm if hasattr(self.vision, "layernorm") else self.vision.post_layernorm
        return self.tower.projection(norm(token))


def score(z, features, target, similarity, gamma):
    """y of an embedding [D]."""
    unit = features.double() / features.double().norm(dim=1, keepdim=True)
    z = z / z.norm() if similarity == "cosine" else z
    others = [index for index in range(len(unit)) if index != target]
    return z @ unit[target] - (gamma * sum(z @ unit[index] for index in others) / len(others) if gamma else 0)


def legrad_parts(image, features, target, similarity, gamma, blocks):
    """Means over blocks, heads and queries of ([ds/dA]+ less its smallest value, [A * ds/dA]+)."""
    maps, weighted = [], []
    for number in blocks:
        tokens = image.outputs[number]
        if image.prefix:
            z, attention = image.project(tokens.mean(0)), image.kept[number][3]
        else:
            z, pool = image.embed(tokens)
            attention = pool[3]
        (G,) = torch.autograd.grad(score(z, features, target, similarity, gamma), attention, retain_graph=True)
        maps.append(G.clamp_min(0).mean((0, 1))[image.prefix :])
        weighted.append((attention.detach() * G).clamp_min(0).mean((0, 1))[image.prefix :])
    relevance = sum(maps) / len(maps)
    return relevance - relevance.min(), sum(weighted) / len(weighted)


def legrad(*asked):
    return legrad_parts(*asked)[0]


def legrad_attention(*asked):
    """Each part over its maximum, and the mean of both times the mean of the maxima."""
    a, b = legrad_parts(*asked)
    return (a / a.max() + b / b.max()) / 2 * (a.max() + b.max()) / 2


def attention_gradient(image, features, target, similarity, gamma):
    """sum over heads of a_hi (d_h . v_hi), of the one query that the embedding is made of."""
    z, pool = image.embed(image.outputs[-1])
    q, k, v, attention, o, _ = pool or image.kept[-1]
    (d,) = torch.autograd.grad(score(z, features, target, similarity, gamma), o, retain_graph=True)
    width = d.shape[1] // image.heads
    parts = [slice(head * width, (head + 1) * width) for head in range(image.heads)]
    shares = sum(attention[head, 0].detach() * (v[:, p].detach() @ d[0, p]) for head, p in enumerate(parts))
    return shares[image.prefix :]


def grad_eclip(image, features, target, similarity, gamma):
    """[ sum_c d_c v_ic lambda_i ]+ position by position, channel by channel."""
    z, pool = image.embed(image.outputs[-1])
    q, k, v, _, o, output = pool or image.kept[-1]
    (d,) = torch.autograd.grad(score(z, features, target, similarity, gamma), o, retain_graph=True)
    query = output(q[0])
    likeness = []
    for key in k[image.prefix :]:
        key = output(key)
        likeness.append((query @ key / query.norm() / key.norm()).item())
    weights = (np.array(likeness) - min(likeness)) / (max(likeness) - min(likeness))
    values = v[image.prefix :].detach()
    products = [sum(d[0, c].item() * values[i, c].item() for c in range(d.shape[1])) for i in range(len(values))]
    return torch.from_numpy(np.maximum(np.array(products) * weights, 0))


def rollout(image):
    """The class row, or the pool's row times A^L ... A^1; each A the mean over heads and I, its rows summing to 1."""
    joint = None
    for *_, attention, _, _ in image.kept:
        A = attention.detach().mean(0) + torch.eye(attention.shape[-1], dtype=torch.float64)
        A = A / A.sum(1, keepdim=True)
        joint = A if joint is None else A @ joint
    _, pool = image.embed(image.outputs[-1])
    row = (pool[3].detach().mean(0) @ joint if pool else joint)[0, image.prefix :]
    return row - row.min()


@functools.cache
def written_out(model, number, family):
    return WrittenOut(model, asked_of(family)[0][number])


def expected_map(method, model, family, number, target, similarity, gamma=0.0, blocks=None):
    image, features = written_out(model, number, family), asked_of(family)[1]
    if method == "rollout":
        return rollout(image)
    if method == "grad-eclip":
        return grad_eclip(image, features, target, similarity, gamma)
    if method == "attention-gradient":
        return attention_gradient(image, features, target, similarity, gamma)
    return (legrad_attention if method == "legrad-attention" else legrad)(
        image,
        features,
        target,
        similarity,
        gamma,
        blocks or range(len(image.kept))[-2:],
    )


def our_blocks(model):
    return list(model.image_encoder.transformer().blocks)


# -- the oracle is the model ------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_the_oracle_has_the_embedding_of_the_model(family, tower):
    model = tower(family)
    images, _ = asked_of(family)
    for number in range(2):
        image = written_out(model, number, family)
        z, _ = image.embed(image.outputs[-1])
        torch.testing.assert_close(z.detach(), image.expected, rtol=1e-9, atol=1e-9)
        with torch.no_grad():
            ours = model.image_encoder.embed(images)[number].double()
        torch.testing.assert_close(ours, z.detach(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", ["vit", "clip", "siglip"])
def test_the_oracle_has_the_attention_of_the_library(family, tower):
    """`output_attentions` of the library's eager attention."""
    model = copy.deepcopy(tower(family))
    backbone = model.image_encoder.backbone
    if not hasattr(backbone, "set_attn_implementation"):
        pytest.skip("this transformers chooses its attention when a model is built")
    backbone.set_attn_implementation("eager")
    images, _ = asked_of(family)
    options = {"interpolate_pos_encoding": True, "output_attentions": True}
    with torch.no_grad():
        attentions = backbone(images, **options).attentions
    for number in range(2):
        for theirs, kept in zip(attentions, written_out(tower(family), number, family).kept, strict=True):
            torch.testing.assert_close(theirs[number].double(), kept[3].detach(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_attention_is_far_from_uniform(family, tower):
    """Else a mistake in it would not be seen."""
    for *_, attention, _, _ in written_out(tower(family), 0, family).kept:
        assert attention.max() > 2 / attention.shape[-1]


# -- each method against its oracle -----------------------------------------------------------


@pytest.mark.parametrize("similarity, gamma", ASKED)
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("method", METHODS)
def test_equals_the_formula(method, family, similarity, gamma, tower):
    model = tower(family)
    images, features = asked_of(family)
    cam = CLIPGradCAM(model, None, method=method, similarity=similarity)
    explanation = cam.text_maps(images, features, TARGETS, contrast=gamma)
    patch = PATCH.get(family, 8)
    assert explanation.maps.shape == (2, 2, images.shape[2] // patch, images.shape[3] // patch)
    assert explanation.maps.dtype == torch.float32 and (explanation.gradient_peaks > 0).all()
    for number, row in enumerate(TARGETS.tolist()):
        for place, target in enumerate(row):
            expected = expected_map(method, model, family, number, target, similarity, gamma)
            assert expected.max() > 0
            assert_close(explanation.maps[number, place].flatten(), expected)
    cosines = F.normalize(model.image_encoder(images), dim=-1) @ F.normalize(features, dim=-1).T
    torch.testing.assert_close(explanation.similarities, cosines.detach(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("similarity", SIMILARITIES)
@pytest.mark.parametrize("method", ["legrad", "grad-eclip"])
@pytest.mark.parametrize("family", ["vit", "clip", "siglip"])
def test_a_share_of_the_other_texts_map_is_taken_off(family, method, similarity, tower):
    """[F(t_k)]+ - 0.3 [F(o)]+ with o = sum_j q_j t_j; F(o) is |o| times F of the unit vector along o."""
    model = tower(family)
    images, features = asked_of(family)[0], texts(4, asked_of(family)[1].shape[1])
    unit = F.normalize(features.double(), dim=1)
    maps = CLIPGradCAM(model, None, method=method, similarity=similarity, others=Others(0.3, of_maps=True))
    maps = maps.text_maps(images, features, TARGETS).maps
    if family == "siglip":
        scale, bias = model.logit_scale.exp().item(), model.logit_bias.item()
    else:
        scale = 1 / model.temperature.item() if family == "vit" else model.logit_scale.exp().item()
        bias = 0.0
    assert scale != 1 and (bias != 0) == (family == "siglip")
    strongest = []
    for number, row in enumerate(TARGETS.tolist()):
        image = written_out(model, number, family)
        logits = scale * (image.expected / image.expected.norm()) @ unit.T + bias
        for place, target in enumerate(row):
            weights = [0.0 if j == target else math.exp(logit / 2) for j, logit in enumerate(logits.tolist())]
            others = sum(w / sum(weights) * t for w, t in zip(weights, unit))
            own, taken = (map_of_direction(method, image, d, similarity) for d in (unit[target], others))
            assert_close(maps[number, place].flatten(), own - 0.3 * taken)
            strongest.append(taken.max().item())
    assert max(strongest) > 0


def map_of_direction(method, image, direction, similarity):
    """What a method makes of z . d: its formula is linear in the length of d."""
    if method == "grad-eclip":
        return direction.norm() * grad_eclip(image, direction[None], 0, similarity, 0.0)
    return direction.norm() * legrad(image, direction[None], 0, similarity, 0.0, range(len(image.kept))[-2:])


@pytest.mark.parametrize("similarity", SIMILARITIES)
@pytest.mark.parametrize("numbers", [(0,), (2,), (0, 2), (0, 1, 2)])
@pytest.mark.parametrize("family", ["vit", "clip", "siglip"])
def test_legrad_of_chosen_blocks(family, numbers, similarity, tower):
    """`--layers`: in any order, they count alike."""
    model = tower(family)
    images, features = asked_of(family)
    blocks = our_blocks(model)
    for chosen in (numbers, numbers[::-1]):
        cam = CLIPGradCAM(model, [blocks[number] for number in chosen], method="legrad", similarity=similarity)
        maps = cam.text_maps(images, features, TARGETS).maps
        for number, row in enumerate(TARGETS.tolist()):
            for place, target in enumerate(row):
                expected = expected_map("legrad", model, family, number, target, similarity, blocks=numbers)
                assert_close(maps[number, place].flatten(), expected)


def test_legrad_takes_the_last_blocks_by_default(tower):
    model = tower("vit")
    images, features = asked_of("vit")
    last = CLIPGradCAM(model, our_blocks(model)[-2:], method="legrad").text_maps(images, features, TARGETS)
    assert_close(CLIPGradCAM(model, None, method="legrad").text_maps(images, features, TARGETS).maps, last.maps, 1e-6)


@pytest.mark.parametrize("method", ["legrad", "legrad-attention", "attention-gradient", "grad-eclip", "rollout"])
@pytest.mark.parametrize("family", ["vit", "siglip"])
def test_many_texts_are_the_same_a_few_at_a_time(family, method, tower, monkeypatch):
    """How many gradients are held at once is bounded, for a list of a thousand texts too."""
    images, features = asked_of(family)[0], texts(5, asked_of(family)[1].shape[1])
    cam, all_texts = CLIPGradCAM(tower(family), None, method=method, others=OFF_THE_MAP), torch.arange(5).expand(2, 5)
    together = cam.text_maps(images, features, all_texts)
    monkeypatch.setattr("models.explain.needs.TEXTS_AT_ONCE", 2)
    apart = cam.text_maps(images, features, all_texts)
    assert_close(apart.maps, together.maps, 1e-5)
    torch.testing.assert_close(apart.gradient_peaks, together.gradient_peaks)


@pytest.mark.parametrize("family", ["vit", "siglip"])
def test_the_methods_and_texts_are_told_apart(family, tower):
    """What the oracles agree on is not one and the same map."""
    model = tower(family)
    images, features = asked_of(family)
    all_texts = torch.arange(3).expand(2, 3)
    cams = [CLIPGradCAM(model, None, method=method) for method in METHODS]
    *knowing, rollouts = (cam.text_maps(images, features, all_texts).maps[0].flatten(1) for cam in cams)
    assert np.corrcoef(torch.cat([*knowing, rollouts[:1]]))[~np.eye(13, dtype=bool)].max() < 0.99
    assert torch.equal(rollouts[0], rollouts[1]) and torch.equal(rollouts[0], rollouts[2])


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("family", FAMILIES)
def test_the_lowest_values_of_maps(method, family, tower):
    images, features = asked_of(family)
    maps = CLIPGradCAM(tower(family), None, method=method).text_maps(images, features, TARGETS).maps
    assert (maps.amax((2, 3)) > 0).all()
    if method == "attention-gradient":  # is read after the ReLU, as the maps of layers are
        assert (maps.amin((2, 3)) < 0).any()
    else:
        lowest = maps.amin((2, 3))
        assert (lowest >= 0).all() and (method == "legrad-attention" or (lowest == 0).all())


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("height, width", [(64, 96), (16, 48), (64, 64)])
def test_the_grid_is_the_models(method, height, width, tower):
    model = tower("vit")
    maps = CLIPGradCAM(model, None, method=method).text_maps(pictures(1, height, width), texts(2, 32), 0).maps
    assert maps.shape == (1, 1, height // 16, width // 16)


@pytest.mark.parametrize("method", METHODS)
def test_rows_and_columns_are_not_exchanged(method, tower):
    """Without position codes, patches that change places take their relevance along."""
    model = copy.deepcopy(tower("vit"))
    with torch.no_grad():
        model.image_encoder.backbone.embeddings.position_embeddings.zero_()
    images, features = pictures(1, 48, 64), texts(2, 32)
    cells = images.unfold(2, 16, 16).unfold(3, 16, 16).clone()  # [1, 3, 3, 4, 16, 16]
    cells[:, :, 0, 1], cells[:, :, 2, 3] = cells[:, :, 2, 3].clone(), cells[:, :, 0, 1].clone()
    exchanged = cells.permute(0, 1, 2, 4, 3, 5).reshape(1, 3, 48, 64)
    cam = CLIPGradCAM(model, None, method=method)
    one, other = (cam.text_maps(each, features, 0).maps[0, 0] for each in (images, exchanged))
    one[0, 1], one[2, 3] = one[2, 3].clone(), one[0, 1].clone()
    assert_close(other, one, 1e-4)
    assert one.unique().numel() > 3


# -- how the attention is computed, and in what surroundings -----------------------------------


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("method", METHODS)
def test_the_kernel_of_the_attention_makes_no_difference(method, family, tower):
    model = copy.deepcopy(tower(family))
    backbone = model.image_encoder.backbone
    if not hasattr(backbone, "set_attn_implementation"):
        pytest.skip("this transformers chooses its attention when a model is built")
    images, features = asked_of(family)
    maps = []
    for kernel in ("sdpa", "eager"):
        backbone.set_attn_implementation(kernel)
        assert backbone.config._attn_implementation == kernel
        maps.append(CLIPGradCAM(model, None, method=method).text_maps(images, features, TARGETS).maps)
    assert_close(maps[0], maps[1], 1e-5)


@pytest.mark.parametrize("family", ["vit", "clip", "siglip"])
@pytest.mark.parametrize("method", METHODS)
def test_a_batch_equals_its_images_and_many_texts_equal_one(method, family, tower):
    images, features = asked_of(family)
    cam = CLIPGradCAM(tower(family), None, method=method)
    together = cam.text_maps(images, features, TARGETS)
    for number in range(2):
        for place, target in enumerate(TARGETS[number].tolist()):
            alone = cam.text_maps(images[number : number + 1], features, target)
            assert_close(together.maps[number, place], alone.maps[0, 0], 1e-5)
            assert together.gradient_peaks[number, place].item() == pytest.approx(alone.gradient_peaks.item(), rel=1e-4)


@pytest.mark.parametrize("surrounding", [torch.no_grad, torch.inference_mode, torch.enable_grad])
@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("family", ["vit", "siglip"])
def test_frozen_weights_and_grad_modes_make_no_difference(family, method, frozen, surrounding, tower):
    model = copy.deepcopy(tower(family)).requires_grad_(not frozen)
    images, features = asked_of(family)
    cam = CLIPGradCAM(model, None, method=method)
    expected = CLIPGradCAM(tower(family), None, method=method).text_maps(images, features, TARGETS).maps
    before = state_of(model)
    with surrounding():
        inside = surrounding is torch.inference_mode
        explanation = cam.text_maps(images.clone(), features.clone(), TARGETS)
        assert torch.is_inference_mode_enabled() == inside
    assert_same_state(before, state_of(model))
    assert explanation.maps.grad_fn is None and not explanation.maps.requires_grad
    assert_close(explanation.maps.clone(), expected, 1e-6)
    assert hook_count(model) == 0


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("family", ["vit", "siglip"])
def test_gradients_flags_and_modes_of_the_caller_stay(family, method, tower):
    """A model that trains, with gradients of its own, some weights frozen."""
    model = copy.deepcopy(tower(family)).train()
    images, features = asked_of(family)
    next(model.image_encoder.parameters()).requires_grad_(False)
    (model.image_encoder(images) @ features.T).sum().backward()
    images, features = images.requires_grad_(), features.requires_grad_()
    before = state_of(model)
    CLIPGradCAM(model, None, method=method).text_maps(images, features, TARGETS)
    assert_same_state(before, state_of(model))
    assert images.grad is None and features.grad is None


class Fails(nn.Module):
    def forward(self, *args, **kwargs):
        raise ZeroDivisionError("inside")


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("family", ["vit", "siglip"])
@pytest.mark.parametrize("where", ["block", "end"])
def test_an_exception_inside_leaves_no_hook(family, method, where, tower):
    model = copy.deepcopy(tower(family))
    images, features = asked_of(family)
    encoder = model.image_encoder
    if where == "block":
        last = our_blocks(model)[-1]
        setattr(last, "layernorm_after" if hasattr(last, "layernorm_after") else "layer_norm2", Fails())
    elif family == "vit":
        encoder.projection = Fails()
    else:
        encoder.backbone.head.mlp = Fails()
    before = state_of(model)
    with pytest.raises(ZeroDivisionError), torch.no_grad():
        CLIPGradCAM(model, None, method=method).text_maps(images, features)
    assert_same_state(before, state_of(model))
    assert hook_count(model) == 0


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("family", ["vit", "siglip"])
def test_other_peoples_hooks_stay_and_run(family, method, tower):
    model, seen = copy.deepcopy(tower(family)), []
    images, features = asked_of(family)
    plain = CLIPGradCAM(model, None, method=method).text_maps(images, features, TARGETS).maps
    handle = our_blocks(model)[-1].register_forward_hook(lambda module, inputs, output: seen.append(1) and None)
    maps = CLIPGradCAM(model, None, method=method).text_maps(images, features, TARGETS).maps
    assert seen == [1] and hook_count(model) == 1
    handle.remove()
    assert_close(maps, plain, 1e-6)  # a block that somebody watches is taken step by step


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("family", ["vit", "siglip"])
def test_the_image_runs_once_whatever_the_number_of_texts(family, method, tower):
    model, runs = copy.deepcopy(tower(family)), []
    images, _ = asked_of(family)
    our_blocks(model)[0].register_forward_hook(lambda module, inputs, output: runs.append(1) and None)
    CLIPGradCAM(model, None, method=method).text_maps(images, texts(9, 32), torch.arange(9).expand(2, 9))
    assert runs == [1]


def live_tensors():
    gc.collect()
    return sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects())


def test_calls_leave_no_tensor(tower):
    model = tower("siglip")
    images, features = asked_of("siglip")
    cams = [CLIPGradCAM(model, None, method=method) for method in METHODS]
    kept = [cam.text_maps(images, features) for cam in cams]
    before = live_tensors()
    for _ in range(10):
        for cam in cams:
            cam.text_maps(images, features)
    assert live_tensors() == before
    assert all(explanation.maps.grad_fn is None for explanation in kept)


@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-5), (torch.bfloat16, 0.2), (torch.float16, 0.05)])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("family", ["vit", "siglip"])
def test_other_precisions(family, method, dtype, tolerance, tower):
    images, features = asked_of(family)
    expected = CLIPGradCAM(tower(family), None, method=method).text_maps(images, features, TARGETS).maps
    model = copy.deepcopy(tower(family)).to(dtype)
    maps = CLIPGradCAM(model, None, method=method).text_maps(images, features, TARGETS).maps
    assert maps.dtype == torch.float32
    assert_close(maps, expected, tolerance)


def test_capture_of_a_foreign_block_says_what_is_missing(tower):
    transformer = tower("vit").image_encoder.transformer()
    with (
        pytest.raises(InputError, match="query.*--method"),
        captured_attention(transformer, [nn.Sequential(nn.Linear(3, 3))]),
    ):
        pass


# -- what is refused --------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_a_cnn_has_no_attention(method):
    model = built("resnet18")
    with pytest.raises(InputError, match=f"{method}.*ViT.*--method"):
        CLIPGradCAM(model, None, method=method).text_maps(pictures(1, 64, 64), texts(2, 32))
    assert hook_count(model) == 0


@pytest.mark.parametrize("family", ["vit", "siglip"])
def test_legrad_takes_whole_blocks_only(family, tower):
    model = tower(family)
    images, features = asked_of(family)
    for layers in (get_target_layer_for_clip(model), [our_blocks(model)[0], get_target_layer_for_clip(model)]):
        with pytest.raises(InputError, match="块"):
            CLIPGradCAM(model, layers, method="legrad").text_maps(images, features)
    assert hook_count(model) == 0


@pytest.mark.parametrize("method", ["grad-eclip", "rollout"])
def test_the_others_take_no_layer(method, tower):
    model = tower("vit")
    images, features = asked_of("vit")
    with pytest.raises(InputError, match="--target-layer|--layers"):
        CLIPGradCAM(model, our_blocks(model)[-1], method=method).text_maps(images, features)
