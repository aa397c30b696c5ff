"""What is known of one image, the files that show it (figure or grid, overlays, arrays), and its rows of the tables."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import NamedTuple

import numpy as np

from .errors import InputError
from .figure import FigureContent, GridContent, draw_figure, draw_grid, encode_figure
from .files import array_path, encode_array, encode_image, figure_file, overlay_path, thin, write_files
from .heatmap import (
    METHOD_LABELS,
    TEXT_FREE,
    TEXT_INSENSITIVE,
    blend,
    flatness,
    is_flat,
    resize_map,
    show_cam_on_image,
    to_heatmap,
    two_decimals,
)
from .preprocessing import Region


class Question(NamedTuple):
    """What is asked of every image."""

    names: list[str]  # K short names
    texts: list[str]  # K texts as the model reads them
    targets: Sequence[int] | None = None  # which are explained; None: the most similar one of each image
    contrast: float = 0.0  # gamma of `contrastive_directions`
    method: str = "gradcam"  # one of METHOD_LABELS, or "all"
    similarity: str = "cosine"  # or "dot": what is explained
    faithfulness: bool = False  # whether each heatmap is tested by deletion and insertion
    img_size: int | None = None  # side of the model's input where the model does not say

    def targets_of(self, image: ImageMaps) -> list[int]:
        """Indices of the texts that are explained of an image."""
        return [int(image.similarities.argmax())] if self.targets is None else list(self.targets)


def explained_texts(target_text_idx, count: int) -> list[int] | None:
    """None, "all", an int or several -> indices without repetition, None for the most similar; InputError if none."""
    if target_text_idx is None:
        return None
    if isinstance(target_text_idx, str):
        if target_text_idx != "all":
            raise InputError(f'目标文本索引应是整数、整数列表或 "all"，收到 {target_text_idx!r}')
        return list(range(count))
    targets = np.atleast_1d(np.asarray(target_text_idx))
    if targets.ndim > 1 or targets.size == 0 or not np.issubdtype(targets.dtype, np.integer):
        raise InputError(f"目标文本索引应是整数，收到 {target_text_idx!r}")
    if targets.min() < 0 or targets.max() >= count:
        raise InputError(f"目标文本索引 {target_text_idx} 超出范围：共 {count} 个文本，可用 0 到 {count - 1}")
    return list(dict.fromkeys(targets.tolist()))


class ImageMaps(NamedTuple):
    """What the model says of one image and each of K texts."""

    maps: np.ndarray  # float32 [K, h, w] at the target layer, before the ReLU
    gradient_peaks: np.ndarray  # [K]
    similarities: np.ndarray  # [K] cosine
    probabilities: np.ndarray  # [K]
    faithfulness: list | None = None  # T, where the explained texts' maps were tested


class ImageResult(NamedTuple):
    """One image against K texts, T of them explained by one method. Frozen; shows its figure in a notebook."""

    pixels: np.ndarray  # RGB uint8 [H, W, 3]
    maps: np.ndarray  # float32 [K, h, w] at the target layer, before the ReLU
    question: Question
    probabilities: np.ndarray  # [K]
    similarities: np.ndarray  # [K] cosine
    targets: list[int]  # T
    source: tuple  # image encoder, target layer, rows, columns of its grid
    flaws: list[str | None]  # T, why a map shows nothing
    sensitivities: list[float | None]  # T, see text_sensitivity
    method: str = "gradcam"
    region: Region | None = None  # the part of the image that the model saw; None: all of it
    faithfulness: list | None = None  # T of models.faithfulness.Faithfulness, None for an empty map
    independent: bool = False  # whether each text has a probability of its own (a sigmoid): they need not sum to 1

    def resized_maps(self) -> Iterator[np.ndarray]:
        """[H, W] float32 of each explained text, after the ReLU, in its own unit; NaN where the model saw nothing."""
        return (resize_map(self.maps[target], self.pixels.shape[:2], self.region) for target in self.targets)

    def heatmaps(self) -> Iterator[np.ndarray]:
        """[H, W] in [0, 1] of each explained text, all on one scale: 1 is the largest value of any of them."""
        scale = None
        if len(self.targets) > 1:
            drawn = (m for t, m in zip(self.targets, self.resized_maps()) if not is_flat(self.maps[t]))
            scale = max((float(np.nanmax(resized)) for resized in drawn), default=None)
        size = self.pixels.shape[:2]
        return (to_heatmap(self.maps[target], size, scale, self.region) for target in self.targets)

    def warnings(self) -> list[str | None]:
        """What the reader of each explained text's map must know: it is empty, or it ignores the text."""
        return [flaw or self._insensitive(value) for flaw, value in zip(self.flaws, self.sensitivities)]

    def _insensitive(self, value: float | None) -> str | None:
        if self.method in TEXT_FREE:
            return f"{METHOD_LABELS[self.method]} 不看文本：无论问什么，热力图都一样"
        if value is None or value < TEXT_INSENSITIVE:
            return None
        known = f"文本敏感度 {two_decimals(value)}，1 表示完全不变"
        return f"热力图几乎不随文本变化（{known}）：它显示的不是这段文本特有的依据"

    def messages(self) -> list[str]:
        """The warnings, each once; with several texts, after the names of those it is about."""
        about: dict[str, list[str]] = {}
        for target, warning in zip(self.targets, self.warnings()):
            if warning:
                about.setdefault(warning, []).append(self.question.names[target])
        alone = len(self.targets) == 1
        return [warning if alone else f"{'、'.join(names)}：{warning}" for warning, names in about.items()]

    # of the only, or the first, explained text

    @property
    def target(self) -> int:
        return self.targets[0]

    @property
    def heatmap(self) -> np.ndarray:
        return next(iter(self.heatmaps()))

    @property
    def overlay(self) -> np.ndarray:
        """RGB float32 [H, W, 3] in [0, 1]."""
        return show_cam_on_image(self.pixels, self.heatmap)

    @property
    def map(self) -> np.ndarray:
        """float32 [H, W] at the image's size, after the ReLU, in its own unit; NaN where the model saw nothing."""
        return next(self.resized_maps())

    @property
    def layer_map(self) -> np.ndarray:
        """float32 [h, w] at the target layer, after the ReLU, in its own unit."""
        return np.maximum(self.maps[self.target], 0)

    # what was asked and where the answer comes from

    @property
    def names(self) -> list[str]:
        return self.question.names

    @property
    def texts(self) -> list[str]:
        return self.question.texts

    @property
    def layer(self) -> str:
        return self.source[1]

    @property
    def geometry(self) -> Region:
        """The rectangle of the image, in its pixels, that the map covers."""
        height, width = self.pixels.shape[:2]
        return self.region or Region(0.0, 0.0, float(width), float(height))

    def _repr_png_(self) -> bytes:
        return Results([self])._repr_png_()


