"""Folders of six families of published models, of dual encoders, of open_clip's, and one with an adapter."""

import contextlib
import json
import os
import pickle
import shutil
from pathlib import Path
from random import Random

from .canary import AUTO_MAP, CODE
from .checkpoints import stored, write_zip
from .mutate import VALID, command, json_bytes, mutate_bytes, mutate_tree, number, own_cache, valid_bytes, write
from .objects import Payload, mutate_safetensors


def _mutate_json(random, path: Path) -> None:
    path.write_bytes(json_bytes(random, mutate_tree(random, json.loads(path.read_bytes()))))


def _config_of(folder) -> Path:
    """The file that says what the model of a folder is."""
    path = folder / "open_clip_config.json"
    return path if path.is_file() else folder / "config.json"


def _mutate_config(random, folder) -> None:
    _mutate_json(random, _config_of(folder))


def _mutate_size(random, folder) -> None:
    """A size of the configuration that the weights do not have."""
    path = _config_of(folder)
    config = json.loads(path.read_bytes())
    model = config.get("model_cfg", config)
    part = model.get(random.choice(("text_config", "vision_config", "text_cfg", "vision_cfg")), model)
    numbers = [key for key, value in part.items() if type(value) is int] or ["hidden_size"]
    part[random.choice(numbers)] = number(random)
    path.write_text(json.dumps(config))


def _mutate_file(random, folder) -> None:
    path = random.choice(sorted(folder.iterdir()))
    path.write_bytes(mutate_bytes(random, path.read_bytes()))


def _mutate_json_file(random, folder) -> None:
    with contextlib.suppress(ValueError):
        _mutate_json(random, random.choice(sorted(folder.glob("*.json"))))


def _drop_file(random, folder) -> None:
    random.choice(sorted(folder.iterdir())).unlink()


def _mutate_folder_weights(random, folder) -> None:
    for path in folder.glob("*model.safetensors"):
        path.write_bytes(mutate_safetensors(random, path.read_bytes()))


def _pickled_weights(random, folder) -> None:
    (folder / "model.safetensors").unlink(missing_ok=True)
    pickled = pickle.dumps(Payload(os.system, "echo x > EXECUTED"))
    write(
        folder / "pytorch_model.bin",
        random.choice((pickled, write_zip([stored("a/data.pkl", pickled)]), b"", b"\x80\x02N.")),
    )


def _add_code(random, folder) -> None:
    (folder / "own.py").write_text(CODE)
    name = random.choice(("config.json", "tokenizer_config.json", "preprocessor_config.json"))
    path = folder / name
    settings = json.loads(path.read_bytes()) if path.is_file() else {}
    settings |= {"auto_map": AUTO_MAP, "trust_remote_code": True, "custom_pipelines": {"a": {"impl": "own.OwnModel"}}}
    if random.random() < 0.6:
        settings |= {"model_type": "own", "tokenizer_class": "OwnTokenizer", "image_processor_type": "Own"}
    path.write_text(json.dumps(settings))


def _add_adapter(random, folder) -> None:
    settings = {
        "peft_type": random.choice(("LORA", "X", 5)),
        "base_model_name_or_path": random.choice((str(folder), "a/b", "/x")),
    }
    (folder / "adapter_config.json").write_bytes(
        json_bytes(random, mutate_tree(random, {**settings, "r": 4, "target_modules": ["q_proj"]}))
    )
    write(folder / "adapter_model.safetensors", random.choice((b"", valid_bytes("adapter.safetensors"))))


def _add_index(random, folder) -> None:
    names = random.choice(
        (
            "../../outside/thesis.txt",
            "model.safetensors",
            "missing.safetensors",
            "/etc/passwd",
            5,
            "model-1.safetensors",
        )
    )
    (folder / "model.safetensors").rename(folder / "model-1.safetensors")
    (folder / "model.safetensors.index.json").write_bytes(
        json_bytes(random, {"metadata": {}, "weight_map": {"a": names}})
    )


def _add_file(random, folder) -> None:
    names = (
        "generation_config.json",
        "chat_template.jinja",
        "added_tokens.json",
        "special_tokens_map.json",
        "processor_config.json",
    )
    names += (
        "open_clip_config.json",
        "tokenizer.model",
        "pytorch_model.bin.index.json",
        "flax_model.msgpack",
        "tf_model.h5",
    )
    write(
        folder / random.choice(names),
        random.choice((b"", b"{}", b"[]", b"[1, 2]", b"\xff", b'{"a": {"b": 1}}', b"{{ 1 / 0 }}")),
    )


FOLDER_MUTATIONS = (
    _mutate_config, _mutate_config, _mutate_size, _mutate_file, _mutate_json_file, _mutate_json_file, _drop_file,
    _mutate_folder_weights, _pickled_weights, _add_code, _add_adapter, _add_index, _add_file,
)  # fmt: skip


def make_folder(random: Random) -> list[str]:
    family = random.choice(sorted(path.name for path in (VALID / "families").iterdir()))
    folder = Path("in/model")
    shutil.copytree(VALID / "families" / family, folder)
    for _ in range(random.choice((0, 1, 1, 1, 2, 3))):
        with contextlib.suppress(
            OSError, ValueError, AttributeError, TypeError
        ):  # a file that an earlier one took away
            random.choice(FOLDER_MUTATIONS)(random, folder)
    if random.random() < 0.15:
        own_cache()
        return command(random, "--text-encoder", str(folder))
    return command(random, model=folder)
