"""What Python shows of results as text: at most ten lines, in the results' own language.

Like the figure it reads the results themselves: Results of `models.results.result`.
"""

from ..class_texts import descriptions_of
from ..errors import escape_unprintable, shortened
from ..messages import Joined, Message
from .parts import percent
from .shading import strongest_word, strongest_words

MOST_LINES, MOST_WARNINGS = 10, 3
LONGEST_NAME, LONGEST_LAYER, LONGEST_LINE = 40, 100, 500  # characters


def brief(results, kind: str) -> str:
    """The prediction, the explained texts, the methods, where their maps come from, and the warnings.

    `kind`: the class that is shown. What does not fit into MOST_LINES is counted.
    """
    first = results[0]
    warnings = _few([Message("警告: {}", message) for message in results.messages()], MOST_WARNINGS, "另有 {} 条警告")
    height, width = first.pixels.shape[:2]
    title = kind if first.name is None else f"{kind} {shortened(first.name, LONGEST_NAME)}"
    head = [
        Message("{}（{}×{} 像素）", title, width, height),
        Message("预测：{}（{}）", _name(first, first.predicted), percent(first.probabilities[first.predicted])),
    ]
    room = MOST_LINES - len(head) - len(warnings)
    lines = [*head, *(_of_one(first, room) if len(results) == 1 else _of_several(results, room)), *warnings]
    return "\n".join(_on_one_line(line.in_language(first.lang)) for line in lines)


def _of_one(result, room: int) -> list[Message]:
    """The method, each explained text, the words that matter most, and the layer, in so many lines."""
    heatmap = Message("热力图：{}", result.full_label(result.lang))
    if len(result.targets) == 1:
        words = words_line(result, 0)
        return [heatmap, _text(result, result.target, measured(result, 0)), *words, _source(result)]
    numbers = (
        Joined("", [measured(result, index), *_best_word(result, index)]) for index in range(len(result.targets))
    )
    texts = [_text(result, *of_text) for of_text in zip(result.targets, numbers)]
    return [heatmap, *_few(texts, room - 2, "另有 {} 个目标文本"), _source(result)]


def _of_several(results, room: int) -> list[Message]:
    """The explained text, and each layer with the methods whose maps lie there, in so many lines."""
    by_source: dict[str, list] = {}
    for result in results:
        by_source.setdefault(result.source, []).append(result)
    layers = [
        Message("{}：{}", _source(members[0]), Joined("；", map(_method, members))) for members in by_source.values()
    ]
    words = words_line(results[0], 0)
    return [_text(results[0], results[0].target), *words, *_few(layers, room - 1 - len(words), "另有 {} 个目标层")]


def _best_word(result, index: int) -> list[Message]:
    """The word that adds most to an explained text, to follow what was measured of its map."""
    words = result.words[index] if result.words else []
    return [Message("，最支持的词语 {}", strongest_word(words))] if words else []


def words_line(result, index: int) -> list[Message]:
    """A line with the words that matter most of an explained text; none where they were not weighed."""
    words = result.words[index] if result.words else []
    return [Message("词语：{}", strongest_words(words))] if words else []


def _text(result, target: int, numbers="") -> Message:
    """An explained text: how like the image it is, and what was measured of its map."""
    name, similarity = _name(result, target), result.similarities[target]
    count = len(descriptions_of(result.texts[target]))
    name = name if count == 1 else Message("{}（{} 段描述的平均）", name, count)
    return Message("目标文本：[{}] {}（余弦相似度 {:.3f}{}）", target, name, similarity, numbers)


def measured(result, index: int) -> Joined:
    """What was measured of an explained text's map, to follow its similarity: its specificity, its faithfulness."""
    specificity, tested = result.specificities[index], result.tested[index]
    parts = []
    if specificity is not None:
        parts.append(Message("，文本特异性 {:.2f}", specificity))
    if tested is not None:
        areas = tested.deletion, tested.insertion, tested.random
        parts.append(Message("，删除 {:.3f}、插入 {:.3f}、随机 {:.3f}", *areas))
    return Joined("", parts)


def _method(result) -> Message:
    """A method of several by its full name, and its map's specificity."""
    label, specificity = result.full_label(result.lang), result.specificities[0]
    label = Message("默认：{}", label) if result.is_default else label
    return Message("{}", label) if specificity is None else Message("{}（文本特异性 {:.2f}）", label, specificity)


def _source(result) -> Message:
    encoder, layer, rows, columns = result.source
    return Message("图像编码器：{}，目标层：{}（{}×{}）", encoder, shortened(layer, LONGEST_LAYER), rows, columns)


def _name(result, index: int) -> str:
    return shortened(result.names[index], LONGEST_NAME)


def _few(lines: list, most: int, others: str) -> list:
    """At most so many lines; the last one says how many `others` there are where they are more."""
    return lines if len(lines) <= most else [*lines[: most - 1], Message(others, len(lines) - most + 1)]


def _on_one_line(text: str) -> str:
    return shortened(escape_unprintable(text), LONGEST_LINE)
