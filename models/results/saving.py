"""The files that show a result (figure or grid, overlays, arrays), and what the command says of them.

Reads the results themselves: Results of `models.results.result`.
"""

import os
from collections.abc import Sequence
from itertools import zip_longest
from numbers import Integral
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..errors import InputError, check_at_least, check_at_most, closest_hint
from ..messages import LANGUAGES, Joined, Message, current_language, speaking
from ..writing import write_files
from .brief import measured, words_line
from .drawing import TILE_SIDE, draw_results, file_marks, for_figure
from .figure import encode_figure
from .formats import (
    FIGURE_FORMATS,
    OVERLAY_FORMATS,
    VECTOR_FORMATS,
    array_path,
    encode_array,
    encode_image,
    figure_file,
    overlay_path,
    panel_path,
)
from .page import FIGURE_DPI, page_of
from .parts import letter_of, percent

PANELS = ("marks", "files")  # panels have letters; and are files of their own too
DENSITIES = 72, 1200  # pixels to an inch of a figure, the least and the most
HEATMAP_SIZES = {"all": ("heatmap", "heatmap_layer"), "layer": ("heatmap_layer",)}  # which arrays are saved


class OutputChoice(NamedTuple):
    """Which files are written of an image."""

    figure: bool = True
    heatmap: str | None = None  # one of HEATMAP_SIZES
    lang: str | None = None  # of LANGUAGES, None for the result's own
    overlay_format: str | None = None  # of OVERLAY_FORMATS; None: the figure's own
    dpi: int = FIGURE_DPI  # of a figure of pixels, within DENSITIES; overlays keep the image's own pixels
    panels: str | None = None  # one of PANELS
    figure_format: str | None = None  # of FIGURE_FORMATS, where the figure's name has no suffix; None: PNG
    overlay: bool = True

    @property
    def is_nothing(self) -> bool:
        """Whether no file is written."""
        return not (self.figure or self.overlay or self.heatmap)


CHOICES = {
    "heatmap": tuple(HEATMAP_SIZES),
    "lang": LANGUAGES,
    "overlay_format": OVERLAY_FORMATS,
    "panels": PANELS,
    "figure_format": FIGURE_FORMATS,
}


def check_choice(choice: OutputChoice) -> None:
    """InputError, with the closest, where a value is none of CHOICES, or a density none of a figure."""
    if not isinstance(choice.dpi, Integral):
        raise InputError("{} 应是整数，收到 {}", "dpi", repr(choice.dpi))
    check_at_least("dpi", choice.dpi, DENSITIES[0])
    check_at_most("dpi", choice.dpi, DENSITIES[1])
    for option, values in CHOICES.items():
        value = getattr(choice, option)
        if value is not None and value not in values:
            hint = closest_hint(value, values)
            raise InputError("{} 不能是 {!r}；{}可用 {}", option, value, hint, Joined("、", values))


class OutputFiles(NamedTuple):
    """The files of an image, whole, in memory."""

    figure: Path | None
    overlays: list[Path]  # T or none
    heatmaps: list[Path]  # T or none: float32 [H, W], and [h, w] at the layer
    layer_heatmaps: list[Path]
    contents: dict[Path, bytes]
    panels: Sequence[Path] = ()  # of the figure, as files of their own


