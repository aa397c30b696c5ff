"""The four-panel figure: what the model saw, where it looked, and what it concluded.

Knows nothing of models: `draw_figure` takes a FigureContent and returns a matplotlib Figure. Chinese is
drawn on every machine, by a system font that has the glyphs or else by the one in `models/assets/fonts`.
"""

import re
import unicodedata
from pathlib import Path
from typing import NamedTuple

import numpy as np

from .errors import InputError

SHIPPED_FONT = Path(__file__).resolve().parent / "assets" / "fonts" / "wqy-microhei.ttc"


def import_cv2():
    """OpenCV, or what to install where its system library is missing."""
    try:
        import cv2
    except ImportError as error:
        raise InputError(
            f"无法载入 OpenCV（{error}）；若缺少 libGL，"
            "请执行 pip install opencv-python-headless，或 apt-get install libgl1 libglib2.0-0"
        ) from error
    return cv2


LANGUAGES = ("zh", "en")
FIGURE_WORDS = {
    "image": ("原始图像", "Original image"),
    "heatmap": ("Grad-CAM热力图", "Grad-CAM heatmap"),
    "overlay": ("叠加结果", "Overlay"),
    "probabilities": ("预测概率分布", "Predicted probabilities"),
    "top": ("（前 {} 个，共 {} 个）", " (top {} of {})"),
    "target": ("目标文本：{}", "Target text: {}"),
    "scale": ("相对重要性（0–1，以本图最大值为 1）", "Relative importance (0–1, 1 is this image's maximum)"),
    "probability": ("概率（%）", "Probability (%)"),
    "prediction": ("预测", "Predicted"),
    "chosen": ("目标", "Target"),
    "both": ("预测且为目标", "Predicted and target"),
    "source": ("图像编码器 {}　目标层 {}（{}×{}）", "Image encoder {}   target layer {} ({}×{})"),
}

# Tried in this order; the font that ships with the project is last.
# fmt: off
CHINESE_FONTS = (
    "Noto Sans CJK SC", "Noto Sans SC", "Source Han Sans SC", "Source Han Sans CN", "Microsoft YaHei", "PingFang SC",
    "Hiragino Sans GB", "SimHei", "WenQuanYi Zen Hei", "WenQuanYi Micro Hei", "Droid Sans Fallback",
)
# fmt: on
LATIN_FONT = "DejaVu Sans"  # comes with matplotlib


class FigureFonts:
    """Font families that draw a figure's text, and the text itself where no font has a glyph for it."""

    def __init__(self, sample: str):
        from matplotlib import font_manager

        installed = {font.name: font.fname for font in font_manager.fontManager.ttflist}
        paths = [installed[name] for name in CHINESE_FONTS if name in installed]
        chosen = next((path for path in paths if self._draws(path, sample)), None)
        if chosen is None:
            chosen = str(SHIPPED_FONT)
            if not any(font.fname == chosen for font in font_manager.fontManager.ttflist):
                font_manager.fontManager.addfont(chosen)
        self._fonts = [font_manager.get_font(chosen), font_manager.get_font(installed[LATIN_FONT])]
        self.families = [font.family_name for font in self._fonts]

    @staticmethod
    def _draws(path, sample) -> bool:
        """Whether the font at `path` has a glyph for every Chinese character of `sample`."""
        from matplotlib import font_manager

        font = font_manager.get_font(path)
        return all(font.get_char_index(ord(character)) for character in sample if ord(character) >= 0x2E80)

    def drawable(self, text: str) -> str:
        """`text` on one line, with a question mark for each character that none of the fonts has."""
        return "".join(
            c if any(font.get_char_index(ord(c)) for font in self._fonts) else "?" for c in " ".join(text.split())
        )


def _width(text: str) -> int:
    """How many columns of type a text takes: 2 for a Chinese character, 1 for a Latin one."""
    return sum(2 if unicodedata.east_asian_width(character) in "WF" else 1 for character in text)


