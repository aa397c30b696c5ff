"""The evaluation of a run's images: its files, and what is said of it."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import NamedTuple

from ..errors import InputWarning, say
from ..evaluation.measures import TOLERANCE
from ..evaluation.picture import draw_evaluation, paper_rows
from ..evaluation.summary import evaluate
from ..evaluation.tables import HEADER, evaluation_rows, terminal_lines
from ..messages import Joined, Message
from ..results.figure import encode_figure
from ..results.page import FIGURE_DPI, largest_dpi
from ..results.parts import label_in_language
from ..writing import write_files
from .records import are_indices
from .state import RunState
from .tables import csv_line, json_page
from .totals import Totals


class CaseChoice(NamedTuple):
    """What is done with the list of cases."""

    by_label: bool = False  # each image's labels are explained, not its most similar text
    annotations: str | None = None  # a COCO file or a folder, for cases that name no annotation of their own
    tolerance: float = TOLERANCE  # pixels of 224 x 224 within which a peak counts as a hit
    dpi: int = FIGURE_DPI  # of evaluation.png


def evaluate_run(state: RunState, totals: Totals, cases: CaseChoice, lang: str) -> dict | None:
    """Write evaluation.csv, .json and .png of the labels and annotations there are, and print the classes.

    Returns what evaluation.json holds, in Chinese; None where there is neither label nor annotation.
    """
    coverages = {
        (image.columns["id"], int(text)): packed
        for image, record in totals.records()
        for text, packed in record.get("coverages", {}).items()
    }
    if cases.annotations and not coverages:
        warnings.warn(InputWarning("{} 中没有任何一张图像的标注：请检查其中的文件名", cases.annotations), stacklevel=2)
    evaluation = evaluate(_rows(totals), coverages, totals.names, cases.tolerance)
    if not any(group["labelled"] or group["annotated"] for group in evaluation["groups"]):
        return None
    evaluation |= {"target": _target(state, totals.names), "failed": totals.failed}
    groups = [{**group, "setting": label_in_language(group["setting"], lang)} for group in evaluation["groups"]]
    translated = {**evaluation, "groups": groups}
    table_path, paper_path, json_path, picture = state.evaluation

    def csv_lines(rows):
        yield "\ufeff"
        yield from map(csv_line, rows)

    contents = {
        table_path: lambda: csv_lines([HEADER, *evaluation_rows(translated, totals.names, lang)]),
        paper_path: lambda: csv_lines(paper_rows(translated, totals.names, lang)),
        json_path: lambda: [json_page({"names": totals.names, **translated})],
    }
    written = [state.write_table(path, lines) for path, lines in contents.items()]
    drawing = draw_evaluation(translated, totals.names, lang)
    dpi = min(cases.dpi, largest_dpi(drawing))  # a page of many splits would be too large
    write_files({picture: encode_figure(drawing, picture.suffix, dpi)}, durable=True, staging=state.staging)
    say(
        *terminal_lines(evaluation, totals.names),
        *_wrong_reasons(totals, cases.tolerance, evaluation["groups"][0]["setting"]),
    )
    say(Message("评估已保存：{}", Joined("、", map(str, [*written, picture]))))
    return {"names": totals.names, **evaluation}


def _target(state: RunState, names: list[str]) -> str:
    """Which texts were explained: "predicted", "label", "all", or their names."""
    targets = (state.read_settings() or {}).get("targets")
    if not are_indices(targets, len(names)):
        return "label" if targets == "label" else "predicted"
    return "all" if len(targets) == len(names) > 1 else ";".join(names[target] for target in targets)


SHOWN_CASES = 10


def _wrong_reasons(totals: Totals, tolerance: float, first: str | None) -> list[str]:
    """Of each split the images whose annotated text is predicted while the `first` setting's heatmap lies elsewhere."""
    images: dict[str | None, dict[str, None]] = {}
    for row in totals.rows(tolerance):
        if row.get("case") == "right_outside" and row["setting"] == first:
            images.setdefault(row.get("split"), {})[row["id"]] = None
    lines = []
    for split, of_split in images.items():
        where = "" if split is None else Message("（划分 {}）", split)
        more = Message(" 等 {} 张", len(of_split)) if len(of_split) > SHOWN_CASES else ""
        shown = Joined("、", [*of_split][:SHOWN_CASES])
        lines.append(Message("预测正确而峰在标注外{}：{}{}（见结果表的 case 列）", where, shown, more))
    return list(map(str, lines))


def _rows(totals: Totals) -> Iterator[dict]:
    """The rows of all images, with what the list of cases says of each."""
    for image, record in totals.records():
        labels = record.get("labels", image.labels)
        about = {name: image.columns.get(name) for name in ("id", "patient", "split")}
        for row in record["rows"]:
            yield {**row, **about, "label_indices": labels}