def encode_outputs(results, save_path: str | os.PathLike, choice: OutputChoice) -> OutputFiles:
    """Make the heatmaps, draw and encode every file of an image: the figure at `save_path`, the others beside it."""
    figure_path = figure_file(save_path, choice.figure_format)
    marks = file_marks(results)
    overlays = [overlay_path(figure_path, mark, choice.overlay_format) for mark in marks if choice.overlay]
    files = OutputFiles(figure_path if choice.figure else None, overlays, [], [], {})
    shown, side = [], _tile_side(figure_path, choice.dpi)
    drawn = results.drawn() if choice.figure or choice.overlay else ()
    for (heatmap, overlay), path in zip_longest(drawn, overlays):
        if path is not None:
            files.contents[path] = encode_image(overlay, path.suffix)
        if choice.figure:
            shown.append(for_figure(heatmap, overlay, len(marks) == 1, side))
    arrays = {  # kind: (paths, maps)
        "heatmap": (files.heatmaps, (resized for result in results for resized in result.resized_maps())),
        "heatmap_layer": (files.layer_heatmaps, (np.maximum(raw, 0) for result in results for raw in result.maps)),
    }
    for kind in HEATMAP_SIZES.get(choice.heatmap, ()):
        paths, maps = arrays[kind]
        for mark, array in zip(marks, maps):
            paths.append(array_path(figure_path, kind, mark))
            files.contents[paths[-1]] = encode_array(array)
    if not choice.figure:
        return files
    drawing = draw_results(results, shown, choice.lang or results.lang, choice.panels is not None)
    drawings = {figure_path: drawing}
    if choice.panels == "files":
        of_panels = map(page_of, drawing.panels)
        drawings |= {panel_path(figure_path, letter_of(number)): panel for number, panel in enumerate(of_panels)}
    encoded = {path: encode_figure(page, path.suffix, choice.dpi) for path, page in drawings.items()}
    return files._replace(contents={**encoded, **files.contents}, panels=[*drawings][1:])


def _tile_side(figure: Path, dpi: int) -> int:
    """Pixels of the longer side of an overlay in the grid."""
    scale = 2 if figure.suffix.lower() in VECTOR_FORMATS else max(1, dpi / FIGURE_DPI)
    return round(scale * TILE_SIDE)


def save_results(results, save_path: str | os.PathLike, choice: OutputChoice | None = None) -> list[Path]:
    """Write the figure at `save_path` and an overlay of each explained text beside it; returns the paths.

    InputError, in the results' language, for a choice that there is not or of no file, or where nothing can be written.
    """
    choice = choice or OutputChoice()
    with speaking(results.lang):
        check_choice(choice)
        if choice.is_nothing:
            raise InputError("没有要写的文件：figure、overlay 和 heatmap 至少要一样")
        contents = encode_outputs(results, save_path, choice).contents
        write_files(contents)
    return list(contents)


GUIDE_HINT = "（默认；--method gradcam 是指南的 Grad-CAM：一层，余弦）"


def summary(results, files: OutputFiles) -> list[str]:
    """What the command says of one image: prediction, explained texts, layers, and the path of each file."""
    first = results[0]
    names, best = first.question.names, first.predicted
    lang = current_language()
    lines = [Message("预测：{}（{}）", names[best], percent(first.probabilities[best]))]
    if len(results) == 1:
        hint = Message(GUIDE_HINT) if first.is_default and not first.is_guide else ""
        lines.append(Message("热力图：{}{}", first.full_label(lang), hint))
    for result in results:
        label = result.full_label(lang)
        label = Message("{}：", Message("默认：{}", label) if result.is_default else label)
        for index, target in enumerate(result.targets):
            similarity = Message("余弦相似度 {:.3f}{}", result.similarities[target], measured(result, index))
            shown = "" if len(results) == 1 else label
            lines.append(Message("{}目标文本：[{}] {}（{}）", shown, target, names[target], similarity))
            lines += words_line(result, index) if len(results) == 1 else []
    lines += words_line(first, 0) if len(results) > 1 else []  # of all methods the same
    for source in dict.fromkeys(result.source for result in results):
        lines.append(Message("图像编码器：{}，目标层：{}（{}×{}）", *source))
    if first.region is not None:
        lines.append(Message("模型的预处理只保留了图像的 {}%，其余部分没有着色", first.seen_percent))
    kinds = (("可视化图", [files.figure] if files.figure else []), ("分图", files.panels), ("叠加图像", files.overlays))
    for kind, paths in (*kinds, ("热力图", files.heatmaps), ("目标层热力图", files.layer_heatmaps)):
        lines += [Message("{}已保存：{}", Message(kind), path) for path in paths]
    return list(map(str, lines))
