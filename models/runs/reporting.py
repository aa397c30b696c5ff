"""The report of a run: what its page says of each image, from the records, and the files that it is written to."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import PurePath
from typing import NamedTuple

from ..errors import InputError, InputWarning
from ..messages import LANGUAGES, Joined, Message
from ..report.cards import LONGEST_CARD, read_card
from ..report.colours import colour_choice, colour_tables, word_colours
from ..report.page import CARDS_PER_FILE, IMAGES_INLINE, card_file, page_parts
from ..results.parts import label_in_language
from ..writing import open_own, write_files
from .naming import Anonymous, Naming, in_each_language
from .records import PlannedImage, are_whole, can_be_evaluated
from .state import RunState, card_name
from .tables import name_below, shown_row
from .totals import Totals

MOST_BY_DEFAULT = 2000  # images of a report that nobody asked for
MEASURES = ("energy", "iou_half", "iou_otsu", "contrast_to_noise", "deletion_margin", "insertion_margin")
# names in the page: columns of the tables
COLUMNS = {
    "target": "target_text_idx",
    "rank": "rank",
    "similarity": "similarity",
    "specificity": "text_specificity",
    "case": "case",
    "distance": "distance",
    "area": "area_above_half",
}


class ReportChoice(NamedTuple):
    """Whether a report is written, and whether it keeps back whose the images are; so it stands in the settings."""

    report: bool = False
    anonymous: bool = False

    @classmethod
    def of(cls, settings: Mapping) -> ReportChoice:
        return cls(*(settings.get(name) is True for name in cls._fields))


def report_choice(report: bool | None, anonymous: bool, images: int, earlier: Mapping | None = None) -> ReportChoice:
    """What the flags mean for a list of `images`; `report`: None where neither --report nor --no-report is given.

    Without flags it is as in the run that goes on, whose settings are `earlier`.
    """
    if report is None and not anonymous and earlier is not None:
        return ReportChoice.of(earlier)
    by_default = report is None and 2 <= images <= MOST_BY_DEFAULT
    return ReportChoice(bool(report or anonymous or by_default), anonymous)


class _CardFile(NamedTuple):
    """The file of an image's card, if its record names one."""

    name: str  # below the output folder
    size: int | None
    image: str
    rows: int  # 0: it failed and has no card


def write_report(
    state: RunState, totals: Totals, tolerance: float, lang: str, evaluation: dict | None, anonymous: bool
) -> list[Message]:
    """Write report.html and what stands beside it; returns what is to be said.

    `evaluation`: what evaluation.json holds. Memory holds one card at a time, and what the page says of each image.
    Raises InputError where files cannot be written.
    """
    naming = (Anonymous if anonymous else Naming)(totals.plan)
    document, cards = _document(state, totals, naming, tolerance)
    document |= {"lang": lang, "evaluation": evaluation}
    unusable: list[str] = []

    def some(first: int, count: int) -> Iterator[str | None]:
        return (_card(state, card, len(totals.names), unusable) for card in cards[first : first + count])

    starts = range(0, len(cards), CARDS_PER_FILE) if len(cards) > IMAGES_INLINE else ()
    side_files = {state.side_file(1 + index): first for index, first in enumerate(starts)}
    document["card_files"] = [name_below(state.folder, path) for path in side_files] or None
    files = {path: card_file(first, some(first, CARDS_PER_FILE)) for path, first in side_files.items()}
    files[state.report] = page_parts(document, some(0, 0 if side_files else IMAGES_INLINE))
    key = {state.report_key: "\ufeff".encode() + "".join(naming.key_lines()).encode()} if anonymous else {}
    write_files(key, durable=True, staging=state.staging, private=True)
    write_files(files, durable=True, staging=state.staging, within=state.folder)
    state.remove_report(but=[*files, *key])
    if unusable:
        problem = "报告中 {} 张图像没有图：它们的卡片缺失或已损坏（{}）；重新运行即可补上"
        warnings.warn(InputWarning(problem, len(unusable), Joined("、", unusable[:3])), stacklevel=2)
    size = max(0.1, sum(path.stat().st_size for path in files) / 1e6)
    lines = [Message("报告已保存：{}（{} 张图像，{} MB）", state.report, len(cards), f"{size:.1f}")]
    if anonymous:
        advice = "编号与图像的对照表：{}；请与报告分开保管。图像上烧录的文字没有去掉"
        lines.append(Message(advice, state.report_key))
    return lines


def _card(state: RunState, card: _CardFile, texts: int, unusable: list[str]) -> str | None:
    """A card's JSON; None where the image failed, or the card cannot be used, whose image is added to `unusable`."""
    if not card.rows:
        return None
    try:
        if not are_whole(state.folder, {card.name: card.size}):
            raise FileNotFoundError(card.name)
        with open_own(state.folder / card.name) as file:
            return read_card(file.read(LONGEST_CARD), texts, card.rows)
    except (OSError, InputError):
        unusable.append(card.image)
        return None


