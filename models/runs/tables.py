"""The tables of a run: their columns, the rows of an image, and rows as lines of CSV and JSON."""

from __future__ import annotations

import csv
import importlib.metadata
import io
import itertools
import json
import math
import platform
import re
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from pathlib import Path

import numpy as np

from ..class_texts import ClassText
from ..errors import escape_unprintable
from ..evaluation.summary import CASES
from ..explain.heatmap import flatness, is_flat
from ..explain.words import Word
from ..images.preprocessing import Region
from ..messages import Joined, Message
from ..results.parts import label_in_language
from ..results.result import ImageResult, Results
from ..results.saving import OutputFiles
from ..results.shading import by_description
from .measuring import Truth


def table_rows(
    results: Results, files: OutputFiles, image: str, folder: Path, run: Mapping, truth: Truth | None = None
) -> list[dict]:
    """A row of COLUMNS per explained text and method, and the probability of every text, whose names are the run's.

    `image`: the path as it was found; files are named relative to `folder`; `run`: what is the same in all rows;
    `truth`: what the heatmaps are held against, None where there is no list of cases.
    """
    resized_maps = (resized for result in results for resized in result.resized_maps())
    pairs = zip(results.pairs(), resized_maps)
    rows = []
    for of_pair, *paths in zip_longest(pairs, files.overlays, files.heatmaps, files.layer_heatmaps):
        ((result, index), resized), (overlay, heatmap, layer_heatmap) = of_pair, paths
        names = {"figure": files.figure, "overlay": overlay, "heatmap": heatmap, "layer_heatmap": layer_heatmap}
        names = {kind: name_below(folder, path) for kind, path in names.items()}
        of_text = _row_of_text(result, index, resized, truth)
        rows.append({"image": image, **_row_of_result(result), **of_text, **names, **run})
    return rows


def _row_of_result(result: ImageResult) -> dict:
    """The columns that all texts of a result share."""
    question = result.question
    height, width = result.pixels.shape[:2]
    encoder, layer, rows, columns = result.source
    return {
        "width": width,
        "height": height,
        "predicted": question.names[result.predicted],
        "method": result.method,
        "setting": result.full_label(),
        "explained": question.similarity,
        "contrast": question.contrast,
        "subtracted": result.subtracted,
        "image_encoder": encoder,
        "layer": layer,
        "grid": f"{rows}x{columns}",
        "seen": rounded(result.geometry.share(height, width)),
        "probabilities": [six_digits(p) for p in result.probabilities],
    }


def _row_of_text(result: ImageResult, index: int, resized: np.ndarray, truth: Truth | None) -> dict:
    """The columns of one explained text, whose map is `resized` to the image."""
    target, specificity = result.targets[index], result.specificities[index]
    tested = result.tested[index]
    measured = measure_map(result.maps[index], resized, result.geometry)
    notes = [*result.cautions, *result.notes()[index]]
    if truth is not None:
        peak = None if measured["peak_x"] is None else (measured["peak_x"], measured["peak_y"])
        columns = truth.columns(resized, peak, target, result.predicted)
        measured |= {name: rounded(value) if isinstance(value, float) else value for name, value in columns.items()}
        notes.append(truth.warning)
    return {
        "target_text_idx": target,
        "target": result.question.names[target],
        "rank": result.rank(target),
        "similarity": rounded(result.similarities[target]),
        "probability": six_digits(result.probabilities[target]),
        **measured,
        "text_specificity": None if specificity is None else rounded(specificity),
        **in_both_languages("warning", Joined("；", filter(None, notes)) or None),
        **{name: None if tested is None else rounded(getattr(tested, name)) for name in FAITHFULNESS_COLUMNS},
        "words": None if result.words is None else words_in_order(result.texts[target], result.words[index]),
    }


def words_in_order(text: ClassText, words: Sequence[Word]) -> list:
    """[[word, contribution], ...] in the text's order; of a text of several descriptions a list of these for each."""
    lists = [
        [[word.text, rounded(word.contribution)] for word in of_description]
        for _, of_description in by_description(text, words)
    ]
    return lists if len(lists) > 1 else lists[0]


SENTENCES = ("warning", "error")  # columns of these
ENGLISH = "_en"  # what the names of their English in a record end in
FAITHFULNESS_COLUMNS = ("deletion", "insertion", "deletion_margin", "insertion_margin")


