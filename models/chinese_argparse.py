"""argparse in Chinese: errors of one line, and the flag that a typo was meant for."""

import argparse
import re

from .errors import InputError, closest, shortened

ARGPARSE_IN_CHINESE = (
    (r"the following arguments are required: (.*)", r"缺少必需的参数：\1"),
    (r"argument (\S+): not allowed with argument (\S+)", r"\1 与 \2 只能二选一"),
    (r"argument (\S+): expected one argument", r"\1 后面需要一个值"),
    (r"argument (\S+): expected at least one argument", r"\1 后面至少需要一个值"),
    (r"argument (\S+): invalid int value: (.*)", r"\1 应是整数，收到 \2"),
    (r"argument (\S+): invalid float value: (.*)", r"\1 应是数，收到 \2"),
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
            close = closest(unknown[0].split("=")[0], flags)
            raise InputError(
                f"无法识别的参数 {shortened(unknown[0], 200)}" + (f"，是否想用 {close[0]}？" if close else "")
            )
        return parsed

    def format_help(self):
        return super().format_help().replace("usage:", "用法：", 1)
