"""The evaluation of a run's images: its files, and what is said of it."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from typing import NamedTuple

from ..errors import InputWarning, say
from ..evaluation.measures import TOLERANCE
from ..evaluation.picture import draw_evaluation
from ..evaluation.summary import evaluate
from ..evaluation.tables import HEADER, evaluation_rows, terminal_lines
from ..results.figure import encode_figure
from ..results.parts import label_in_language
from ..writing import write_files
from .state import RunState
from .tables import csv_line
from .totals import Totals


class CaseChoice(NamedTuple):
    """What is done with the list of cases."""

    by_label: bool = False  # each image's labels are explained, not its most similar text
    annotations: str | None = None  # a COCO file or a folder, for cases that name no annotation of their own
    tolerance: float = TOLERANCE  # pixels of 224 x 224 within which a peak counts as a hit


def evaluate_run(state: RunState, totals: Totals, cases: CaseChoice, lang: str) -> None:
    """Write evaluation.csv, .json and .png of the labels and annotations there are, and print the classes."""
    coverages = {
        (image.columns["id"], int(text)): packed
        for image, record in totals.records()
        for text, packed in record.get("coverages", {}).items()
    }
    if cases.annotations and not coverages:
        warnings.warn(f"{cases.annotations} 中没有任何一张图像的标注：请检查其中的文件名", InputWarning, stacklevel=2)
    evaluation = evaluate(_rows(totals), coverages, totals.names, cases.tolerance)
    if not any(group["labelled"] or group["annotated"] for group in evaluation["groups"]):
        return
    csv_path, json_path, picture = state.evaluation

    def csv_lines():
        yield "\ufeff" + csv_line(HEADER)
        yield from map(csv_line, evaluation_rows(evaluation, totals.names))

    def json_lines():
        yield json.dumps({"names": totals.names, **evaluation}, ensure_ascii=False, indent=1) + "\n"

    written = [state.write_table(csv_path, csv_lines), state.write_table(json_path, json_lines), picture]
    groups = [{**group, "setting": label_in_language(group["setting"], lang)} for group in evaluation["groups"]]
    drawing = draw_evaluation({**evaluation, "groups": groups}, totals.names, lang)
    write_files({picture: encode_figure(drawing, picture.suffix)}, durable=True, staging=state.staging)
    say(*terminal_lines(evaluation, totals.names), f"评估已保存：{'、'.join(map(str, written))}")


def _rows(totals: Totals) -> Iterator[dict]:
    """The rows of all images, with what the list of cases says of each."""
    for image, record in totals.records():
        labels = record.get("labels", image.labels)
        about = {name: image.columns.get(name) for name in ("id", "patient", "split")}
        for row in record["rows"]:
            yield {**row, **about, "label_indices": labels}
