"""Tables of a run whose images are all done: those of its shards put together, or the run's own written anew."""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Mapping

from ..class_texts import names_and_texts
from ..errors import InputError, InputWarning, shortened
from ..messages import LANGUAGES, Joined
from ..results.page import FIGURE_DPI
from ..results.saving import DENSITIES
from .evaluating import CaseChoice
from .records import PlannedImage
from .reporting import report_choice
from .run import conclude
from .settings import check_settings
from .state import RunState, other_shard


def join(
    folder: str | os.PathLike,
    tolerance: float,
    lang: str | None = None,
    dpi: int | None = None,
    report: bool | None = None,
    anonymous: bool = False,
) -> int:
    """Write tables, evaluation and report of an output folder; returns the exit code: 1 where images are missing.

    `lang`: of LANGUAGES, `dpi`: of evaluation.png; None for the run's own. `report`, `anonymous`: as for
    `report_choice`; the run's own where neither is given.

    The lines of shards go into the folder's own state first, as those of one run, which `--resume` goes on with.
    Raises InputError where there is no run, a run is going on, or shards do not go together.
    """
    state = RunState(folder)
    if not state.state.is_dir():
        raise InputError("{} 中没有运行的记录（.clip_gradcam）；请检查 --output-dir", folder)
    with contextlib.closing(state.lock()):
        shards = state.begun_shards()
        if shards:
            _gather(state, shards)
        settings = state.read_settings() or {}
        names = _names_of(settings, state)
        state.remove(state.evaluation)
        state.remove_report()
        lang = lang or (settings.get("lang") if settings.get("lang") in LANGUAGES else LANGUAGES[0])
        choice = report_choice(report, anonymous, len(state.plan(len(names))), settings)
        cases = CaseChoice(tolerance=tolerance, dpi=dpi or _dpi_of(settings))
        return conclude(state, names, cases, choice, lang)


def _dpi_of(settings: Mapping) -> int:
    """The density that the run's figures have; today's where the settings name none that a figure can have."""
    dpi = settings.get("dpi")
    return dpi if type(dpi) is int and DENSITIES[0] <= dpi <= DENSITIES[1] else FIGURE_DPI


def _gather(state: RunState, shards: list[RunState]) -> None:
    """Make the lines of the shards those of a run of the whole list."""
    settings = _settings_of(shards)
    texts = len(_names_of(settings, shards[0]))
    images = _without_progress(shards[0].plan(texts))
    for other in shards[1:]:
        if _without_progress(other.plan(texts)) != images:
            raise InputError(
                "分片 {} 与分片 {} 的图像列表或标注不同：请在它们不变时重新运行其中一份", other.shard, shards[0].shard
            )
    state.take_over({name: value for name, value in settings.items() if name != "shards"}, images, shards)


def _without_progress(images: list[PlannedImage]) -> list[PlannedImage]:
    return [image._replace(pending=None) for image in images]


def _settings_of(shards: list[RunState]) -> dict:
    """What all shards were asked for; which of them have not begun is said."""
    first, settings = shards[0].shard, shards[0].read_settings() or {}
    for other in shards[1:]:
        check_settings(settings, other.read_settings() or {}, other_shard(other.shard, first, other.folder))
    numbers = {run.shard.number for run in shards}
    missing = [f"{number}/{first.count}" for number in range(1, first.count + 1) if number not in numbers]
    if missing:
        names = shortened(str(Joined("、", missing)), 200)
        warnings.warn(InputWarning("分片 {} 还没有开始，表中没有它们的图像", names), stacklevel=3)
    return settings


def _names_of(settings: Mapping, state: RunState) -> list[str]:
    """The texts' short names; InputError where the settings are not those of a run."""
    texts = settings.get("texts")
    pairs = texts if isinstance(texts, list) else ()
    names = [pair[0] if isinstance(pair, list) and pair else None for pair in pairs]
    try:
        return names_and_texts(names)[0]
    except InputError as error:
        raise InputError("{} 中不是一次运行的设置（{}）：没有可以合并的结果", state.settings_file, error) from error
