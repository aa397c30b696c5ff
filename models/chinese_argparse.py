"""argparse in Chinese, and in our English: errors of one line, and the flag that a typo was meant for."""

import argparse
import re

from .errors import InputError, closest, shortened
from .messages import Message

ARGPARSE_IN_CHINESE = (
    (r"the following arguments are required: (.*)", "缺少必需的参数：{}"),
    (r"argument (\S+): not allowed with argument (\S+)", "{} 与 {} 只能二选一"),
    (r"argument (\S+): expected one argument", "{} 后面需要一个值"),
    (r"argument (\S+): expected at least one argument", "{} 后面至少需要一个值"),
    (r"argument (\S+): invalid int value: (.*)", "{} 应是整数，收到 {}"),
    (r"argument (\S+): invalid float value: (.*)", "{} 应是数，收到 {}"),
    (r"argument (\S+): invalid choice: (.+?) \(choose from (.*)\)", "{} 不能是 {}，可选：{}"),
    (r"argument (\S+): ignored explicit argument (.*)", "{} 不带值，收到 {}"),
    (r"argument (\S+): (.*)", "{}：{}"),
)


class ChineseArgumentParser(argparse.ArgumentParser):
    """argparse whose errors are one line of ours, with the closest flag for one that does not exist."""

    def error(self, message):
        for pattern, chinese in ARGPARSE_IN_CHINESE:
            if match := re.fullmatch(pattern, message, flags=re.DOTALL):
                raise InputError(chinese, *match.groups())
        raise InputError(message)

    def parse_args(self, args=None, namespace=None):
        parsed, unknown = self.parse_known_args(args, namespace)
        if unknown:
            flags = [flag for action in self._actions for flag in action.option_strings]
            close = closest(unknown[0].split("=")[0], flags)
            meant = Message("，是否想用 {}？", close[0]) if close else ""
            raise InputError("无法识别的参数 {}{}", shortened(unknown[0], 200), meant)
        return parsed

    def format_help(self):
        return super().format_help().replace("usage:", str(Message("用法：")), 1)
