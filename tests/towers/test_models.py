"""The models: two towers, 23 image encoders, and every library's names for their weights."""

import contextlib
import json
import re
import warnings

import numpy as np
import pytest
import torch
from tiny import EMBED_DIM, TINY_BERT, text_tower_state, tiny_clip, vit_blocks
from torch import nn
from torch.nn import functional as F

import models
from models.clip import CLIPModel, create_model
from models.errors import CheckpointError, InputError
from models.towers.image import IMAGE_ENCODERS, ImageEncoder
from models.towers.text import TextEncoder
from models.weights.hub import ASSETS
from models.weights.layouts import ENCODER_SIGNATURES, read_text_config, translate_checkpoint
from models.weights.modules import give_buffers_values

ALL_ENCODERS = (
    *("resnet18", "resnet34", "resnet50", "resnet101", "resnet152"),
    *("starnet_s1", "starnet_s2", "starnet_s3", "starnet_s4", "starnet_dual_pyramid_rcf"),
    *("convnext-tiny", "convnext-small", "convnext-base", "convnext-large"),
    *(f"efficientnet-b{i}" for i in range(8)),
    "vit",
)
BACKBONE = "image_encoder.backbone."


def test_exactly_these_encoders():
    assert len(ALL_ENCODERS) == 23
    assert set(IMAGE_ENCODERS) == set(ALL_ENCODERS)
    assert sorted(ENCODER_SIGNATURES.values()) == sorted(ALL_ENCODERS)


# -- other libraries' names, written from ours -------------------------------------------------
# Each function takes our key (below the backbone) and gives that library's.


def resnet_in_a_sequential(key):
    children = ("conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3", "layer4")
    first, rest = key.split(".", 1)
    return f"{children.index(first)}.{rest}"


CONVNEXT_BLOCK = {"0": "conv_dw", "2": "norm", "3": "mlp.fc1", "5": "mlp.fc2"}


