"""A run over many images: each is decoded, explained, drawn, written and entered in the tables.

Decoding is done by processes of their own, the model and the drawing by threads beside each other. What is
finished stays finished, whatever happens (`models.runs.state`); chunks are shared out among processes as they
ask for them (`models.runs.sharing`).
"""

from __future__ import annotations

import contextlib
import errno
import sys
import threading
import time
from collections.abc import Mapping, Sequence

from ..errors import LONGEST_MESSAGE, InputError, escape_unprintable, print_error, reason, say, shortened
from ..explain.question import ImageMaps
from ..heavy import cv2, torch, tqdm
from ..images.loader import ImageDataset, is_lost_worker, make_loader
from ..results.saving import OutputChoice, encode_outputs
from ..writing import write_files
from .sharing import ChunkSize, Ranks, chunks_to_do, claimed, run_chunks
from .state import Part, PlannedImage, RunState, Totals
from .tables import name_below, table_rows


class Run:
    """One process's share of a run over many images: chunks through the model, files and rows out of it.

    `explainer`: images [B, 3, h, w] -> for each a list of ImageMaps, one a method; `result(pixels, maps)` and
    `twin()` of it. `run_columns`: what stands in every row.
    """

    def __init__(self, explainer, dataset: ImageDataset, state: RunState, choice: OutputChoice, run_columns: Mapping):
        self.explainer, self.dataset, self.prepare, self.state = explainer, dataset, dataset.prepare, state
        self.choice, self.run_columns = choice, run_columns
        self.device = next(explainer.model.parameters()).device
        if self.device.type == "cpu":  # as the chunks are: a twentieth faster
            explainer.model.image_encoder.to(memory_format=torch.channels_last)
        self.own = threading.local()  # on a CPU each thread has an explainer of its own
        self.turn = threading.Lock()  # on a GPU one batch at a time

    def work(self, plan: Sequence[PlannedImage], size: ChunkSize, ranks: Ranks, progress: Progress) -> None:
        """Do what is to do of the plan, with the other ranks; rows are appended as images finish."""
        pending = [image.pending for image in plan]

        def chunk(index):
            span = range(index * size.batch, min((index + 1) * size.batch, len(plan)))
            return index, [(i, plan[i].path if pending[i] else None) for i in span]

        def start(decoded):
            images = (plan[i] for i in range(decoded.index * size.batch, len(plan)))
            return self.start(decoded, images)

        def finish(task):
            record = self.record(*task)
            part.append(record)
            progress.advance("error" in record)

        chunks = (chunk(index) for index in claimed(chunks_to_do(pending, size.batch), ranks))
        with contextlib.closing(self.state.open_part(ranks.rank)) as file:
            part = Part(file)
            try:
                loader = make_loader(self.dataset, chunks, size.num_workers)
                run_chunks(loader, start, finish, size.threads, one_thread)
            except RuntimeError as error:
                if not is_lost_worker(error):
                    raise
                raise InputError(
                    "读取图像的进程意外结束，多半是内存不足；可减小 --num-workers 或 --batch-size"
                ) from error

    def start(self, decoded, images) -> list[tuple]:
        """(image of the plan, pixels, maps) of each image of a chunk; a reason where there are no maps."""
        wanted = [i for i, pixels in enumerate(decoded.pixels) if pixels is not None]
        maps = self.maps_of(decoded.resized, wanted) if wanted else {}
        return [
            (image, pixels, error or maps[i])
            for i, (image, pixels, error) in enumerate(zip(images, decoded.pixels, decoded.errors))
            if error or pixels is not None
        ]

    def maps_of(self, resized, wanted: Sequence[int]) -> dict:
        """{index in the chunk: its maps}; one image at a time where sizes differ or the chunk fails as a whole."""
        if not self.prepare.fixed_size:
            return {i: self.maps_of_one(resized[i]) for i in wanted}
        try:
            maps = self.run_model(self.prepare.normalise(resized))
            return {i: maps[i] for i in wanted}
        except (InputError, MemoryError, RuntimeError):
            return {i: self.maps_of_one(resized[i]) for i in wanted}

    def maps_of_one(self, resized) -> list[ImageMaps] | str:
        try:
            return self.run_model(self.prepare.normalise(resized[None]))[0]
        except (InputError, MemoryError, RuntimeError) as error:
            return reason(error)

    def run_model(self, images) -> list[list[ImageMaps]]:
        if self.device.type != "cpu":
            with self.turn:
                return self.explainer(images)
        if not hasattr(self.own, "explainer"):
            self.own.explainer = self.explainer.twin()
        return self.own.explainer(images)

    def record(self, image: PlannedImage, pixels, maps: list[ImageMaps] | str) -> dict:
        """Write an image's files; returns its line in the part. A bad image is its reason, never the end of the run."""
        folder = self.state.folder
        try:
            if isinstance(maps, str):
                raise InputError(maps)
            results = self.explainer.result(pixels, maps)
            files = encode_outputs(results, folder / f"{image.name}.png", self.choice)
            rows = table_rows(results, files, image.path, folder, self.run_columns)
            write_files(files.contents, durable=True, staging=self.state.staging, within=folder)
        except Exception as error:
            if getattr(error.__cause__, "errno", None) in NO_USE_GOING_ON:
                raise
            why = reason(error) if isinstance(error, InputError) else f"{type(error).__name__}: {reason(error)}"
            row = {"image": image.path, **self.run_columns, "error": why}
            return {"image": image.path, "files": {}, "rows": [row], "error": why}
        sizes = {name_below(folder, path): len(data) for path, data in files.contents.items()}
        return {"image": image.path, "files": sizes, "rows": rows}


