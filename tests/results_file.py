"""A JSON file of measurements that grows: what is measured anew replaces what it had, all else stays."""

import json
import re
from pathlib import Path

import project  # noqa: F401

from models.writing import write_files


def read_results(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def merge(old: dict, new: dict) -> dict:
    """New values over old ones, dicts within dicts."""
    both = {**old, **new}
    return both | {k: merge(old[k], v) for k, v in new.items() if isinstance(v, dict) and isinstance(old.get(k), dict)}


def save_results(path: Path, new: dict) -> dict:
    """Merge into the file, which is read anew: another encoder may be measured at the same time."""
    results = merge(read_results(path), new)
    text = json.dumps(results, ensure_ascii=False, indent=1)
    text = re.sub(r"\[\s+([^\[\]{}]+?)\s+\]", lambda match: "[" + " ".join(match[1].split()) + "]", text)
    write_files({path: (text + "\n").encode()})
    return results
