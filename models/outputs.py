"""What is known of one image, the files that show it (figure or grid, overlays, arrays), and its rows of the tables."""

import os
from collections.abc import Iterator, Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import NamedTuple

import numpy as np

from .figure import FigureContent, GridContent, draw_figure, draw_grid, encode_figure
from .files import array_path, encode_array, encode_image, figure_file, overlay_path, thin, write_files
from .heatmap import TEXT_INSENSITIVE, blend, flatness, is_flat, resize_map, show_cam_on_image, to_heatmap, two_decimals


class Question(NamedTuple):
    """What is asked of every image."""

    names: list[str]  # K short names
    texts: list[str]  # K texts as the model reads them
    targets: Sequence[int] | None = None  # which are explained; None: the most similar one of each image
    contrast: float = 0.0  # gamma of `contrastive_directions`


class ImageMaps(NamedTuple):
    """What the model says of one image and each of K texts."""

    maps: np.ndarray  # float32 [K, h, w] at the target layer, before the ReLU
    gradient_peaks: np.ndarray  # [K]
    similarities: np.ndarray  # [K] cosine
    probabilities: np.ndarray  # [K]


class ImageResult(NamedTuple):
    """One image against K texts, T of them explained."""

    pixels: np.ndarray  # RGB uint8 [H, W, 3]
    maps: np.ndarray  # float32 [K, h, w] at the target layer, before the ReLU
    question: Question
    probabilities: np.ndarray  # [K]
    similarities: np.ndarray  # [K] cosine
    targets: list[int]  # T
    source: tuple  # image encoder, target layer, rows, columns of its grid
    flaws: list[str | None]  # T, why a map shows nothing
    sensitivities: list[float | None]  # T, see text_sensitivity

    def resized_maps(self) -> Iterator[np.ndarray]:
        """[H, W] float32 of each explained text, after the ReLU, at the image's size, in its own unit."""
        return (resize_map(self.maps[target], self.pixels.shape[:2]) for target in self.targets)

    def heatmaps(self) -> Iterator[np.ndarray]:
        """[H, W] in [0, 1] of each explained text, all on one scale: 1 is the largest value of any of them."""
        scale = None
        if len(self.targets) > 1:
            drawn = (m for t, m in zip(self.targets, self.resized_maps()) if not is_flat(self.maps[t]))
            scale = max((float(resized.max()) for resized in drawn), default=None)
        return (to_heatmap(self.maps[target], self.pixels.shape[:2], scale) for target in self.targets)

    def warnings(self) -> list[str | None]:
        """What the reader of each explained text's map must know: it is empty, or it ignores the text."""
        return [flaw or self._insensitive(value) for flaw, value in zip(self.flaws, self.sensitivities)]

    @staticmethod
    def _insensitive(value: float | None) -> str | None:
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


def encode_outputs(result: ImageResult, save_path: str | os.PathLike, choice: OutputChoice) -> OutputFiles:
    """Draw and encode every file of an image: the figure at `save_path`, the others beside it."""
    figure_path = figure_file(save_path)
    numbers = [None] if len(result.targets) == 1 else result.targets
    overlays = [overlay_path(figure_path, number) for number in numbers]
    files = OutputFiles(figure_path if choice.figure else None, overlays, [], [], {})
    shown = []
    for path, heatmap in zip(overlays, result.heatmaps()):
        overlay = blend(result.pixels, heatmap)
        files.contents[path] = encode_image(overlay, path.suffix)
        shown.append((heatmap, overlay) if len(overlays) == 1 else (None, thin(overlay, TILE_SIDE)))
    if choice.heatmap:
        for number, target, resized in zip(numbers, result.targets, result.resized_maps()):
            for kind, paths, array in (
                ("heatmap", files.heatmaps, resized),
                ("heatmap_layer", files.layer_heatmaps, np.maximum(result.maps[target], 0)),
            ):
                paths.append(array_path(figure_path, kind, number))
                files.contents[paths[-1]] = encode_array(array)
    if not choice.figure:
        return files
    drawn = {figure_path: encode_figure(draw_result(result, shown, choice.lang), figure_path.suffix)}
    return files._replace(contents={**drawn, **files.contents})


