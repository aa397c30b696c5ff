"""Tables of a run whose images are all done: those of its shards put together, or the run's own written anew."""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Mapping

from ..class_texts import names_and_texts
from ..errors import InputError, InputWarning, shortened
from .evaluating import CaseChoice
from .run import report
from .settings import check_settings
from .state import RunState, other_shard


def join(folder: str | os.PathLike, tolerance: float, lang: str) -> int:
    """Write the tables and the evaluation of an output folder; returns the exit code: 1 where images are missing.

    The lines of shards go into the folder's own state first, as those of one run, which `--resume` goes on with.
    Raises InputError where there is no run, a run is going on, or shards do not go together.
    """
    state = RunState(folder)
    if not state.state.is_dir():
        raise InputError(f"{folder} 中没有运行的记录（.clip_gradcam）；请检查 --output-dir")
    with contextlib.closing(state.lock()):
        shards = [shard for shard in state.shards() if shard.settings_file.exists()]
        if shards:
            _gather(state, shards)
        names = _names_of(state.read_settings() or {}, state)
        return report(state, names, CaseChoice(tolerance=tolerance), lang)


def _gather(state: RunState, shards: list[RunState]) -> None:
    """Make the lines of the shards, and those of the whole run that went on after them, the whole run's."""
    settings = _settings_of(shards)
    whole = {name: value for name, value in settings.items() if name != "shards"}
    texts = len(_names_of(settings, shards[0]))
    plans = {shard.shard: shard.plan(texts) for shard in shards}
    first, images = next(iter(plans.items()))
    for shard, others in plans.items():
        if [image._replace(pending=None) for image in others] != [image._replace(pending=None) for image in images]:
            raise InputError(f"分片 {shard} 与分片 {first} 的图像列表不同：请在列表不变时重新运行其中一份")
    own = [state] if state.read_settings() == whole else []
    state.take_over(whole, images, [*shards, *own])


def _settings_of(shards: list[RunState]) -> dict:
    """What all shards were asked for; which of them have not begun is said."""
    first, settings = shards[0].shard, shards[0].read_settings() or {}
    for other in shards[1:]:
        check_settings(settings, other.read_settings() or {}, other_shard(other.shard, first, other.folder))
    numbers = {run.shard.number for run in shards}
    missing = [f"{number}/{first.count}" for number in range(1, first.count + 1) if number not in numbers]
    if missing:
        names = shortened("、".join(missing), 200)
        warnings.warn(f"分片 {names} 还没有开始，表中没有它们的图像", InputWarning, stacklevel=3)
    return settings


def _names_of(settings: Mapping, state: RunState) -> list[str]:
    """The texts' short names; InputError where the settings are not those of a run."""
    texts = settings.get("texts")
    pairs = texts if isinstance(texts, list) else ()
    names = [pair[0] if isinstance(pair, list) and pair else None for pair in pairs]
    try:
        return names_and_texts(names)[0]
    except InputError as error:
        raise InputError(f"{state.settings_file} 中不是一次运行的设置（{error}）：没有可以合并的结果") from error