def wrap_text(text: str, columns: int, lines: int) -> str:
    """Break `text` into at most `lines` lines of `columns` columns (a Chinese character takes two); … where cut.

    Breaks between Chinese characters, and between Latin words where a word is shorter than a line.
    """
    rows = [""]
    for piece in re.findall(r"[!-~]+ ?|.", text):  # a Latin word with its space, or one character
        for part in [piece] if _width(piece) <= columns else piece:
            if _width(rows[-1]) + _width(part.rstrip()) > columns:
                rows.append("")
            rows[-1] += part
    rows = [row.strip() for row in rows]
    if len(rows) > lines:
        last = rows[lines - 1]
        while _width(last) > columns - 1:
            last = last[:-1]
        rows = [*rows[: lines - 1], last + "…"]
    return "\n".join(rows)


class FigureContent(NamedTuple):
    """Everything that the figure shows of one image and one explained text."""

    pixels: np.ndarray  # RGB uint8 [H, W, 3]
    heatmap: np.ndarray  # [H, W] in [0, 1]
    overlay: np.ndarray  # RGB float [H, W, 3] in [0, 1]
    names: list[str]  # K short names
    texts: list[str]  # K texts as the model reads them
    probabilities: np.ndarray  # [K]
    similarities: np.ndarray  # [K] cosine
    target: int
    source: tuple  # image encoder, target layer, rows, columns of its grid
    warning: str | None = None  # why the heatmap is empty


PANEL_WIDTH, MAX_BARS = 5.0, 10  # inches; bars
FIGURE_DPI = 120
BAR_COLOURS = {"both": "#c0392b", "prediction": "#e67e22", "chosen": "#2471a3", "other": "#aab7b8"}


def draw_figure(content: FigureContent, lang: str = "zh"):
    """Draw the four panels; returns a matplotlib Figure. `lang` ("zh", "en") is the figure's own language."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    words = {name: translations[LANGUAGES.index(lang)] for name, translations in FIGURE_WORDS.items()}
    shown = "".join([*words.values(), *content.names, content.texts[content.target], content.warning or ""])
    fonts = FigureFonts(shown)
    height, width = content.pixels.shape[:2]
    panel_height = float(np.clip(PANEL_WIDTH * height / width, 3.4, 6.4))
    figure_width = 2 * PANEL_WIDTH + 2.2
    figure_height = 2 * panel_height + 2.6
    with rc_context({"font.family": fonts.families, "axes.unicode_minus": False, "svg.fonttype": "path"}):
        figure = Figure(figsize=(figure_width, figure_height), dpi=FIGURE_DPI)

        def panel(left, bottom, width=PANEL_WIDTH, height=panel_height):
            box = (left / figure_width, bottom / figure_height, width / figure_width, height / figure_height)
            return figure.add_axes(box)

        upper, lower, right = panel_height + 1.6, 0.7, PANEL_WIDTH + 0.9
        _draw_image(panel(0.3, upper), content.pixels, words["image"])
        _draw_heatmap(panel(right, upper), panel_height, content, words, fonts)
        _draw_image(panel(0.3, lower), content.overlay, words["overlay"])
        label_width = 2.1
        _draw_probabilities(panel(right + label_width, lower, PANEL_WIDTH - label_width + 0.5), content, words, fonts)
        encoder, layer, rows, columns = content.source
        note = words["source"].format(encoder, fonts.drawable(layer), rows, columns)
        figure.text(0.3 / figure_width, 0.18 / figure_height, note, fontsize=9, color="#555555", parse_math=False)
    return figure


def _draw_image(axes, pixels, title, **options):
    """One image panel, the original's aspect ratio kept; large images are thinned to what the panel shows."""
    cv2 = import_cv2()
    limit = int(PANEL_WIDTH * FIGURE_DPI * 1.3)
    height, width = pixels.shape[:2]
    shrink = max(height, width) / limit
    if shrink > 1:
        size = max(1, round(width / shrink)), max(1, round(height / shrink))
        pixels = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)
    axes.set_title(title, fontsize=14, pad=8, parse_math=False)  # a pair of dollars is no formula
    axes.set_axis_off()
    return axes.imshow(pixels, extent=(0, width, height, 0), interpolation="bilinear", **options)


