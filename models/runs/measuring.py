"""What is true of an image by its case, and how a heatmap is held against it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ..cases.annotations import Annotation
from ..evaluation.measures import coverage_of, measure_heatmap, pack_coverage
from ..messages import Joined, Message
from ..results.outlines import Outline, outline_of
from ..results.result import Results


class Truth(NamedTuple):
    """The texts that are true of an image [H, W], and where an expert drew them."""

    labels: list[int]  # indices of texts: the list's; where it has none, the annotated ones
    annotation: Annotation
    names: Sequence[str]  # of the texts

    @classmethod
    def of(cls, labels: Sequence[int], annotation: Annotation, names: Sequence[str]) -> Truth:
        return cls(list(labels) or sorted(annotation.masks), annotation, names)

    def annotated_text(self, target: int, predicted: int) -> int | None:
        """The text whose annotation the heatmap of `target` is measured on; None where there is none.

        Its own; where a wrong prediction is explained, the first annotated label's: is the model wrong at the right
        place, or at another?
        """
        masks = self.annotation.masks
        if target in masks:
            return target
        if target in self.labels or target != predicted:
            return None
        return next((label for label in self.labels if label in masks), None)

    def columns(self, heatmap: np.ndarray, peak: tuple[int, int] | None, target: int, predicted: int) -> dict:
        """The columns of a row that a heatmap [H, W] earns, its peak (x, y); of points alone the distance only."""
        annotated = self.annotated_text(target, predicted)
        if annotated is None:
            return {}
        mask = self.annotation.masks[annotated]
        measures = measure_heatmap(heatmap, mask, peak)._asdict()
        if annotated in self.annotation.points_only:
            measures = {name: value if name == "distance" else None for name, value in measures.items()}
        return {"annotated": annotated, "annotation_area": float(mask.mean()), **measures}

    def outlined(self, results: Results) -> Results:
        """Results with the outlines that their figure draws.

        Of one text the annotation that its heatmap is measured on; of several each text's own.
        """
        targets, predicted = results[0].targets, results[0].predicted
        annotated = targets if len(targets) > 1 else [self.annotated_text(targets[0], predicted)]
        outlines = [self._outline(text) for text in annotated]
        return Results(result._replace(outlines=outlines) for result in results)

    def outlines(self, most: int) -> list[Outline]:
        """Of all annotated texts, of at most so many points each."""
        masks, points_only = self.annotation.masks, self.annotation.points_only
        return [outline_of(text, masks[text], text in points_only, most) for text in sorted(masks)]

    def _outline(self, text: int | None) -> Outline | None:
        masks, points_only = self.annotation.masks, self.annotation.points_only
        return outline_of(text, masks[text], text in points_only) if text in masks else None

    @property
    def warning(self) -> Message | None:
        """What the reader must know of the annotations."""
        annotation = self.annotation
        others = [self.names[text] for text in annotation.masks if text not in self.labels]
        problems = {
            "标注中的 {} 不是类别文本，没有参加评估": annotation.ignored,
            "{} 的标注是空的，或在图像之外": annotation.empty,
            "标注中的 {} 不是该图像的标签": others,
        }
        warnings = [Message(problem, Joined("、", about)) for problem, about in problems.items() if about]
        return Joined("；", warnings) or None

    def packed_coverages(self, rows: Sequence[dict]) -> dict[str, str]:
        """{index of a text: its annotation's coverage, packed} of those that the rows were measured on."""
        measured = {row["annotated"] for row in rows if row.get("annotated") is not None}
        return {str(text): pack_coverage(coverage_of(self.annotation.masks[text])) for text in sorted(measured)}
