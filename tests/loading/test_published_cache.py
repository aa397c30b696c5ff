"""Published models: their texts' features are kept between runs, by everything that they depend on."""

import json
import os
import shutil
import warnings

import pytest
import torch
from test_openai_clip import make_original, vocabulary  # noqa: F401 (a fixture)
from test_pretrained import save_shards
from tiny import load_with_text_features
from tiny_pretrained import FAMILIES, TEXTS, save_pretrained

from models.errors import InputWarning
from models.loading import load as loading
from models.loading import text_cache
from models.loading.load import embed_texts, load_clip_checkpoint
from models.towers.text import TextTower

pytestmark = pytest.mark.filterwarnings("ignore:文本“two dogs")


@pytest.fixture
def built(monkeypatch):
    """A list that grows by one with each text tower that is built."""
    towers, genuine = [], TextTower.__init__

    def watched(self, *arguments, **options):
        towers.append(type(self).__name__)
        return genuine(self, *arguments, **options)

    monkeypatch.setattr(TextTower, "__init__", watched)
    return towers


def assert_kept(path, built, **options):
    """The second time the features come from the cache, bit for bit, with the same model and no text tower."""
    built.clear()
    without = load_with_text_features(path, TEXTS, use_cache=False, **options)
    loads = [without, *(load_with_text_features(path, TEXTS, **options) for _ in range(2))]
    assert len(built) == 2
    for model, features in loads[1:]:
        assert torch.equal(features, without[1]) and model.text_encoder is None and not model.training
        assert model.cautions == without[0].cautions and model.preprocessing == without[0].preprocessing
        assert model.state_dict().keys() == without[0].state_dict().keys()
        assert all(torch.equal(tensor, without[0].state_dict()[key]) for key, tensor in model.state_dict().items())
        assert not any("text" in key or tensor.is_meta for key, tensor in model.state_dict().items())
    return without[1]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_folder_of_each_family(tmp_path, built, family):
    save_pretrained(tmp_path / "model", family)
    features = assert_kept(tmp_path / "model", built)
    assert torch.equal(features, embed_texts(load_clip_checkpoint(tmp_path / "model"), TEXTS))


@pytest.mark.parametrize("kind", ["vit", "resnet"])
def test_a_checkpoint_under_openais_names(tmp_path, write_checkpoint, vocabulary, built, kind):  # noqa: F811
    assert_kept(write_checkpoint(make_original(kind, vocabulary).state_dict(), "original.pt"), built)


def test_nothing_of_the_text_tower_is_read_on_a_hit(tmp_path, monkeypatch):
    folder, _ = save_pretrained(tmp_path / "model", "chinese_clip")
    load_with_text_features(folder, TEXTS)
    names = []
    monkeypatch.setattr("models.towers.tokenizers.load_tokenizer", None)
    monkeypatch.setattr(
        "models.loading.folder.assign_weights",
        lambda network, weights: names.extend(weights) or network.load_state_dict(weights, assign=True),
    )
    model, features = load_with_text_features(folder, TEXTS)
    assert names and not [name for name in names if name.startswith("text")]
    assert len(features) == len(TEXTS) and model.class_text_features is features


def change_weight(folder):
    save_pretrained(folder, "clip", seed=1)


def change_shard(folder):
    last = sorted(folder.glob("model-*.safetensors"))[-1]
    data = bytearray(last.read_bytes())
    data[-1] ^= 1
    last.write_bytes(bytes(data))


def change_merges(folder):
    merges = (folder / "merges.txt").read_text(encoding="utf-8")
    (folder / "merges.txt").write_text(merges.replace("#version: 0.2", "#version: 0.3"), encoding="utf-8")


def append_to(name):
    def change(folder):
        with open(folder / name, "a", encoding="utf-8") as file:
            file.write("\n")

    return change


CHANGES = {
    "a weight": change_weight,
    "a shard": change_shard,
    "the vocabulary": append_to("vocab.json"),
    "the merges": change_merges,
    "the tokenizer's settings": append_to("tokenizer_config.json"),
    "the config": append_to("config.json"),
}