def draw_result(result: ImageResult, shown, lang: str):
    """The figure of one explained text, or the grid of several; `shown`: (heatmap, overlay) of each."""
    common = {
        "pixels": result.pixels,
        "names": result.question.names,
        "texts": result.question.texts,
        "probabilities": result.probabilities,
        "similarities": result.similarities,
        "source": result.source,
        "contrast": result.question.contrast,
    }
    if len(shown) > 1:
        overlays = [overlay for _, overlay in shown]
        grid = GridContent(
            **common,
            overlays=overlays,
            targets=result.targets,
            warnings=result.flaws,
            sensitivities=result.sensitivities,
        )
        return draw_grid(grid, lang)
    ((heatmap, overlay),) = shown
    content = FigureContent(
        **common,
        heatmap=heatmap,
        overlay=overlay,
        target=result.target,
        warning=result.flaws[0],
        sensitivity=result.sensitivities[0],
    )
    return draw_figure(content, lang)


def save_results(result: ImageResult, save_path: str | os.PathLike, choice: OutputChoice | None = None) -> list[Path]:
    """Write the figure at `save_path` and an overlay of each explained text beside it; returns the paths."""
    contents = encode_outputs(result, save_path, choice or OutputChoice()).contents
    write_files(contents)
    return list(contents)


# ---------------------------------------------------------------------------------------------
# Rows of the tables


def table_rows(result: ImageResult, files: OutputFiles, image: str, folder: Path, run: Mapping) -> list[dict]:
    """A row of `results.COLUMNS` per explained text, and the probability of every text.

    `image`: the path as found; files are named relative to `folder`; `run`: what is the same in all rows.
    """
    question = result.question
    height, width = result.pixels.shape[:2]
    encoder, layer, rows, columns = result.source
    common = {
        "image": image,
        "width": width,
        "height": height,
        "predicted": question.names[int(result.probabilities.argmax())],
        "method": "gradcam",
        "contrast": question.contrast,
        "image_encoder": encoder,
        "layer": layer,
        "grid": f"{rows}x{columns}",
        "figure": name_below(folder, files.figure),
        "names": question.names,
        "probabilities": [rounded(p) for p in result.probabilities],
        **run,
    }
    of_text = zip_longest(
        result.targets,
        result.resized_maps(),
        result.sensitivities,
        result.warnings(),
        files.overlays,
        files.heatmaps,
        files.layer_heatmaps,
    )
    return [
        {
            **common,
            "target_text_idx": target,
            "target": question.names[target],
            "similarity": rounded(result.similarities[target]),
            "probability": rounded(result.probabilities[target]),
            **measure_map(result.maps[target], resized),
            "text_sensitivity": None if sensitivity is None else rounded(sensitivity),
            "warning": warning,
            "overlay": name_below(folder, overlay),
            "heatmap": name_below(folder, heatmap),
            "layer_heatmap": name_below(folder, layer_heatmap),
        }
        for target, resized, sensitivity, warning, overlay, heatmap, layer_heatmap in of_text
    ]


def measure_map(raw_map: np.ndarray, resized: np.ndarray) -> dict:
    """Where a map is highest, how wide and how flat it is; `raw_map` [h, w], `resized` the same at [H, W].

    The peak is the centre of the strongest cell, in pixels from the image's upper left corner.
    """
    flat = is_flat(raw_map)
    row, column = np.unravel_index(int(raw_map.argmax()), raw_map.shape)
    scale_y, scale_x = np.array(resized.shape) / raw_map.shape
    return {
        "peak_x": None if flat else int((column + 0.5) * scale_x),
        "peak_y": None if flat else int((row + 0.5) * scale_y),
        "area_above_half": None if flat else rounded((resized > 0.5 * resized.max()).mean()),
        "flatness": rounded(flatness(raw_map)),
    }


def rounded(value) -> float:
    """To 6 decimals: what a heatmap's arithmetic in float32 is good for."""
    return round(float(value), 6)


def name_below(folder: Path, path: Path | None) -> str | None:
    """A file's name relative to the output folder, with forward slashes on every system."""
    return None if path is None else path.relative_to(folder).as_posix()