def _draw_heatmap(axes, panel_height, content, words, fonts):
    """The heatmap with the target text as its title and a labelled colour bar beside it."""
    name, text = content.names[content.target], content.texts[content.target]
    target = fonts.drawable(text if name == text else f"{name}（{text}）")
    title = words["heatmap"] + "\n" + wrap_text(words["target"].format(target), 58, 2)
    shown = _draw_image(axes, content.heatmap, title, cmap="jet", vmin=0, vmax=1)
    axes.title.set_fontsize(12)
    height, width = content.heatmap.shape
    shown_width = min(PANEL_WIDTH, panel_height * width / height)  # inches
    if width > 2 * height:  # too low for a bar with its label at the side
        place, orientation = (
            [0, -0.3 * width / shown_width / height, 1, 0.15 * width / shown_width / height],
            "horizontal",
        )
    else:
        place, orientation = [1 + 0.15 / shown_width, 0, 0.18 / shown_width, 1], "vertical"
    bar = axes.figure.colorbar(shown, cax=axes.inset_axes(place), orientation=orientation)
    bar.set_label(words["scale"], fontsize=9)
    bar.ax.tick_params(labelsize=8)
    if content.warning:
        message = wrap_text(fonts.drawable(content.warning), 40, 8)
        box = {"facecolor": "white", "edgecolor": "#c0392b", "boxstyle": "round,pad=0.6"}
        options = {"ha": "center", "va": "center", "fontsize": 10, "bbox": box, "parse_math": False}
        axes.text(0.5, 0.5, message, transform=axes.transAxes, **options)


def _bars(content) -> list[int]:
    """Indices of the texts that get a bar, likeliest first: all, or the ten likeliest with the target among them."""
    order = [int(i) for i in np.argsort(-content.probabilities, kind="stable")]
    bars = order[:MAX_BARS]
    return bars if content.target in bars else [*bars[:-1], content.target]


def _draw_probabilities(axes, content, words, fonts):
    """A bar for each class, the likeliest on top; prediction and target are marked by colour and legend."""
    from matplotlib.patches import Patch

    bars = _bars(content)
    prediction = int(content.probabilities.argmax())

    def kind(index):
        if index == prediction:
            return "both" if index == content.target else "prediction"
        return "chosen" if index == content.target else "other"

    percent = content.probabilities[bars] * 100
    axes.barh(range(len(bars)), percent, height=0.6, color=[BAR_COLOURS[kind(i)] for i in bars])
    for row, value in enumerate(percent):
        axes.text(value + 1.5, row, f"{value:.1f}%", va="center", fontsize=9)
    labels = [wrap_text(fonts.drawable(content.names[i]), 22, 2) for i in bars]
    axes.set_yticks(range(len(bars)), labels, fontsize=9, parse_math=False)
    axes.set_ylim(max(len(bars), 3) - 0.4, -0.6)
    axes.set_xlim(0, 118)
    axes.set_xticks(range(0, 101, 20))
    axes.tick_params(axis="x", labelsize=8)
    axes.set_xlabel(words["probability"], fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    cut = words["top"].format(len(bars), len(content.names)) if len(bars) < len(content.names) else ""
    axes.set_title(words["probabilities"] + cut, fontsize=14, pad=26)
    kinds = [k for k in ("both", "prediction", "chosen") if k in map(kind, bars)]
    handles = [Patch(color=BAR_COLOURS[k], label=words[k]) for k in kinds]
    axes.legend(handles=handles, loc="lower right", bbox_to_anchor=(1, 1), ncols=3, fontsize=9, frameon=False)
