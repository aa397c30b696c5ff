"""Documents and cards of reports, made up: what a run writes, without a run."""

import base64
import json
from pathlib import Path

import cv2
import numpy as np

from models.report.colours import word_colours
from models.report.page import CARDS_PER_FILE, IMAGES_INLINE, card_file, page_parts

NAMES = ("正常假体", "股骨柄松动", "髋臼杯松动", "假体周围骨折")
HOSTILE = (
    *("<img src=x onerror=alert(1)>", "</script><script>alert(2)</script>", "<!--<script>"),
    *("&lt;b&gt; \u2028 \u202egnp.x", "=1+1", "长" * 200),
)
CASES = ("right_inside", "right_outside", "wrong_inside", "wrong_outside")


def ramp(size=(120, 90), phase=0.0):
    """A smooth grey picture, RGB uint8 [H, W, 3], of `size` (width, height): no way of resizing changes it much."""
    x, y = np.meshgrid(*(np.linspace(0, 1, side) for side in size))
    grey = np.rint(40 + 160 * (0.5 + 0.5 * np.sin(2 * (x + y) + phase))).astype(np.uint8)
    return np.repeat(grey[..., None], 3, axis=2)


def jpeg(pixels, quality=95):
    return base64.b64encode(cv2.imencode(".jpg", pixels[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])[1]).decode()


def levels(rows, columns, seed):
    """uint8 [rows, columns], 255 at its highest."""
    drawn = np.random.default_rng(seed).random((rows, columns)) ** 3
    return np.rint(255 * drawn / drawn.max()).astype(np.uint8)


def encode_map(row, cells, peak=1.0, own=1.0):
    text = base64.b64encode(cells.tobytes()).decode()
    return {"row": row, "grid": list(cells.shape), "levels": text, "peak": peak, "own": own}


def colour_tables():
    ramp_of_levels = np.arange(256, dtype=np.uint8)[:, None]
    maps = {"jet": cv2.COLORMAP_JET, "inferno": cv2.COLORMAP_INFERNO}
    return {name: cv2.applyColorMap(ramp_of_levels, number)[:, 0, ::-1].copy() for name, number in maps.items()}


OPACITY = {"heat": np.clip(np.arange(256) / 128, 0, 1).round(4).tolist(), "constant": [1.0] * 256}


def make_row(number, target, predicted, warning=None):
    case = CASES[number % 4] if target == predicted and number % 3 == 0 else None
    measures = {"energy": 0.01 * (number % 90), "iou_half": 0.2, "iou_otsu": 0.1, "contrast_to_noise": 1.5}
    return {
        **{"setting": 0, "target": target, "rank": 1 + abs(target - predicted), "similarity": 0.31},
        **{"specificity": (number * 7 % 100) / 100, "case": case, "distance": 3.5 * (number % 9) if case else None},
        **{"peak": [33, 41], "area": 0.12, "annotated": target if case else None},
        **{"measures": measures if case else {}, "warning": warning},
    }


def make_image(number, targets=None, texts=NAMES):
    """An image of the document; `targets`: the explained texts, the predicted one where None."""
    predicted = number % len(texts)
    probabilities = np.full(len(texts), 0.1 / (len(texts) - 1))
    probabilities[predicted] = 0.9 - 0.0001 * number
    warning = {"zh": "热力图几乎不随文本变化", "en": "The heatmap hardly depends on the text"}
    warning = warning if number % 5 == 1 else None
    rows = [make_row(number, target, predicted, warning) for target in targets or [predicted]]
    name = HOSTILE[number // 11 % len(HOSTILE)] if number % 11 == 10 else f"{number:04}.png"
    return {
        **{"id": f"id{number}", "name": name, "path": f"片子/{name}", "figure": f"片子/clip_gradcam_{number:04}.png"},
        **{"size": [1200, 900], "error": None, "labels": [(number // 4 % len(texts))], "predicted": predicted},
        **{"probabilities": probabilities.round(6).tolist(), "rows": rows},
        "values": [str(40 + number % 50), "甲" if number % 2 else "乙"],
    }


def make_card(number, image, picture=None, region=(0, 0, 1, 1), grid=(7, 7)):
    picture = ramp(phase=number) if picture is None else picture
    maps = [encode_map(place, levels(*grid, number * 31 + row["target"])) for place, row in enumerate(image["rows"])]
    square = [0.3, 0.3, 0.6, 0.3, 0.6, 0.6, 0.3, 0.6]
    outlines = [{"text": image["labels"][0], "contours": [square]}] if number % 3 == 0 else []
    size = list(picture.shape[1::-1])
    return {"jpeg": jpeg(picture), "size": size, "region": list(region), "maps": maps, "outlines": outlines}


def make_document(count, targets=None, lang="zh", failed=(), texts=NAMES):
    """(document, cards) of `count` images; those of `failed` have an error and no card."""
    images = [make_image(number, targets, texts) for number in range(count)]
    cards = [make_card(number, image) for number, image in enumerate(images)]
    for number in failed:
        images[number] |= {"error": {"zh": "读不出图像", "en": "cannot be read"}, "predicted": None, "rows": []}
        images[number] |= {"probabilities": None, "size": None, "figure": None}
        cards[number] = None
    document = {
        **{"lang": lang, "run": "9f2c", "title": {"zh": "演示模型，测试集", "en": "Demo model, test set"}},
        **{"names": list(texts), "texts": [[f"全髋关节置换术后，{name}。"] for name in texts], "images": images},
        "settings": [{"zh": "Local Grad-CAM，两层，点积", "en": "Local Grad-CAM, two layers, dot product"}],
        **{"columns": ["age", "hospital"], "has_list": True, "has_annotations": True, "tested": False},
        **{"tells_presence": True, "tolerance": 15.0, "card_files": None, "evaluation": None},
        "colormaps": {name: base64.b64encode(table.tobytes()).decode() for name, table in colour_tables().items()},
        **{"word_colours": word_colours(), "contrast": False},
        **{"opacity": OPACITY, "choice": {"colormap": "jet", "blend": "heat", "alpha": 0.6}},
    }
    return document, [card and json.dumps(card) for card in cards]


def write_report(folder: Path, document, cards):
    """The page's address after it, and the files of cards where there are many, stand in `folder`."""
    if len(cards) > IMAGES_INLINE:
        starts = range(0, len(cards), CARDS_PER_FILE)
        names = {f"report_files/cards-{place + 1:03}.js": first for place, first in enumerate(starts)}
        document, inline = {**document, "card_files": list(names)}, ()
        (folder / "report_files").mkdir(exist_ok=True)
        for name, first in names.items():
            (folder / name).write_bytes(b"".join(card_file(first, cards[first : first + CARDS_PER_FILE])))
    else:
        inline = cards
    path = folder / "report.html"
    path.write_bytes(b"".join(page_parts(document, inline)))
    return path.as_uri()
