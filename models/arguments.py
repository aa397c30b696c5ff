"""The flags of the command line; argparse in Chinese: errors of one line, and the flag that a typo was meant for."""

import argparse
import difflib
import re

from .errors import InputError
from .heatmap import METHOD_LABELS

LANGUAGES = ("zh", "en")

ARGPARSE_IN_CHINESE = (
    (r"the following arguments are required: (.*)", r"缺少必需的参数：\1"),
    (r"argument (\S+): not allowed with argument (\S+)", r"\1 与 \2 只能二选一"),
    (r"argument (\S+): expected one argument", r"\1 后面需要一个值"),
    (r"argument (\S+): expected at least one argument", r"\1 后面至少需要一个值"),
    (r"argument (\S+): invalid int value: (.*)", r"\1 应是整数，收到 \2"),
    (r"argument (\S+): invalid choice: (\S+) \(choose from (.*)\)", r"\1 不能是 \2，可选：\3"),
    (r"argument (\S+): ignored explicit argument (.*)", r"\1 不带值，收到 \2"),
    (r"argument (\S+): (.*)", r"\1：\2"),
)


class ChineseArgumentParser(argparse.ArgumentParser):
    """argparse whose errors are one line in Chinese, with the closest flag for one that does not exist."""

    def error(self, message):
        for pattern, chinese in ARGPARSE_IN_CHINESE:
            message, replaced = re.subn(f"^{pattern}$", chinese, message, flags=re.DOTALL)
            if replaced:
                break
        raise InputError(message)

    def parse_args(self, args=None, namespace=None):
        parsed, unknown = self.parse_known_args(args, namespace)
        if unknown:
            flags = [flag for action in self._actions for flag in action.option_strings]
            close = difflib.get_close_matches(unknown[0].split("=")[0], flags, n=1)
            raise InputError(f"无法识别的参数 {unknown[0]}" + (f"，是否想用 {close[0]}？" if close else ""))
        return parsed

    def format_help(self):
        return super().format_help().replace("usage:", "用法：", 1)


# flag, what argparse is told, help
FLAGS = (
    (
        "--model-path",
        {"metavar": "PATH"},
        "模型检查点路径（必需）：.pth 或 .safetensors，或 OpenAI、open_clip 的权重，transformers 的 CLIP 文件夹或名称",
    ),
    (
        "--image-path",
        {"metavar": "PATH", "nargs": "+"},
        "图像路径（必需）：图像、文件夹（含子文件夹）或通配符，可以多个；多张图像时另写结果表",
    ),
    ("--class-texts", {"metavar": "TEXT", "nargs": "+"}, "类别文本描述列表（与 --class-texts-file 二选一）"),
    ("--class-texts-file", {"metavar": "PATH"}, "类别文本描述 JSON 文件（与 --class-texts 二选一）"),
    (
        "--target-text-idx",
        {"metavar": "INT", "type": int, "nargs": "+"},
        "目标文本索引，从 0 开始，可以多个（默认：最相似的文本）",
    ),
    ("--all-texts", {"action": "store_true"}, "解释全部文本（与 --target-text-idx 二选一）"),
    ("--contrast", {"action": "store_true"}, "对比：显示支持该文本而不支持其他文本的区域"),
    ("--image-encoder", {"metavar": "NAME"}, "图像编码器名称（如果无法从检查点获取）"),
    ("--text-encoder", {"metavar": "NAME"}, "文本编码器名称或本地文件夹（默认：bert-base-chinese）"),
    ("--embed-dim", {"metavar": "INT", "type": int}, "嵌入维度（默认：512；检查点中有则以检查点为准）"),
    ("--img-size", {"metavar": "INT", "type": int}, "图像大小（默认：224；检查点中有则以检查点为准）"),
    ("--output-dir", {"metavar": "PATH", "default": "clip_gradcam_results"}, "输出目录（默认：clip_gradcam_results）"),
    ("--output-name", {"metavar": "NAME"}, "输出文件名（默认：clip_gradcam_<图像名>.png；也可用 .pdf、.svg、.jpg）"),
    ("--target-layer", {"metavar": "NAME"}, "目标层的名称，例如 layer4.1（默认：按图像编码器自动选择）"),
    ("--layers", {"metavar": "NAME", "nargs": "+"}, "融合多个目标层（与 --target-layer 二选一）；LeGrad 用它指定块"),
    (
        "--method",
        {"metavar": "NAME", "choices": (*METHOD_LABELS, "all")},
        f"热力图方法（默认：ViT 用 layercam，其余用 gradcam）：{'、'.join(METHOD_LABELS)}；all 把它们并排",
    ),
    ("--similarity", {"choices": ("cosine", "dot")}, "解释余弦相似度 cosine（默认）还是点积 dot"),
    ("--faithfulness", {"action": "store_true"}, "检验热力图：按它删除和插入像素，给出曲线下面积与随机图之差"),
    ("--list-layers", {"action": "store_true"}, "列出可作为目标层的层后退出，只需要 --model-path"),
    ("--lang", {"choices": LANGUAGES, "default": "zh"}, "图中文字的语言：zh 中文（默认），en 英文"),
    ("--save-heatmap", {"action": "store_true"}, "另存未归一化的热力图（.npy，float32）：原图大小和目标层大小各一份"),
    ("--no-figure", {"action": "store_true"}, "不写可视化图"),
    ("--overlay-only", {"action": "store_true"}, "只写叠加图像"),
    ("--resume", {"action": "store_true"}, "接着上次没有做完的运行，只做缺少的图像"),
    (
        "--batch-size",
        {"metavar": "INT", "type": int},
        "多张图像时一次前向的图像数（默认：CPU 至多 8，GPU 至多 32）",
    ),
    (
        "--num-workers",
        {"metavar": "INT", "type": int},
        "多张图像时读取图像的进程数（默认：核数的一半，至多 4；不足 4 核时为 0）",
    ),
    ("--no-text-cache", {"action": "store_true"}, "不使用文本特征缓存"),
    ("--cpu", {"action": "store_true"}, "强制使用 CPU（默认：有 CUDA 用 CUDA，其次 Apple MPS，否则 CPU）"),
    ("--help", {"action": "help"}, "显示本帮助后退出"),
)


EITHER = (
    ("--class-texts", "--class-texts-file"),
    ("--target-text-idx", "--all-texts"),
    ("--target-layer", "--layers"),
)


def build_parser() -> ChineseArgumentParser:
    """The parser of the command line: every flag of the guide with its default."""
    parser = ChineseArgumentParser(
        prog="clip_gradcam_visualization.py",
        description="用 Grad-CAM 显示图像中哪些区域与一段文本最相关（CLIP 图像-文本相似度的热力图）。",
        epilog="例：python clip_gradcam_visualization.py --model-path m.pth --image-path a.jpg --class-texts 正常 异常",
        add_help=False,
        allow_abbrev=False,
    )
    group = parser.add_argument_group("参数")
    either = {}  # one of each pair
    for pair in EITHER:
        either.update(dict.fromkeys(pair, group.add_mutually_exclusive_group()))
    for flag, options, text in FLAGS:
        names = ("-h", flag) if flag == "--help" else (flag,)
        either.get(flag, group).add_argument(*names, **options, help=text)
    return parser