NO_USE_GOING_ON = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)  # the disk's trouble, not one image's


def one_thread() -> None:
    """What a thread that works on chunks is told: images are beside each other, and sums round as on any machine."""
    torch.set_num_threads(1)
    cv2.setNumThreads(1)


def finish_run(run: Run, plan: Sequence[PlannedImage], size: ChunkSize, ranks: Ranks) -> int:
    """Do the work, join the tables, and say how it went; returns the exit code: 1 where images are missing."""
    names = run.explainer.question.names
    with Progress(plan, ranks) as progress:
        try:
            run.work(plan, size, ranks, progress)
            ranks.announce("finished")
            ranks.wait_for("finished", range(ranks.world) if ranks.is_first else [])
        except BaseException as error:
            if ranks.is_first:
                with contextlib.suppress(InputError):  # a disk that is full may be too full for the tables
                    run.state.join(names)
            if not isinstance(error, InputError):
                raise
            print_error(f"{error}；已完成的结果都在，排除故障后加 --resume 继续")
            return 1
    if not ranks.is_first:
        return 0
    totals = run.state.join(names)
    print_totals(totals, run.state, progress)
    return int(totals.done < totals.total)


class Progress:
    """A bar with rate, failures and time left on a terminal; nothing where there is none."""

    def __init__(self, plan: Sequence[PlannedImage], ranks: Ranks):
        self.ranks, self.lock = ranks, threading.Lock()
        self.before = sum(not image.pending for image in plan)
        self.started = time.monotonic()
        hidden = None if ranks.is_first else True  # None: where standard error is no terminal
        self.bar = tqdm.tqdm(total=len(plan), initial=self.before, unit="张", disable=hidden, dynamic_ncols=True)

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.seconds = time.monotonic() - self.started
        self.bar.close()

    def advance(self, failed: bool) -> None:
        """One more image is finished; the bar shows the sums of all ranks."""
        finished, failures = self.ranks.add("finished", 1), self.ranks.add("failed", int(failed))
        with self.lock:
            if failures:
                self.bar.set_postfix_str(f"失败 {failures}", refresh=False)
            self.bar.update(max(0, self.before + finished - self.bar.n))


def print_totals(totals: Totals, state: RunState, progress: Progress) -> None:
    """How many images succeeded and failed, where the tables are, and the first failures by name."""
    done = totals.done - progress.before
    earlier = f"（另有 {progress.before} 张此前已完成）" if progress.before else ""
    rate = f"，{progress.seconds:.1f} 秒，每秒 {done / max(progress.seconds, 1e-9):.1f} 张" if done > 0 else ""
    say(
        f"完成 {max(done, 0)} 张{earlier}，失败 {totals.failed} 张，共 {totals.total} 张{rate}",
        f"结果表已保存：{'、'.join(map(str, state.tables))}",
    )
    sys.stdout.flush()
    for path, why in totals.failures:
        failure = why if escape_unprintable(path) in why else f"{path}：{why}"
        say(f"失败: {shortened(failure, LONGEST_MESSAGE)}", to=sys.stderr)
    if totals.failed > len(totals.failures):
        say(f"失败: 其余 {totals.failed - len(totals.failures)} 张见结果表的 error 列", to=sys.stderr)
    if totals.warned:
        say(f"警告: {totals.warned} 行结果带有警告，见 warning 列", to=sys.stderr)
