"""A page as a file of PDF, by matplotlib; this file is imported where such a file is asked for."""

import threading
from io import BytesIO

from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle

from .page import FIGURE_DPI, Drawing, Line, Picture, Text, font_paths, runs, text_box

_matplotlib_lock = threading.Lock()  # its settings and fonts are of the whole process


def encode_pdf(drawing: Drawing) -> bytes:
    """The page as a file of PDF: letters are text, their font embedded (Type 42); images in their own pixels."""
    buffer = BytesIO()
    with _matplotlib_lock, rc_context({"pdf.fonttype": 42}):
        vector_figure(drawing).savefig(buffer, format="pdf", metadata={"CreationDate": None})
    return buffer.getvalue()


def vector_figure(drawing: Drawing):
    """The page as a matplotlib Figure."""
    figure = Figure(figsize=(drawing.width / FIGURE_DPI, drawing.height / FIGURE_DPI), dpi=FIGURE_DPI)
    for order, item in enumerate(drawing.items):
        if isinstance(item, Text):
            _write_vector(figure, drawing, item, order)
        elif isinstance(item, Line):
            _stroke_vector(figure, drawing, item, order)
        else:
            _place_vector(figure, drawing, item, order)
    return figure


def _place_vector(figure, page, item, order):
    """A box or a picture, at its place in shares of the page."""
    left, bottom = item.left / page.width, 1 - item.bottom / page.height
    width, height = (item.right - item.left) / page.width, (item.bottom - item.top) / page.height
    if isinstance(item, Picture):
        axes = figure.add_axes((left, bottom, width, height), zorder=order)
        axes.set_axis_off()
        axes.imshow(item.own_pixels(), aspect="auto", interpolation="none")
        return
    edge = {"edgecolor": item.outline or "none", "linewidth": 72 / FIGURE_DPI if item.outline else 0}
    rectangle = Rectangle((left, bottom), width, height, facecolor=item.fill, zorder=order, **edge)
    figure.add_artist(rectangle)


def _stroke_vector(figure, page, line, order):
    x, y = zip(*((x / page.width, 1 - y / page.height) for x, y in line.points))
    ends = {"solid_capstyle": "butt", "solid_joinstyle": "round"}
    figure.add_artist(Line2D(x, y, color=line.colour, linewidth=line.width * 72 / FIGURE_DPI, zorder=order, **ends))


def _write_vector(figure, page, text, order):
    left, _, _, bottom = text_box(text)
    for index, run, offset in runs(text):
        x, y = (text.x, bottom - offset) if text.vertical else (left + offset, text.y)
        font = FontProperties(fname=font_paths()[index], size=text.size * 72 / FIGURE_DPI)
        options = {"rotation": 90 * text.vertical, "rotation_mode": "anchor", "va": "baseline", "zorder": order}
        place = x / page.width, 1 - y / page.height
        figure.text(*place, run, fontproperties=font, color=text.colour, parse_math=False, **options)