def _document(state: RunState, totals: Totals, naming: Naming, tolerance: float) -> tuple[dict, list[_CardFile]]:
    """What the page is told, see `models.report.page`, and where the card of each of its images stands."""
    settings = state.read_settings() or {}
    labels: dict[str, int] = {}  # of the rows' settings, numbered as they come
    images, cards = [], []
    for image, record in totals.records():
        images.append(_image(image, record, totals.names, naming, labels, tolerance))
        name = card_name(image.name)
        cards.append(_CardFile(name, record["files"].get(name), images[-1]["name"], len(images[-1]["rows"])))
    rows = [row for image in images for row in image["rows"]]
    has_annotations = any(row["annotated"] is not None for row in rows)
    document = {
        "run": _run_key(settings, images, naming),
        "title": _title(settings, naming),
        "anonymous": isinstance(naming, Anonymous),
        "names": totals.names,
        "texts": [_descriptions(pair) for pair in settings["texts"]],
        "settings": [{lang: label_in_language(label, lang) for lang in LANGUAGES} for label in labels],
        "columns": naming.columns,
        "has_list": totals.has_list,
        "has_annotations": has_annotations,
        "tested": any("deletion_margin" in row["measures"] for row in rows),
        "tells_presence": settings.get("tells_presence") is True,
        "tolerance": tolerance if has_annotations else None,
        **colour_tables(),
        "word_colours": word_colours(),
        "contrast": bool(settings.get("contrast")),
        "choice": colour_choice(settings),
        "images": images,
    }
    return document, cards


def _descriptions(pair: list) -> list[str]:
    """What a class's line of the settings, [name, text], says to the model; the name where that is nothing of ours."""
    text = pair[-1] if isinstance(pair[-1], list) else [pair[-1]]
    return text if text and all(isinstance(description, str) for description in text) else pair[:1]


def _run_key(settings: Mapping, images: Sequence[Mapping], naming: Naming) -> str:
    """What marks are kept under: of the model, the texts and the folder; numbers are those of these very images."""
    if isinstance(naming, Anonymous):
        key = [[image["predicted"], image["probabilities"]] for image in images]
    else:
        key = [settings.get(name) for name in ("checkpoint", "texts", "targets", "layers", "root")]
    return hashlib.sha256(json.dumps(key).encode()).hexdigest()[:16]


def _title(settings: Mapping, naming: Naming) -> dict:
    root = settings.get("root")
    if isinstance(naming, Anonymous) or not isinstance(root, str):
        return in_each_language(Message("热力图报告"))
    return in_each_language(Message("热力图报告：{}", PurePath(root).name))


def _image(
    image: PlannedImage, record: Mapping, names: Sequence[str], naming: Naming, labels: dict[str, int], tolerance: float
) -> dict:
    """What the page says of an image. `labels`: of settings; new ones are added."""
    true, rows = record.get("labels", image.labels), record["rows"]
    about = {**naming.about(image), "figure": None, "size": None, "error": None, "labels": true, "predicted": None}
    about |= {"probabilities": None, "rows": []}
    if "error" in record:
        return about | {"error": naming.error(image, _both({**rows[0], "error": record["error"]}, "error"))}
    if not all(_is_shown(row, names) for row in rows):
        return about | {"error": in_each_language(Message("这张图像的结果行不是本工具写的，或已损坏"))}
    first, overlays = rows[0], {str(index): naming.link(row.get("overlay")) for index, row in enumerate(rows)}
    size, figure = [first.get("width"), first.get("height")], naming.link(first.get("figure"))
    shown = [_row(row, shown_row(row, image, true, names, tolerance), labels) for row in rows]
    for row, of_page in zip(rows, shown):
        texts = _both(row, "warning")
        of_page["warning"] = texts and naming.warning(image, texts)
    return about | {
        "figure": figure,
        **({} if figure else {"overlays": {index: link for index, link in overlays.items() if link}}),
        "size": size if all(type(side) is int and side > 0 for side in size) else None,
        "predicted": _predicted(first, names),
        "probabilities": first["probabilities"],
        "rows": shown,
    }


def _is_shown(row: Mapping, names: Sequence[str]) -> bool:
    """Whether a row has what the page shows, and leaves to us what follows from the list."""
    is_evaluable = row.get("error") is None and can_be_evaluated(row, len(names))
    return is_evaluable and row["predicted"] in names and row.get("case") is None


def _both(row: Mapping, column: str) -> dict | None:
    """{lang: text} of a warning or an error; lines of earlier versions have it in Chinese alone."""
    chinese = row.get(column)
    return chinese and {"zh": chinese, "en": row.get(f"{column}_en") or chinese}


def _predicted(row: Mapping, names: Sequence[str]) -> int:
    """The index of the predicted text: of several of one name the most probable."""
    alike = [index for index, name in enumerate(names) if name == row["predicted"]]
    return max(alike, key=lambda index: row["probabilities"][index] or 0)


def _row(row: Mapping, shown: Mapping, labels: dict[str, int]) -> dict:
    """What the page says of an explained text; `shown`: the row as it stands in the tables."""
    peak = [row.get("peak_x"), row.get("peak_y")]
    return {
        "setting": labels.setdefault(row["setting"], len(labels)),
        **{name: shown.get(column) for name, column in COLUMNS.items()},
        "peak": None if None in peak else peak,
        "annotated": row.get("annotated"),
        "measures": {name: row[name] for name in MEASURES if row.get(name) is not None},
    }
