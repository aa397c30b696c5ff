"""Rows of a run's table as the evaluation reads them."""

import numpy as np

from models.evaluation.measures import GRID, pack_coverage
from models.evaluation.summary import OF_HEATMAPS

NAMES = ["正常", "松动", "骨折"]
MEASURED = ("distance", "energy", "iou_half", "iou_otsu", "contrast_to_noise")


def row(
    image, labels, predicted, target=None, annotated=None, setting="one", specificity=None, names=NAMES, **columns
) -> dict:
    """A row of the image `image`; `labels`, `predicted`: indices of `names`."""
    probabilities = [0.1] * len(names)
    probabilities[predicted] = 0.8
    return {
        "id": image, "setting": setting, "method": "gradcam", "predicted": names[predicted],
        "label": ";".join(names[label] for label in labels) or None, "label_indices": labels,
        "target_text_idx": predicted if target is None else target, "probabilities": probabilities,
        "annotated": annotated, **dict.fromkeys(MEASURED), "text_specificity": specificity, **columns,
    }  # fmt: skip


def random_rows(count, names=NAMES, settings=("one",), labels=True, annotations=True, **columns):
    """(rows, coverages) of `count` images of two per patient, some with two labels, some without annotations."""
    rng, rows, coverages = np.random.default_rng(0), [], {}
    for number in range(count):
        image, own = f"{number}.png", int(rng.integers(len(names)))
        probabilities = np.round(rng.dirichlet(np.ones(len(names))) + np.eye(len(names))[own] / 4, 1)
        annotated = own if annotations and number % 4 else None
        if annotated is not None:
            mask = np.zeros((GRID, GRID))
            top, left = rng.integers(0, 180, 2)
            mask[top : top + 40, left : left + 30] = 1
            coverages[image, own] = pack_coverage(mask)
        for setting in settings:
            values = dict.fromkeys(MEASURED)
            if annotated is not None:
                values = dict(zip(MEASURED, rng.random(len(MEASURED)).tolist()))
                values["distance"] = [0.0, 9.0, 20.0, None][rng.integers(4)]
            own_labels = [own] + ([(own + 1) % len(names)] if number % 5 == 0 else [])
            values |= {"probabilities": probabilities.tolist(), "patient": f"p{number // 2}", **columns}
            predicted, specificity = int(probabilities.argmax()), float(rng.random())
            values |= dict(zip(OF_HEATMAPS[1:], rng.random(2).tolist()))
            about = own_labels if labels else [], predicted, own, annotated, setting, specificity, names
            rows.append(row(image, *about, **values))
    return rows, coverages