class Results(tuple):
    """What several methods, or one, say of one image: ImageResults over the same pixels and texts."""

    def messages(self) -> list[str]:
        """The warnings of all, each once; with several methods, after the method's name."""
        alone = len(self) == 1
        every = (r for r in self if alone or r.method not in TEXT_FREE)
        labelled = (m if alone else f"{METHOD_LABELS[r.method]}：{m}" for r in every for m in r.messages())
        return list(dict.fromkeys(labelled))

    def _repr_png_(self) -> bytes:
        alone = len(file_marks(self)) == 1
        return encode_figure(draw_results(self, [for_figure(*drawn, alone) for drawn in self.drawn()], "zh"), ".png")

    def drawn(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """(heatmap [H, W], overlay uint8 [H, W, 3]) of each explained text and method."""
        return ((heatmap, blend(r.pixels, heatmap)) for r in self for heatmap in r.heatmaps())


class OutputChoice(NamedTuple):
    """Which files are written of an image."""

    figure: bool = True
    heatmap: bool = False
    lang: str = "zh"


class OutputFiles(NamedTuple):
    """The files of an image, whole, in memory."""

    figure: Path | None
    overlays: list[Path]  # T
    heatmaps: list[Path]  # T or none: float32 [H, W], and [h, w] at the layer
    layer_heatmaps: list[Path]
    contents: dict[Path, bytes]


TILE_SIDE = 640  # pixels: what a text's overlay is thinned to in the grid of several


def encode_outputs(results: Results, save_path: str | os.PathLike, choice: OutputChoice) -> OutputFiles:
    """Draw and encode every file of an image: the figure at `save_path`, the others beside it."""
    figure_path = figure_file(save_path)
    marks = file_marks(results)
    overlays = [overlay_path(figure_path, mark) for mark in marks]
    files = OutputFiles(figure_path if choice.figure else None, overlays, [], [], {})
    shown = []
    for path, (heatmap, overlay) in zip(overlays, results.drawn()):
        files.contents[path] = encode_image(overlay, path.suffix)
        shown.append(for_figure(heatmap, overlay, alone=len(overlays) == 1))
    if choice.heatmap:
        arrays = ((m, r.maps[t]) for r in results for t, m in zip(r.targets, r.resized_maps()))
        for mark, (resized, raw_map) in zip(marks, arrays):
            for kind, paths, array in (
                ("heatmap", files.heatmaps, resized),
                ("heatmap_layer", files.layer_heatmaps, np.maximum(raw_map, 0)),
            ):
                paths.append(array_path(figure_path, kind, mark))
                files.contents[paths[-1]] = encode_array(array)
    if not choice.figure:
        return files
    drawn = {figure_path: encode_figure(draw_results(results, shown, choice.lang), figure_path.suffix)}
    return files._replace(contents={**drawn, **files.contents})


def for_figure(heatmap: np.ndarray, overlay: np.ndarray, alone: bool) -> tuple:
    """What a figure needs of a drawn map: of one among several a thinned overlay, so that many take little memory."""
    return (heatmap, overlay) if alone else (None, thin(overlay, TILE_SIDE))


def file_marks(results: Results) -> list[str | int | None]:
    """What tells the files of each explained map apart: nothing for a single one, the text's index, the method."""
    if len(results) > 1:
        return [result.method for result in results]
    targets = results[0].targets
    return [None] if len(targets) == 1 else targets


def draw_results(results: Results, shown, lang: str):
    """The figure of one explained text, or the grid of several texts or methods; `shown`: each (heatmap, overlay)."""
    first = results[0]
    encoder, _, *grid = first.source
    layers = " / ".join(dict.fromkeys(result.layer for result in results))
    common = {
        "pixels": first.pixels,
        "names": first.question.names,
        "texts": first.question.texts,
        "probabilities": first.probabilities,
        "similarities": first.similarities,
        "source": (encoder, layers, *grid),
        "contrast": first.question.contrast,
        "method": first.method,
        "dot_product": first.question.similarity == "dot",
        "independent": first.independent,
        "seen": first.geometry.share(*first.pixels.shape[:2]),
    }
    tested = [f for r in results for f in r.faithfulness or [None] * len(r.targets)]
    if len(shown) > 1:
        overlays = [overlay for _, overlay in shown]
        grid = GridContent(
            **common,
            overlays=overlays,
            targets=[target for r in results for target in r.targets],
            warnings=[flaw for r in results for flaw in r.flaws],
            sensitivities=[value for r in results for value in r.sensitivities],
            methods=[r.method for r in results] if len(results) > 1 else None,
            faithfulness=tested,
        )
        return draw_grid(grid, lang)
    ((heatmap, overlay),) = shown
    content = FigureContent(
        **common,
        heatmap=heatmap,
        overlay=overlay,
        target=first.target,
        warning=first.flaws[0],
        sensitivity=first.sensitivities[0],
        faithfulness=tested[0],
    )
    return draw_figure(content, lang)


def save_results(results: Results, save_path: str | os.PathLike, choice: OutputChoice | None = None) -> list[Path]:
    """Write the figure at `save_path` and an overlay of each explained text beside it; returns the paths."""
    contents = encode_outputs(results, save_path, choice or OutputChoice()).contents
    write_files(contents)
    return list(contents)


def summary(results: Results, files: OutputFiles) -> list[str]:
    """What the command says of one image: prediction, explained texts, layers, and the path of each file."""
    first = results[0]
    names, best = first.question.names, int(first.probabilities.argmax())
    lines = [f"预测：{names[best]}（{first.probabilities[best]:.1%}）"]
    for result in results:
        label = "" if result.method == "gradcam" and len(results) == 1 else f"{METHOD_LABELS[result.method]}："
        tests = result.faithfulness or [None] * len(result.targets)
        for target, sensitivity, tested in zip(result.targets, result.sensitivities, tests):
            depends = "" if sensitivity is None else f"，文本敏感度 {two_decimals(sensitivity)}"
            if tested is not None:
                depends += f"，删除 {tested.deletion:.3f}、插入 {tested.insertion:.3f}、随机 {tested.random:.3f}"
            similarity = f"余弦相似度 {result.similarities[target]:.3f}"
            lines.append(f"{label}目标文本：[{target}] {names[target]}（{similarity}{depends}）")
    for encoder, layer, rows, columns in dict.fromkeys(result.source for result in results):
        lines.append(f"图像编码器：{encoder}，目标层：{layer}（{rows}×{columns}）")
    if first.region is not None:
        share = first.region.share(*first.pixels.shape[:2])
        lines.append(f"模型的预处理只保留了图像的 {int(100 * share)}%，其余部分没有着色")
    kinds = (("可视化图", [files.figure] if files.figure else []), ("叠加图像", files.overlays))
    for kind, paths in (*kinds, ("热力图", files.heatmaps), ("目标层热力图", files.layer_heatmaps)):
        lines += [f"{kind}已保存：{path}" for path in paths]
    return lines


# ---------------------------------------------------------------------------------------------
# Rows of the tables


def table_rows(results: Results, files: OutputFiles, image: str, folder: Path, run: Mapping) -> list[dict]:
    """A row of `results.COLUMNS` per explained text and method, and the probability of every text.

    `image`: the path as found; files are named relative to `folder`; `run`: what is the same in all rows.
    """
    explained = [(result, index) for result in results for index in range(len(result.targets))]
    paths = zip_longest(files.overlays, files.heatmaps, files.layer_heatmaps)
    rows = []
    for (result, index), (overlay, heatmap, layer_heatmap) in zip(explained, paths):
        names = {"figure": files.figure, "overlay": overlay, "heatmap": heatmap, "layer_heatmap": layer_heatmap}
        named = {kind: name_below(folder, path) for kind, path in names.items()}
        rows.append({"image": image, **_row_of_result(result), **_row_of_text(result, index), **named, **run})
    return rows


def _row_of_result(result: ImageResult) -> dict:
    """The columns that all texts of a result share."""
    question = result.question
    height, width = result.pixels.shape[:2]
    encoder, layer, rows, columns = result.source
    return {
        "width": width,
        "height": height,
        "predicted": question.names[int(result.probabilities.argmax())],
        "method": result.method,
        "explained": question.similarity,
        "contrast": question.contrast,
        "image_encoder": encoder,
        "layer": layer,
        "grid": f"{rows}x{columns}",
        "seen": rounded(result.geometry.share(height, width)),
        "names": question.names,
        "probabilities": [rounded(p) for p in result.probabilities],
    }


def _row_of_text(result: ImageResult, index: int) -> dict:
    """The columns of one explained text."""
    target, sensitivity = result.targets[index], result.sensitivities[index]
    tested = result.faithfulness[index] if result.faithfulness else None
    raw_map, size = result.maps[target], result.pixels.shape[:2]
    return {
        "target_text_idx": target,
        "target": result.question.names[target],
        "similarity": rounded(result.similarities[target]),
        "probability": rounded(result.probabilities[target]),
        **measure_map(raw_map, resize_map(raw_map, size, result.region), result.geometry),
        "text_sensitivity": None if sensitivity is None else rounded(sensitivity),
        "warning": result.warnings()[index],
        **{name: None if tested is None else rounded(getattr(tested, name)) for name in FAITHFULNESS_COLUMNS},
    }


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
        "area_above_half": None if flat else rounded((resized > 0.5 * np.nanmax(resized)).mean()),
        "flatness": rounded(flatness(raw_map)),
    }


def rounded(value) -> float:
    """To 6 decimals: what a heatmap's arithmetic in float32 is good for."""
    return round(float(value), 6)


def name_below(folder: Path, path: Path | None) -> str | None:
    """A file's name relative to the output folder, with forward slashes on every system."""
    return None if path is None else path.relative_to(folder).as_posix()