def measure_map(raw_map: np.ndarray, resized: np.ndarray, region: Region) -> dict:
    """Where a map is highest, how wide and how flat it is; `raw_map` [h, w], `resized` the same at [H, W].

    The peak is the centre of the strongest cell, in pixels from the image's upper left corner; `region` is what
    the map lies on.
    """
    flat = is_flat(raw_map)
    row, column = np.unravel_index(int(raw_map.argmax()), raw_map.shape)
    (rows, columns), (height, width) = raw_map.shape, resized.shape
    x = region.left + (column + 0.5) * (region.right - region.left) / columns
    y = region.top + (row + 0.5) * (region.bottom - region.top) / rows
    return {
        "peak_x": None if flat else int(np.clip(x, 0, width - 1)),
        "peak_y": None if flat else int(np.clip(y, 0, height - 1)),
        "area_above_half": None if flat else rounded(_share_above_half(resized)),
        "flatness": rounded(flatness(raw_map)),
    }


def _share_above_half(resized: np.ndarray) -> float:
    """Of the pixels; counted, which takes a third of the time of a mean."""
    return np.count_nonzero(resized > 0.5 * np.nanmax(resized)) / resized.size


def in_both_languages(name: str, message: Message | None) -> dict[str, str | None]:
    """What a record has of a message: {name: Chinese, name_en: English}, of none {name: None}."""
    if message is None:
        return {name: None}
    return {name: message.in_language("zh"), name + ENGLISH: message.in_language("en")}


def sentence_in(row: Mapping, name: str, lang: str) -> str | None:
    """What a record says in one of LANGUAGES; in Chinese where an earlier version wrote it."""
    return row.get(name + ENGLISH if lang == "en" else name) or row.get(name)


def row_in_language(row: Mapping, lang: str) -> dict:
    """A row whose own words are of one of LANGUAGES."""
    sentences = {name: sentence_in(row, name, lang) for name in SENTENCES if name in row}
    setting = {"setting": label_in_language(row["setting"], lang)} if row.get("setting") else {}
    return {**row, **sentences, **setting}


def shown_row(row: Mapping, image, labels: Sequence[int], names: Sequence[str], tolerance: float) -> dict:
    """A row of a record as it stands in the tables: what the list of cases says of the image, names for indices.

    `image`: a PlannedImage; `labels`: indices of the texts that are true of it; `tolerance`: pixels of 224 x 224.
    """
    shown = {**row, **image.columns}
    if image.case is None:
        return shown
    true, annotated = [names[label] for label in labels], row.get("annotated")
    correct = row["predicted"] in true if true and "predicted" in row else None
    is_right = annotated is not None and row["predicted"] == names[annotated]
    return shown | {
        "label": ";".join(true) or None,
        "correct": correct,
        "case": None if annotated is None else CASE_OF[is_right, is_near(row["distance"], tolerance)],
        "annotated": None if annotated is None else names[annotated],
    }


def is_near(distance: float | None, tolerance: float) -> bool:
    """Whether a peak counts as inside; an empty map has none."""
    return distance is not None and distance <= tolerance


def in_order(row: Mapping, columns: Sequence[str], names: Sequence[str]) -> dict:
    """A row's columns as the tables have them, then the texts' names and probabilities."""
    ordered = {column: row[column] for column in columns if column in row}
    return ordered | ({"names": names, "probabilities": row["probabilities"]} if "probabilities" in row else {})


def rounded(value) -> float | None:
    """To 6 decimals: what a heatmap's arithmetic in float32 is good for. None for what is no number: JSON has none."""
    return round(float(value), 6) if math.isfinite(value) else None


def six_digits(value) -> float | None:
    """A probability to 6 significant digits, however small it is: 4.6e-7 is not 0."""
    return float(f"{value:.6g}") if math.isfinite(value) else None


def name_below(folder: Path, path: Path | None) -> str | None:
    """A file's name relative to the output folder, with forward slashes on every system."""
    return None if path is None else path.relative_to(folder).as_posix()


PACKAGES = ("torch", "torchvision", "transformers", "pillow", "opencv-python", "matplotlib", "numpy")
INSTEAD = {"opencv-python": ("opencv-python-headless", "opencv-contrib-python", "opencv-contrib-python-headless")}

