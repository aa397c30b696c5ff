"""What is said at the end of a run over many images."""

from __future__ import annotations

import sys

from ..errors import LONGEST_MESSAGE, escape_unprintable, say, shortened
from ..evaluation.tables import aligned, two_decimals
from ..messages import Message
from .progress import Progress
from .totals import ClassTotals, Totals

MOST_CLASSES = 20  # lines of a summary; the tables have all


def print_totals(totals: Totals, progress: Progress | None) -> None:
    """How many images succeeded and failed, and the classes; `progress`: of the run that has just ended, if one has."""
    earlier = rate = ""
    done = totals.done
    if progress is not None:
        done = max(0, totals.done - progress.before)
        earlier = Message("（另有 {} 张此前已完成）", progress.before) if progress.before else ""
        seconds = progress.seconds
        rate = Message("，{:.1f} 秒，每秒 {:.1f} 张", seconds, done / max(seconds, 1e-9)) if done else ""
    missing = totals.total - totals.done - totals.failed
    lacking = Message("，还缺 {} 张", missing) if missing else ""
    say(Message("完成 {} 张{}，失败 {} 张{}，共 {} 张{}", done, earlier, totals.failed, lacking, totals.total, rate))
    say(*class_lines(totals.classes))


def print_problems(totals: Totals) -> None:
    """The first failures by name, and how many rows warn, on standard error."""
    sys.stdout.flush()
    for path, why in totals.failures:
        failure = why if escape_unprintable(path) in why else str(Message("{}：{}", path, why))
        say(Message("失败: {}", shortened(failure, LONGEST_MESSAGE)), to=sys.stderr)
    if totals.failed > len(totals.failures):
        say(Message("失败: 其余 {} 张见结果表的 error 列", totals.failed - len(totals.failures)), to=sys.stderr)
    if totals.warned:
        say(Message("警告: {} 行结果带有警告，见 warning 列", totals.warned), to=sys.stderr)


CLASS_HEADINGS = ("预测", "图像", "平均概率", "平均文本特异性", "有警告")


def class_lines(classes: dict[str, ClassTotals]) -> list[str]:
    """A line of each predicted class, the largest first: images, mean probability and specificity, images that warn."""
    largest = sorted(classes.items(), key=lambda item: -item[1].images)
    table = [[str(Message(heading)) for heading in CLASS_HEADINGS]]
    for name, of_class in largest[:MOST_CLASSES]:
        means = (of_class.mean(column) for column in ("probability", "text_specificity"))
        shown = ("—" if mean is None else two_decimals(mean) for mean in means)
        table.append((name, str(of_class.images), *shown, str(of_class.warned)))
    more = [Message("其余 {} 类见结果表", len(largest) - MOST_CLASSES)] if len(largest) > MOST_CLASSES else []
    return [*aligned(table), *map(str, more)] if classes else []
