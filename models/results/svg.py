"""A page as a file of SVG: its letters stay text, its images keep their own pixels.

The file names fonts and holds none. Where the first is missing another is taken, and each line of text is set to the
length that the layout reckoned with.
"""

import base64
from xml.sax.saxutils import escape, quoteattr

from .formats import encode_image
from .page import FIGURE_DPI, Box, Drawing, Line, Picture, Text, text_length

FAMILIES = (
    *("WenQuanYi Micro Hei", "Noto Sans CJK SC", "Noto Sans SC", "Source Han Sans SC", "Microsoft YaHei"),
    *("PingFang SC", "Hiragino Sans GB", "SimHei", "DejaVu Sans"),
)
ANCHORS = {"l": "start", "m": "middle", "r": "end"}


def encode_svg(drawing: Drawing) -> bytes:
    """The page as a file of SVG, as large as its PDF; the same bytes each time."""
    families = ", ".join([*(f"'{family}'" for family in FAMILIES), "sans-serif"])
    width, height = (_number(side / FIGURE_DPI) for side in (drawing.width, drawing.height))
    lines = [
        '<?xml version="1.0" encoding="UTF-8"?>',
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" version="1.1"'
        f' width="{width}in" height="{height}in" viewBox="0 0 {drawing.width} {drawing.height}"'
        f' xml:space="preserve" font-family="{families}">',
        f'<rect width="{drawing.width}" height="{drawing.height}" fill="#ffffff"/>',
        *(_ELEMENTS[type(item)](item) for item in drawing.items),
        "</svg>\n",
    ]
    return "\n".join(lines).encode()


def _number(value: float) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".")


def _element(name: str, **attributes) -> str:
    """An element without content; what is None is left out, numbers have two decimals."""
    shown = {key.replace("_", "-"): value for key, value in attributes.items() if value is not None}
    shown = {key: value if isinstance(value, str) else _number(value) for key, value in shown.items()}
    return f"<{name} {' '.join(f'{key}={quoteattr(value)}' for key, value in shown.items())}/>"


def _text(text: Text) -> str:
    place = f'x="{text.x}" y="{text.y}"'
    if text.vertical:
        place = f'transform="translate({text.x} {text.y}) rotate(-90)"'
    length = _number(text_length(text.string, text.size))
    fitted = f'text-anchor="{ANCHORS[text.anchor]}" textLength="{length}" lengthAdjust="spacingAndGlyphs"'
    style = f'font-size="{_number(text.size)}px" fill="{text.colour}"'
    return f"<text {place} {fitted} {style}>{escape(text.string)}</text>"


def _box(box: Box) -> str:
    inset = box.edge / 2 if box.outline else 0  # an outline lies inside
    place = {"x": box.left + inset, "y": box.top + inset}
    size = {"width": box.right - box.left - 2 * inset, "height": box.bottom - box.top - 2 * inset}
    edge = {"stroke": box.outline, "stroke_width": box.edge} if box.outline else {}
    return _element("rect", **place, **size, fill=box.fill, **edge)


def _line(line: Line) -> str:
    points = " ".join(f"{_number(x)},{_number(y)}" for x, y in line.points)
    stroke = {"stroke": line.colour, "stroke_width": line.width, "stroke_linejoin": "round"}
    return _element("polyline", points=points, fill="none", **stroke)


def _picture(picture: Picture) -> str:
    place = {"x": picture.left, "y": picture.top, "width": picture.width, "height": picture.height}
    data = base64.b64encode(encode_image(picture.own_pixels(), ".png")).decode("ascii")
    href = {"xlink:href": f"data:image/png;base64,{data}"}
    return _element("image", **place, preserveAspectRatio="none", **href)


_ELEMENTS = {Text: _text, Box: _box, Line: _line, Picture: _picture}