@pytest.mark.parametrize("case", CHANGES)
def test_whatever_changes_in_a_folder_changes_the_key(tmp_path, user_cache, case):
    folder = tmp_path / "model"
    save_pretrained(folder, "clip", save=save_shards if case == "a shard" else None)
    load_with_text_features(folder, TEXTS)
    CHANGES[case](folder)
    features = load_with_text_features(folder, TEXTS)[1]
    assert len(list(user_cache.glob("*"))) == 2
    assert torch.equal(features, load_with_text_features(folder, TEXTS, use_cache=False)[1])


def test_a_copy_elsewhere_has_the_key_and_a_tokenizer_elsewhere_its_own(tmp_path, user_cache):
    folder, _ = save_pretrained(tmp_path / "model", "clip")
    features = load_with_text_features(folder, TEXTS)[1]
    copy = shutil.copytree(folder, tmp_path / "moved")
    assert torch.equal(load_with_text_features(copy, TEXTS)[1], features) and len(list(user_cache.glob("*"))) == 1
    other = shutil.copytree(folder, tmp_path / "other")
    words = json.loads((other / "vocab.json").read_text(encoding="utf-8"))
    words["cat</w>"], words["the</w>"] = words["the</w>"], words["cat</w>"]
    (other / "vocab.json").write_text(json.dumps(words), encoding="utf-8")
    swapped = load_with_text_features(folder, TEXTS, text_encoder=str(other))[1]
    assert len(list(user_cache.glob("*"))) == 2 and not torch.equal(swapped, features)


def test_what_stands_beside_a_file_is_part_of_the_key(tmp_path, write_checkpoint, vocabulary, user_cache):  # noqa: F811
    path = write_checkpoint(make_original("vit", vocabulary).state_dict(), "original.pt")
    by_activation = []
    for quick in (True, False):
        config = {"model_cfg": {"quick_gelu": quick, "vision_cfg": {}, "text_cfg": {}}}
        (path.parent / "open_clip_config.json").write_text(json.dumps(config))
        by_activation.append(load_with_text_features(path, TEXTS)[1])
    assert len(list(user_cache.glob("*"))) == 2 and not torch.equal(*by_activation)


@pytest.mark.parametrize("file", ["model.safetensors", "vocab.json"])
def test_a_file_replaced_while_it_is_read_is_not_kept(tmp_path, user_cache, monkeypatch, file):
    folder, _ = save_pretrained(tmp_path / "model", "clip")
    other, _ = save_pretrained(tmp_path / "other", "clip", seed=1)
    genuine = loading.embed_texts

    def replaced_meanwhile(*arguments):
        os.replace(other / file, folder / file)
        return genuine(*arguments)

    monkeypatch.setattr(loading, "embed_texts", replaced_meanwhile)
    load_with_text_features(folder, TEXTS)
    assert not list(user_cache.glob("*"))


def test_warnings_are_said_again_and_damage_is_no_entry(tmp_path, user_cache, built):
    folder, _ = save_pretrained(tmp_path / "model", "chinese_clip")
    heard = []
    for _ in range(2):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            load_with_text_features(folder, [("正常假体" * 20, "感染"), "感染" * 30])
        heard.append([str(warning.message) for warning in caught if issubclass(warning.category, InputWarning)])
    assert heard[0] == heard[1] and len([line for line in heard[0] if "截去" in line]) == 2 and len(built) == 1
    (entry,) = user_cache.glob("*")
    entry.write_bytes(entry.read_bytes()[:-1])
    load_with_text_features(folder, [("正常假体" * 20, "感染"), "感染" * 30])
    assert len(built) == 2


def test_a_library_that_is_not_there_is_no_obstacle(monkeypatch):
    keys = set()
    for libraries in ((), ("numpy",), ("no-such-library",)):
        monkeypatch.setattr(text_cache, "OPTIONAL_LIBRARIES", libraries)
        keys.add(text_cache.text_features_key("0" * 32, ["clip", []], {}, TEXTS, "cpu"))
    assert len(keys) == 3 and None not in keys
