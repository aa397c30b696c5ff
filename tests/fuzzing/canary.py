"""What payloads of the fuzzer call: `calls` stays empty as long as nothing in a file is executed."""

import json
from pathlib import Path

calls: list[str] = []


def call(*arguments, **named):
    calls.append(f"call{arguments!r}"[:200])


class Thing:
    """A class that a file may name, make or fill."""

    def __new__(cls, *arguments, **named):
        calls.append("Thing()")
        return super().__new__(cls)

    def __setstate__(self, state):
        calls.append("Thing.__setstate__")


CODE = """open("EXECUTED", "w").write("x")
from fuzzing import canary
canary.call("module")
from transformers import CLIPConfig as OwnConfig, CLIPModel as OwnModel, BertTokenizer as OwnTokenizer
"""
AUTO_MAP = {"AutoConfig": "own.OwnConfig", "AutoModel": "own.OwnModel", "AutoTokenizer": ["own.OwnTokenizer", None]}


def write_code(folder: Path) -> None:
    """A folder of a text encoder whose classes are its own."""
    folder.mkdir(parents=True)
    (folder / "own.py").write_text(CODE)
    (folder / "config.json").write_text(json.dumps({"model_type": "own", "auto_map": AUTO_MAP}))
    (folder / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\n")