def timm_convnext(key):
    parts = key.split(".")
    if parts[0] == "classifier":
        return f"head.norm.{parts[2]}"
    index = int(parts[1])
    if index == 0:
        return ".".join(["stem", *parts[2:]])
    if index % 2 == 0:
        return ".".join(["stages", str(index // 2), "downsample", *parts[2:]])
    block = ["stages", str(index // 2), "blocks", parts[2]]
    if parts[3] == "layer_scale":
        return ".".join([*block, "gamma"])
    return ".".join([*block, CONVNEXT_BLOCK[parts[4]], parts[5]])


def timm_efficientnet(key):
    parts = key.split(".")
    index = int(parts[1])
    if index in (0, 8):
        names = ("conv_stem", "bn1") if index == 0 else ("conv_head", "bn2")
        return ".".join([names[int(parts[2])], *parts[3:]])
    layers = ("dw", "se", "pw") if index == 1 else ("pw", "dw", "se", "pwl")
    member = layers[int(parts[4])]
    block = ["blocks", str(index - 1), parts[2]]
    if member == "se":
        return ".".join([*block, "se", {"fc1": "conv_reduce", "fc2": "conv_expand"}[parts[5]], *parts[6:]])
    norm = [name for name in layers if name != "se"].index(member) + 1
    return ".".join([*block, f"conv_{member}" if parts[5] == "0" else f"bn{norm}", *parts[6:]])


VIT_NAMES = (  # of transformers 5, of transformers 4
    (".attention.q_proj.", ".attention.attention.query."),
    (".attention.k_proj.", ".attention.attention.key."),
    (".attention.v_proj.", ".attention.attention.value."),
    (".attention.o_proj.", ".attention.output.dense."),
    (".mlp.fc1.", ".intermediate.dense."),
    (".mlp.fc2.", ".output.dense."),
)


def transformers_4_vit(key):
    for new, old in VIT_NAMES:
        key = key.replace(new, old)
    return re.sub(r"^layers\.", "encoder.layer.", key)


def transformers_5_vit(key):
    """The names that the project uses, whichever transformers is installed."""
    for new, old in VIT_NAMES:
        key = key.replace(old, new)
    return re.sub(r"^encoder\.layer\.", "layers.", key)


def as_it_is(key):
    return key


def under_model(key):
    return f"model.{key}"


LIBRARIES = {
    "resnet": {"torchvision": as_it_is, "sequential": resnet_in_a_sequential},
    "starnet_s": {"published": as_it_is, "wrapped": under_model, "twice": None},
    "starnet_dual": {"bare": as_it_is, "wrapped": under_model},
    "convnext": {"torchvision": as_it_is, "timm": timm_convnext},
    "efficientnet": {"torchvision": as_it_is, "timm": timm_efficientnet},
    "vit": {"transformers-5": as_it_is, "transformers-4": transformers_4_vit},
}
HEADS = {  # what stands beside the backbone's own weights in a checkpoint and is not needed
    "resnet": ("fc.weight", "fc.bias"),
    "starnet_s": ("head.weight", "head.bias"),
    "starnet_dual": ("fc.weight", "fc.bias", "model.fc.weight", "model.fc.bias"),
    "convnext/torchvision": ("classifier.2.weight", "classifier.2.bias"),
    "convnext/timm": ("head.fc.weight", "head.fc.bias"),
    "efficientnet": ("classifier.weight", "classifier.bias", "classifier.1.weight"),
    "vit": ("pooler.dense.weight", "pooler.dense.bias", "classifier.weight"),
}


def family_of(encoder):
    return next(family for family in LIBRARIES if encoder.startswith(family))


CASES = [(encoder, library) for encoder in ALL_ENCODERS for library in LIBRARIES[family_of(encoder)]]
_cache = {}


def on_meta(encoder):
    """CLIPModel without memory: keys and shapes only."""
    if encoder not in _cache:
        _cache.clear()
        with torch.device("meta"):
            _cache[encoder] = CLIPModel(encoder, embed_dim=EMBED_DIM, text_config=TINY_BERT)
    return _cache[encoder]


def in_the_names_of(state_dict, encoder, library):
    """A state dict in our names -> in a library's names, its heads included."""
    family = family_of(encoder)
    rename = LIBRARIES[family][library]
    renamed = {}
    for key, tensor in state_dict.items():
        if not key.startswith(BACKBONE):
            renamed[key] = tensor
            continue
        for name in [rename] if rename else [as_it_is, under_model]:
            theirs = name(transformers_5_vit(key.removeprefix(BACKBONE)))
            renamed[BACKBONE + theirs] = tensor.flatten() if theirs.endswith(".gamma") else tensor
    for head in HEADS.get(f"{family}/{library}", HEADS.get(family)):
        renamed[BACKBONE + head] = torch.zeros(1000)
    return renamed


def fresh(encoder):
    """Another model on meta: `on_meta` is shared."""
    with torch.device("meta"):
        return CLIPModel(encoder, embed_dim=EMBED_DIM, text_config=TINY_BERT)


@pytest.mark.parametrize("encoder, library", CASES)
def test_every_encoder_is_recognised_in_every_librarys_names(encoder, library):
    """Keys and shapes are checked; nothing is computed."""
    own = dict(nn.Module.state_dict(on_meta(encoder)))
    theirs = in_the_names_of(own, encoder, library)
    assert library in ("torchvision", "published", "bare", "transformers-5") or not set(own) >= set(theirs)
    translated = translate_checkpoint({"state_dict": theirs})
    assert translated.image_encoder_name == encoder
    assert translated.ignored == []
    parts = [re.match(rf"({re.escape(BACKBONE)}|)(.*)", key).groups() for key in own]
    assert set(translated.state_dict) == {part + (transformers_5_vit(key) if part else key) for part, key in parts}
    again = fresh(encoder)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again.load_state_dict(theirs, assign=True)
    if encoder.startswith("efficientnet"):  # no key shows it: timm has 1e-5 throughout, torchvision 1e-3 in b5 to b7
        expected = 1e-3 if library == "torchvision" and encoder[-1] in "567" else 1e-5
        norms = [module for module in again.image_encoder.modules() if isinstance(module, nn.BatchNorm2d)]
        assert {module.eps for module in norms} == {expected}


@pytest.mark.parametrize(
    "encoder, library",
    [case for case in CASES if case[0] in ("resnet18", "starnet_s2", "convnext-tiny", "efficientnet-b0")]
    + [("starnet_dual_pyramid_rcf", "wrapped"), ("vit", "transformers-4")],
)
def test_other_names_same_embedding(encoder, library):
    model = tiny_clip(encoder)
    other = tiny_clip(encoder, seed=1)
    images = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = model.image_encoder(images)
        assert not torch.allclose(other.image_encoder(images), expected, atol=1e-3)
        other.load_state_dict(in_the_names_of(model.state_dict(), encoder, library))
        torch.testing.assert_close(other.image_encoder(images), expected)
        assert other.temperature.item() == model.temperature.item()


@pytest.mark.parametrize("shape", [(-1,), (-1, 1, 1), (1, -1, 1, 1)], ids=len)
def test_layer_scale_in_every_shape(shape):
    own = dict(nn.Module.state_dict(on_meta("convnext-tiny")))
    key = BACKBONE + "features.1.0.layer_scale"
    own[key] = own[key].reshape(shape)
    with pytest.raises(CheckpointError, match="layer_scale") if len(shape) > 3 else contextlib.nullcontext():
        fresh("convnext-tiny").load_state_dict(own, assign=True)


# -- the image tower --------------------------------------------------------------------------


UNKNOWN = {"resnet51": "resnet5", "convnext_tiny": "convnext-tiny", "efficientnet_b3": "efficientnet-b3"}
UNKNOWN |= dict.fromkeys(("", "zzzzzz", None, 50))  # like none


@pytest.mark.parametrize("name", UNKNOWN)
def test_an_unknown_encoder_names_the_closest_and_all(name):
    with pytest.raises(InputError) as caught:
        ImageEncoder(name)
    message, close = str(caught.value), UNKNOWN[name]
    assert str(name) in message and all(known in message for known in ALL_ENCODERS)
    assert close in message.split("；")[1] if close else "最接近" not in message


@pytest.mark.parametrize("encoder", ["resnet18", "starnet_dual_pyramid_rcf"])
def test_image_embeddings_are_unit_vectors_of_the_projected_features(encoder):
    torch.manual_seed(0)
    tower = ImageEncoder(encoder, 24).eval()
    images = torch.randn(2, 3, 96, 64)
    with torch.no_grad():
        embeddings = tower(images)
        expected = tower.backbone(images) @ tower.projection.weight.T + tower.projection.bias
    assert embeddings.shape == (2, 24)
    torch.testing.assert_close(embeddings.norm(dim=1), torch.ones(2))
    torch.testing.assert_close(embeddings, expected / expected.norm(dim=1, keepdim=True))


def test_vit_reads_other_sizes_than_it_was_trained_on():
    model = tiny_clip("vit")
    del vit_blocks(model)[1:]
    for height, width in ((224, 224), (64, 96)):
        assert model.image_encoder(torch.zeros(1, 3, height, width)).shape == (1, EMBED_DIM)
        assert model.image_encoder.token_grid(height, width) == (1, height // 16, width // 16)


@pytest.mark.parametrize("side, assign", [(14, False), (7, False), (7, True)])
def test_vit_positions_of_another_training_size_in_the_models_precision(side, assign):
    model, key = tiny_clip("vit"), BACKBONE + "embeddings.position_embeddings"
    weights = {**model.state_dict(), key: torch.randn(1, 1 + side**2, 768).half()}
    model.load_state_dict(weights, assign=assign)
    loaded = model.state_dict()[key]
    assert loaded.dtype == torch.float32 and torch.equal(loaded, weights[key].float())
    del vit_blocks(model)[1:]
    assert model.image_encoder(torch.zeros(1, 3, 16 * side, 16 * side)).shape == (1, EMBED_DIM)


# -- the text tower ---------------------------------------------------------------------------


def test_the_shipped_vocabulary_is_bert_base_chineses():
    lines = (ASSETS / "bert-base-chinese" / "vocab.txt").read_text(encoding="utf-8").removesuffix("\n").split("\n")
    assert len(lines) == 21128
    tokenizer = TextEncoder(text_config=TINY_BERT).tokenizer
    ids = tokenizer("髋关节x光X。")["input_ids"]  # this BERT knows no capitals, and lowers none
    assert ids[0] == 101 and ids[-1] == 102  # [CLS], [SEP]
    assert tokenizer.convert_ids_to_tokens(ids) == ["[CLS]", "髋", "关", "节", "x", "光", "[UNK]", "。", "[SEP]"]
    assert lines[ids[1]] == "髋"


def test_a_text_is_its_class_token_projected(clip):
    """By its words or its token ids, alone or padded beside a longer one."""
    tower, texts = clip.text_encoder, ["正常", "假体周围可见边界不清的骨质破坏"]
    tokens = tower.tokenizer(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        hidden = tower.backbone(**tokens).last_hidden_state[:, 0]
        expected = F.normalize(tower.projection(hidden), dim=-1)
        torch.testing.assert_close(tower(texts=texts), expected)
        by_ids = tower(input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"])
        torch.testing.assert_close(by_ids, expected)
        for alone in (["正常"], "正常"):
            torch.testing.assert_close(tower(texts=alone), expected[:1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("length, is_cut", [(126, False), (127, True), (600, True)])
def test_a_text_beyond_128_tokens_is_cut_and_named(clip, length, is_cut):
    text = "股骨柄" * (length // 3) + "骨" * (length % 3)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        tokens = clip.text_encoder.tokenize([text, "短"])
    assert tokens["input_ids"].shape == (2, min(length + 2, 128))
    assert len(caught) == int(is_cut)
    if is_cut:
        assert text[:10] in str(caught[0].message) and str(length + 2) in str(caught[0].message)


@pytest.mark.parametrize("name", ["nobody/has-this-bert", "no_such_folder/bert", "bert-base-chinesse"])
def test_a_text_encoder_that_cannot_be_had(name):
    with pytest.raises(InputError, match=re.escape(repr(name)) + ".*bert-base-chinese"):
        TextEncoder(name)


def test_a_local_folder_is_a_text_encoder(tmp_path):
    folder = tmp_path / "我的 BERT"
    folder.mkdir()
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "骨", "柄"]
    (folder / "vocab.txt").write_text("\n".join(words) + "\n", encoding="utf-8")
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 40}
    (folder / "config.json").write_text(json.dumps({"model_type": "bert", "vocab_size": 7, **sizes}))
    tower = TextEncoder(str(folder), 8)
    assert tower.tokenize(["骨柄"])["input_ids"].tolist() == [[2, 5, 6, 3]]
    assert len(tower.backbone.encoder.layer) == 2
    assert tower(texts=["骨"]).shape == (1, 8)


def test_a_model_that_is_no_bert_is_refused(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "roberta"}')
    with pytest.raises(InputError, match="roberta.*BERT"):
        TextEncoder(str(tmp_path))


def test_a_vocabulary_larger_than_the_weights_is_refused():
    with pytest.raises(InputError, match="21128.*100.*--text-encoder"):
        TextEncoder(text_config={**TINY_BERT, "vocab_size": 100}).tokenize(["骨"])


SIZES = (
    TINY_BERT,
    {**TINY_BERT, "num_hidden_layers": 3, "hidden_size": 128, "num_attention_heads": 2},
    {**TINY_BERT, "vocab_size": 21200, "max_position_embeddings": 64, "type_vocab_size": 1},
)


@pytest.mark.parametrize("sizes", SIZES)
def test_sizes_are_read_off_the_weights(sizes):
    with torch.device("meta"):
        tower = TextEncoder(embed_dim=8, text_config=sizes)
    state = {f"text_encoder.{key}": tensor for key, tensor in tower.state_dict().items()}
    found = read_text_config(state)
    assert {**found, "num_attention_heads": sizes["num_attention_heads"]}.items() >= sizes.items()


@pytest.mark.parametrize("hidden_size, heads", [(64, 1), (128, 2), (768, 12), (1024, 16), (312, 12)])
def test_heads_are_64_wide_or_twelve(hidden_size, heads):
    with torch.device("meta"):
        tower = TextEncoder(text_config={"hidden_size": hidden_size, "num_hidden_layers": 1})
    assert tower.backbone.config.num_attention_heads == heads


def test_buffers_that_no_checkpoint_brings():
    with torch.device("meta"):
        tower = TextEncoder(text_config=TINY_BERT)
    give_buffers_values(tower)
    buffers = dict(tower.named_buffers())
    expected = dict(TextEncoder(text_config=TINY_BERT).named_buffers())
    assert buffers.keys() == expected.keys() and buffers
    for name, buffer in buffers.items():
        assert torch.equal(buffer, expected[name]), name


# -- both -------------------------------------------------------------------------------------


def test_the_package_hands_on_four_names():
    assert models.CLIPModel is CLIPModel and models.ImageEncoder is ImageEncoder
    assert models.TextEncoder is TextEncoder and models.create_model is create_model
    with pytest.raises(AttributeError, match="nothing"):
        models.nothing  # noqa: B018


def test_defaults_are_the_guides():
    with torch.device("meta"):
        model = CLIPModel()
    names = model.image_encoder_name, model.text_encoder_name, model.embed_dim
    assert names == ("resnet50", "bert-base-chinese", 512)
    assert model.image_encoder.projection.weight.shape == (512, 2048)
    config = model.text_encoder.backbone.config
    assert (config.num_hidden_layers, config.hidden_size, config.vocab_size) == (12, 768, 21128)
    assert CLIPModel("starnet_s1", text_config=TINY_BERT).temperature.item() == pytest.approx(0.07)


def test_similarity_is_the_cosine_by_the_temperature(clip):
    images, texts = torch.randn(2, EMBED_DIM), 5 * torch.randn(3, EMBED_DIM)
    expected = [[F.cosine_similarity(i, t, dim=0).item() / clip.temperature.item() for t in texts] for i in images]
    torch.testing.assert_close(clip.compute_similarity(images, texts), torch.tensor(expected))


def test_predict_in_its_three_ways():
    model = tiny_clip()
    images, texts = torch.randn(4, 3, 64, 64), ["正常", "松动", "感染"]
    with pytest.raises(InputError, match="class_texts"):
        model.predict(images)
    predictions, probabilities = model.predict(images, texts)
    assert predictions.shape == (4,) and probabilities.shape == (4, 3)
    torch.testing.assert_close(probabilities.sum(1), torch.ones(4))
    assert torch.equal(predictions, probabilities.argmax(1))
    with torch.no_grad():
        logits = model(images, texts)
        features = model.text_encoder(texts)
    torch.testing.assert_close(probabilities, logits.softmax(1))
    torch.testing.assert_close(model.predict(images)[1], probabilities)  # precomputed by the call before
    torch.testing.assert_close(model.predict(images, text_features=features)[1], probabilities)
    swapped = model.predict(images, text_features=features.flip(0))[1]
    torch.testing.assert_close(swapped, probabilities.flip(1))
    assert not probabilities.requires_grad


def test_class_texts_as_a_dict_are_its_descriptions():
    model = tiny_clip()
    from_dict = model.precompute_class_text_features({"正": "正常。", "松": "透亮线。"})
    torch.testing.assert_close(from_dict, model.precompute_class_text_features(["正常。", "透亮线。"]))


def test_create_model_reads_a_training_config():
    config = {"image_encoder": "starnet_s3", "text_encoder": "bert-base-chinese", "embed_dim": 48, "img_size": 192}
    model = create_model({**config, "temperature": np.float64(0.05), "text_config": TINY_BERT, "lr": 1e-4})
    assert model.image_encoder_name == "starnet_s3" and model.img_size == 192 and model.embed_dim == 48
    assert model.image_encoder.projection.out_features == 48
    assert model.temperature.item() == pytest.approx(0.05)


# -- load_state_dict --------------------------------------------------------------------------


def test_loading_makes_the_weights_equal_and_keeps_the_mode():
    source, target = tiny_clip(seed=0), tiny_clip(seed=1).train()
    target.load_state_dict(source.state_dict())
    assert target.training
    for (key, mine), theirs in zip(target.state_dict().items(), source.state_dict().values(), strict=True):
        assert torch.equal(mine, theirs), key


def test_the_text_tower_takes_the_size_of_the_weights():
    source = tiny_clip()
    with torch.device("meta"):
        target = CLIPModel("starnet_s1", embed_dim=EMBED_DIM)  # full-size BERT
    target.load_state_dict(source.state_dict(), assign=True)
    assert len(target.text_encoder.backbone.encoder.layer) == 1
    assert target.text_encoder.backbone.config.hidden_size == 64


NEEDED = (  # a weight of each part, in the model's order
    *(BACKBONE + "norm.running_mean", "image_encoder.projection.weight", "image_encoder.projection.bias"),
    *("text_encoder.backbone.encoder.layer.0.attention.self.query.bias", "text_encoder.projection.weight"),
)


@pytest.mark.parametrize("lost", [NEEDED[:1], NEEDED[2:], NEEDED], ids=len)
def test_missing_weights_are_named_and_counted(clip, lost):
    state = {key: tensor for key, tensor in clip.state_dict().items() if key not in lost}
    target = tiny_clip(seed=3)
    before = {key: tensor.clone() for key, tensor in target.state_dict().items()}
    with pytest.raises(CheckpointError) as caught:
        target.load_state_dict(state)
    message = str(caught.value)
    assert f"缺少 {len(lost)} 个" in message and all(key in message for key in lost[:3])
    assert ("……" in message) == (len(lost) > 3)
    assert set(lost) <= set(target.load_state_dict(state, strict=False).missing_keys)
    assert all(torch.equal(target.state_dict()[key], before[key]) for key in lost)


ADAPTER, STEM = "text_encoder.backbone.adapter.weight", BACKBONE + "model.stem.0.conv.weight"
# what stands beside the weights or in their place, the words of the error
UNFIT = {
    "unknown blocks": ({BACKBONE + "stages.0.9.extra.weight": torch.zeros(3)}, r"stages\.0\.9\.extra\.weight"),
    "unknown layers": ({BACKBONE + "attention.weight": torch.zeros(3)}, r"backbone\.attention\.weight"),
    "an adapter": ({ADAPTER: torch.zeros(3)}, r"backbone\.adapter\.weight"),
    "another shape": ({"image_encoder.projection.bias": torch.zeros(7)}, rf"projection\.bias.*\[7\].*\[{EMBED_DIM}\]"),
    "one weight twice": ({STEM: torch.zeros(32, 3, 3, 3)}, r"stem\.0\.conv\.weight"),
}


@pytest.mark.parametrize("case", UNFIT)
def test_weights_that_do_not_fit(clip, case):
    beside, message = UNFIT[case]
    with pytest.raises(CheckpointError, match=message):
        tiny_clip().load_state_dict({**clip.state_dict(), **beside})


def test_known_leftovers_are_passed_over_in_silence(clip):
    state = {key: tensor for key, tensor in clip.state_dict().items() if not key.endswith("num_batches_tracked")}
    state[BACKBONE + "head.weight"] = torch.zeros(1000, 192)
    state["text_encoder.backbone.embeddings.position_ids"] = torch.arange(512)[None]
    state["text_encoder.backbone.pooler.dense.weight"] = torch.zeros(64, 64)
    state["text_encoder.backbone.pooler.dense.bias"] = torch.zeros(64)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tiny_clip().load_state_dict(state)


def test_parameters_outside_the_towers_are_one_warning(clip):
    extra = {"criterion.margin": torch.zeros(1), "criterion.centers": torch.zeros(3, 4), "ema.decay": torch.ones(())}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        tiny_clip().load_state_dict({**clip.state_dict(), **extra})
    assert len(caught) == 1 and "3 个" in str(caught[0].message) and "criterion.margin" in str(caught[0].message)


def test_another_network_is_named(clip):
    with pytest.raises(CheckpointError, match='starnet_s1.*resnet18.*image_encoder_name="starnet_s1"'):
        tiny_clip("resnet18").load_state_dict(clip.state_dict())


NO_CLIP = ({}, {"weight": torch.zeros(2)}, {"model": {"layer.weight": torch.zeros(2)}}, text_tower_state())


@pytest.mark.parametrize("content", [*NO_CLIP, torch.zeros(3), [1, 2], "weights"])
def test_weights_of_something_else_are_refused(content):
    with pytest.raises(CheckpointError, match="image_encoder.backbone" if isinstance(content, dict) else "字典"):
        translate_checkpoint(content)


@pytest.mark.parametrize(
    "value", [torch.tensor(0.03), torch.tensor([0.03]), torch.tensor([[0.03]]), torch.tensor(0.03).half()]
)
def test_temperature_in_every_shape(clip, value):
    target = tiny_clip()
    target.load_state_dict({**clip.state_dict(), "temperature": value})
    assert target.temperature.shape == () and target.temperature.item() == pytest.approx(0.03, rel=1e-3)


def test_temperature_from_the_config_or_a_warning(clip):
    state = clip.state_dict()
    del state["temperature"]
    target = tiny_clip()
    target.load_state_dict({"model_state_dict": state, "config": {"temperature": np.float64(0.2)}})
    assert target.temperature.item() == pytest.approx(0.2)
    with pytest.warns(UserWarning, match="temperature.*0.07"):
        target.load_state_dict(state)
    assert target.temperature.item() == pytest.approx(0.07)
