"""Fixtures. Models of session scope are shared: a test that changes one makes its own."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("MPLBACKEND", "Agg")

import json
import socket
from pathlib import Path

import matplotlib
import pytest
import torch
from PIL import Image
from reference.reference_weights import read_layout
from tiny import gradient_picture, text_tower_state, tiny_clip

from models.explain import defaults

torch.set_num_threads(1)
os.environ.setdefault("MPLCONFIGDIR", matplotlib.get_cachedir())  # its list of fonts stays where it is; see user_cache

REFERENCE = Path(__file__).parent / "reference"
LAYOUTS = sorted(path.stem.removeprefix("layout_") for path in REFERENCE.glob("layout_*.json"))


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    """No test reaches a network: not even a name is looked up."""

    def refused(*args, **kwargs):
        raise OSError("no network in the tests")

    monkeypatch.setattr(socket, "getaddrinfo", refused)
    monkeypatch.setattr(socket.socket, "connect", refused)


@pytest.fixture(autouse=True)
def user_cache(monkeypatch, tmp_path_factory):
    """Each test, and each process that it starts, has a cache folder of its own, at first empty; its path."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    return folder / "clip_gradcam"


@pytest.fixture
def single_layer(monkeypatch):
    """The guide's Grad-CAM as every encoder's default: for tests that expect the map of one layer."""
    rows = {name: defaults.EncoderRow(row.target_layer) for name, row in defaults.ENCODERS.items()}
    monkeypatch.setattr(defaults, "ENCODERS", rows)


@pytest.fixture(scope="session")
def clip():
    """starnet_s1 and a one-layer BERT."""
    return tiny_clip()


@pytest.fixture(scope="session")
def resnet_clip():
    return tiny_clip("resnet18")


@pytest.fixture(scope="session")
def checkpoint(clip, tmp_path_factory):
    """Path of a complete checkpoint of `clip`, in the form that training writes."""
    path = tmp_path_factory.mktemp("checkpoint") / "clip_model.pth"
    torch.save({"epoch": 3, "model_state_dict": clip.state_dict(), "config": {"embed_dim": 32, "img_size": 64}}, path)
    return path


@pytest.fixture(scope="session")
def picture(tmp_path_factory):
    """Path of a PNG, 90 wide and 60 high."""
    path = tmp_path_factory.mktemp("picture") / "image.png"
    Image.fromarray(gradient_picture()).save(path)
    return path


@pytest.fixture
def write_checkpoint(tmp_path):
    """A function that saves an object as a checkpoint and returns its path."""

    def write(content, name="checkpoint.pth", **options):
        path = tmp_path / name
        torch.save(content, path, **options)
        return path

    return write


@pytest.fixture
def class_texts_file(tmp_path):
    """Path of a JSON file of three classes."""
    path = tmp_path / "class_texts.json"
    texts = {"正常": "关节间隙正常。", "松动": "假体周围可见透亮线。", "感染": "骨质破坏伴骨膜反应。"}
    path.write_text(json.dumps(texts, ensure_ascii=False), encoding="utf-8")
    return path


@pytest.fixture(scope="session", params=LAYOUTS)
def layout(request):
    """(checkpoint's state dict with a tiny text tower, the layout's record), one layout after the other."""
    state_dict, record = read_layout(REFERENCE / f"layout_{request.param}.json")
    embed_dim = len(record["embedding"])
    return {"temperature": torch.tensor(0.07), **state_dict, **text_tower_state(embed_dim)}, record