CASE_COLUMNS = (  # of runs over a list of cases alone
    "label",  # short names of the texts that are true of the image, parted by ";": the list's, else the annotated ones
    "correct",  # whether the predicted text is one of them
    "case",  # one of evaluation's CASES
    "distance",  # of the peak from the annotation, in pixels of an image of 224 x 224; 0 inside
    "annotated",  # short name of the text whose annotation the heatmap was measured on
    "annotation_area",  # share of the image
    "energy",  # share of the heatmap inside the annotation
    "iou_half",  # of the annotation and where the heatmap is above half of its maximum
    "iou_otsu",  # of the annotation and where the heatmap is above Otsu's threshold
    "contrast_to_noise",  # (mean inside - mean outside) / sqrt(variance inside + variance outside)
)
COLUMNS = (  # in the order in which a reader needs them; a list's own columns follow "image"
    "id",  # the list's, else the path below the images' common folder
    "image",  # path as it was found, or as the list has it
    "label",
    "predicted",  # short name of the most similar text
    "correct",
    "target_text_idx",
    "target",  # short name of the explained text
    "rank",  # of the explained text by its similarity, 1 the most similar
    "probability",
    "similarity",  # cosine, of the explained text
    "case",
    "distance",
    "warning",
    "error",  # why there is no heatmap
    "peak_x",  # where the heatmap is highest, in the image's pixels from its upper left corner
    "peak_y",
    "area_above_half",  # share of the image where the heatmap is above half of its maximum
    "text_specificity",  # 1 - mean correlation with the maps of the other texts; 0: the map ignores the text
    "flatness",  # lowest / highest value of the map; 1: one colour
    "annotated",
    "annotation_area",
    "energy",
    "iou_half",
    "iou_otsu",
    "contrast_to_noise",
    "deletion",  # area under the score as the heatmap's pixels are taken away, strongest first; lower is better
    "insertion",  # the same as they are put in; higher is better
    "deletion_margin",  # a random map's area minus deletion, positive is better than chance
    "insertion_margin",  # insertion minus a random map's area
    "words",  # JSON: what each word of the explained text adds to the similarity, see `words_in_order`
    "method",
    "setting",  # the heatmap's name, as figures have it: the method, layers, what is explained and taken off
    "explained",  # cosine or dot
    "contrast",  # gamma of the contrastive target, 0 for none
    "subtracted",  # share of what the other texts hold that is taken off, 0 for none
    "image_encoder",
    "layer",
    "grid",  # rows x columns of the map at the layer
    "width",
    "height",
    "seen",  # share of the image that the model's preprocessing let it see
    "figure",
    "overlay",
    "heatmap",
    "layer_heatmap",
    "checkpoint",  # fingerprint of its content
    "packages",  # then the probability of each text
)
# (whether the annotated text is predicted, whether the peak is within the tolerance): what the column `case` says
CASE_OF = dict(zip(itertools.product((True, False), repeat=2), CASES))


def list_columns(columns: Sequence[str]) -> dict[str, str]:
    """{a list's column: its name in the tables}: where the tables have a column of that name, `list_` before it."""
    taken, renamed = {*COLUMNS, "names", "probabilities"}, {}
    for column in columns:
        name = column
        while name in taken or (name != column and name in columns):
            name = f"list_{name}"
        renamed[column] = name
    return renamed


def table_columns(carried: Sequence[str] | None) -> list[str]:
    """The tables' columns but for the probabilities; `carried`: the list's own, None where there is no list."""
    if carried is None:
        return [column for column in COLUMNS if column not in CASE_COLUMNS]
    after = COLUMNS.index("image") + 1
    return [*COLUMNS[:after], *carried, *COLUMNS[after:]]


def package_versions() -> str:
    """Python and each package that a heatmap depends on, "name version" separated by semicolons."""
    versions = [f"python {platform.python_version()}"]
    for package in PACKAGES:
        for name in (package, *INSTEAD.get(package, ())):
            try:
                versions.append(f"{name} {importlib.metadata.version(name)}")
                break
            except importlib.metadata.PackageNotFoundError:
                continue
    return "; ".join(versions)


# What a spreadsheet may take for a formula: its first characters, also full-width, after blanks and quotes it may drop.
_FORMULA = re.compile(r"""[\s\x00-\x1f'"‘’“”＇＂]*[=+\-@＝＋－＠﹢﹣−⁺⁻﹦⁼﹫]|[\t\r]""")


def csv_cell(value):
    """A value as a CSV cell: empty for None, JSON for a list; a text on one line that is no spreadsheet's formula."""
    if isinstance(value, list):
        return json_line(value, ensure_ascii=False).rstrip("\n")
    if isinstance(value, str):
        return ("'" if _FORMULA.match(value) else "") + escape_unprintable(value)
    return "" if value is None else value


def csv_line(cells: Sequence) -> str:
    buffer = io.StringIO(newline="")
    csv.writer(buffer).writerow([csv_cell(cell) for cell in cells])
    return buffer.getvalue()


def json_line(value, ensure_ascii: bool = True) -> str:
    """One line, in ASCII or with its letters. Any path comes back as it was, even one that is no valid Unicode."""
    text = json.dumps(value, ensure_ascii=ensure_ascii, separators=(",", ":"))
    return escape_unprintable(text, _as_json) + "\n"


def json_page(value) -> str:
    """Lines for a reader, indented; what is no visible character is escaped as in `json_line`."""
    lines = json.dumps(value, ensure_ascii=False, indent=1).split("\n")
    return "".join(escape_unprintable(line, _as_json) + "\n" for line in lines)


def _as_json(character: str) -> str:
    return json.dumps(character)[1:-1] if ord(character) > 0xFFFF else f"\\u{ord(character):04x}"
