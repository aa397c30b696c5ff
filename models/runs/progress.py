"""What a run over many images says on its way."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Sequence
from contextvars import copy_context

from ..errors import say
from ..heavy import tqdm
from ..messages import Message
from .records import PlannedImage
from .sharing import Ranks

PERIOD = 30  # seconds from line to line where there is no terminal


class Progress:
    """A bar with rate, failures and time left on a terminal; elsewhere a line each PERIOD, of the first rank."""

    def __init__(self, plan: Sequence[PlannedImage], ranks: Ranks):
        self.ranks, self.lock = ranks, threading.Lock()
        self.total = sum(image.pending is not None for image in plan)
        self.before = self.finished = self.total - sum(bool(image.pending) for image in plan)
        self.failures, self.started, self.ended = 0, time.monotonic(), threading.Event()
        hidden = None if ranks.is_first else True  # None: where standard error is no terminal
        self.bar = tqdm.tqdm(
            total=self.total, initial=self.before, unit=str(Message("张")), disable=hidden, dynamic_ncols=True
        )

    def __enter__(self):
        if self.ranks.is_first and self.bar.disable:
            threading.Thread(target=copy_context().run, args=(self._say_lines,), daemon=True).start()
        return self

    def __exit__(self, *exception):
        self.ended.set()
        self.seconds = time.monotonic() - self.started
        self.bar.close()

    def advance(self, failed: bool) -> None:
        """One more image is finished; the bar and the lines show the sums of all ranks."""
        with self.lock:
            self._count(1, int(failed))
            if self.failures:
                self.bar.set_postfix_str(str(Message("失败 {}", self.failures)), refresh=False)
            self.bar.update(max(0, self.finished - self.bar.n))

    def _count(self, finished: int, failed: int) -> None:
        """Add to the sums of all ranks, and take them over."""
        self.finished = max(self.finished, self.before + self.ranks.add("finished", finished))
        self.failures = max(self.failures, self.ranks.add("failed", failed))

    def _say_lines(self) -> None:
        while not self.ended.wait(PERIOD):
            with self.lock:
                self._count(0, 0)  # other ranks may go on after this one
            say(self.line(time.monotonic() - self.started), to=sys.stderr)

    def line(self, seconds: float) -> str:
        """How far the run is after so many seconds, and how long the rest takes at this rate."""
        done, left = self.finished - self.before, self.total - self.finished
        failures = Message("，失败 {}", self.failures) if self.failures else ""
        rate = Message("，每秒 {:.1f} 张，约还需 {}", done / seconds, duration(left * seconds / done)) if done else ""
        share = self.finished / max(self.total, 1)
        return str(Message("进度：{}/{}（{:.0%}）{}{}", self.finished, self.total, share, failures, rate))


def duration(seconds: float) -> str:
    """Seconds as they are spoken of: 45 秒, 12 分钟, 3 小时 5 分钟."""
    if seconds < 100:
        return str(Message("{:.0f} 秒", seconds))
    hours, minutes = divmod(round(seconds / 60), 60)
    return str(Message("{} 小时 {} 分钟", hours, minutes) if hours else Message("{} 分钟", minutes))
