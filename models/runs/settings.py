"""What two runs must agree in for the second to go on where the first one stopped, and how a difference is named."""

import json
from collections.abc import Mapping
from typing import NamedTuple

from ..errors import InputError
from ..explain.defaults import tells_presence
from ..images.preprocessing import preprocessing_of
from ..messages import Joined, Message
from ..results.saving import OutputChoice

SETTINGS_IN_CHINESE = {
    "checkpoint": Message("检查点"),
    "text_encoder": "--text-encoder",
    "texts": Message("类别文本"),
    "targets": Message("目标文本"),
    "contrast": "--contrast",
    "layers": Message("--method、--target-layer 或 --layers"),
    "similarity": "--similarity",
    "subtracted": "--subtract-others",
    "faithfulness": "--faithfulness",
    "words": "--words",
    "preprocessing": Message("--img-size 或模型的预处理"),
    "grey_range": "--grey-range",
    "lang": "--lang",
    "overlay_format": "--overlay-format",
    "colormap": "--colormap",
    "blend": "--blend",
    "alpha": "--alpha",
    "figure": Message("--no-figure 或 --overlay-only"),
    "overlay": "--no-overlay",
    "dpi": "--dpi",
    "panels": "--panels",
    "figure_format": "--figure-format",
    "heatmap": "--save-heatmap",
    "root": Message("图像所在的目录"),
    "packages": Message("软件包版本"),
    "shards": Message("--shard 的 N 或 --batch-size"),
    "report": Message("--report 或 --no-report"),
    "anonymous": "--anonymous",
}


def settings_of_run(explainer, by_label: bool, choice: OutputChoice, run_columns: Mapping) -> dict:
    """What an Explainer is told, which files are written and what stands in every row, as plain values.

    `by_label`: each image's labels are explained.
    """
    question = explainer.question
    return {
        "texts": list(zip(question.names, question.texts)),
        "targets": "label" if by_label else question.targets,
        "contrast": question.contrast,
        "layers": [(setting.method, layer) for setting, layer in zip(explainer.settings, explainer.layer_names)],
        "similarity": [setting.similarity for setting in explainer.settings],
        "subtracted": [setting.subtracted for setting in explainer.settings],
        "faithfulness": question.faithfulness,
        "words": question.words,
        "tells_presence": all(tells_presence(explainer.encoder, setting) for setting in explainer.settings),
        "preprocessing": preprocessing_of(explainer.model, question.img_size),
        **choice._asdict(),
        **explainer.colours._asdict(),
        **run_columns,
    }


class Comparison(NamedTuple):
    """How a difference is named."""

    problem: Message
    earlier: Message
    advice: Message


RESUMED = Comparison(
    Message("--resume：与上次运行不同"),
    Message("上次"),
    Message("请改回原来的设置，换 --output-dir，或去掉 --resume 重新开始"),
)


def check_settings(earlier: Mapping, settings: Mapping, comparison: Comparison = RESUMED) -> None:
    """Raise InputError, naming each setting that is not as it was in the run to be resumed, or in another shard."""
    settings = json.loads(json.dumps(settings))  # tuples as lists
    names = [name for name in {**settings, **earlier} if earlier.get(name) != settings.get(name)]
    if names:
        differing = [
            Message(
                "{}（{} {}，这次 {}）",
                SETTINGS_IN_CHINESE.get(name, _short(name)),
                comparison.earlier,
                _short(earlier.get(name)),
                _short(settings.get(name)),
            )
            for name in names[: len(SETTINGS_IN_CHINESE)]
        ]
        raise InputError("{}：{}。{}", comparison.problem, Joined("；", differing), comparison.advice)


def _short(value, limit=60) -> str:
    text = str(Message("无") if value is None else value)
    return text if len(text) <= limit else text[: limit - 1] + "…"
