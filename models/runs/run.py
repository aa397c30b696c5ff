"""A run over many images: each is decoded, explained, drawn, written and entered in the tables.

Decoding is done by processes of their own, the model and the drawing by threads beside each other. What is
finished stays finished, whatever happens (`models.runs.state`); chunks are shared out among processes as they
ask for them (`models.runs.sharing`).
"""

from __future__ import annotations

import contextlib
import errno
import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from ..cases.annotations import read_annotations
from ..errors import InputError, print_error, reason, say
from ..explain.question import ImageMaps
from ..heavy import cv2, torch
from ..images.loader import ImageDataset, is_lost_worker, make_loader
from ..images.naming import file_name
from ..messages import Joined, Message
from ..report.cards import MOST_POINTS, encode_card
from ..results.formats import FIGURE_FORMATS
from ..results.result import Results
from ..results.saving import OutputChoice, encode_outputs
from ..writing import write_files
from .closing import print_problems, print_totals
from .evaluating import CaseChoice, evaluate_run
from .measuring import Truth
from .progress import Progress
from .records import PlannedImage
from .reporting import ReportChoice, write_report
from .sharing import ChunkSize, Ranks, chunks_to_do, claimed, run_chunks
from .state import Part, RunState
from .tables import in_both_languages, name_below, table_rows


class Finished(NamedTuple):
    """An image that only has to be written."""

    image: PlannedImage
    contents: dict[Path, bytes]  # its files; none where it failed
    record: dict  # its line in the part


class Run:
    """One process's share of a run over many images: chunks through the model, files and rows out of it.

    `explainer`: images [B, 3, h, w] -> for each a list of ImageMaps, one a method; `result(pixels, maps)` and
    `twin()` of it. `run_columns`: what stands in every row.
    """

    def __init__(
        self,
        explainer,
        dataset: ImageDataset,
        state: RunState,
        choice: OutputChoice,
        run_columns: Mapping,
        cases: CaseChoice,
        report_choice: ReportChoice,
    ):
        self.explainer, self.dataset, self.prepare, self.state = explainer, dataset, dataset.prepare, state
        self.choice, self.run_columns, self.cases, self.report_choice = choice, run_columns, cases, report_choice
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
            first = decoded.index * size.batch
            return self.start(decoded, plan[first : first + len(decoded.pixels)])

        def keep(finished):
            record = self.keep(finished)
            part.append(record)
            progress.advance("error" in record)

        chunks = (chunk(index) for index in claimed(chunks_to_do(pending, size.batch), ranks))
        with contextlib.closing(self.state.open_part(ranks.rank)) as file:
            part = Part(file)
            try:
                loader = make_loader(self.dataset, chunks, size.num_workers)
                run_chunks(loader, start, lambda task: self.finish(*task), keep, size.threads, one_thread)
            except RuntimeError as error:
                if not is_lost_worker(error):
                    raise
                raise InputError(
                    "读取图像的进程意外结束，多半是内存不足；可减小 --num-workers 或 --batch-size"
                ) from error

    def start(self, decoded, images: Sequence[PlannedImage]) -> list[tuple]:
        """(image of the plan, pixels, maps) of each image of a chunk; a reason where there are no maps."""
        wanted = [i for i, pixels in enumerate(decoded.pixels) if pixels is not None]
        targets = [image.labels for image in images] if self.cases.by_label else None
        maps = self.maps_of(decoded.resized, wanted, targets) if wanted else {}
        return [
            (image, pixels, error or maps[i])
            for i, (image, pixels, error) in enumerate(zip(images, decoded.pixels, decoded.errors))
            if error or pixels is not None
        ]

    def maps_of(self, resized, wanted: Sequence[int], targets) -> dict:
        """{index in the chunk: its maps}; one image at a time where sizes differ or the chunk fails as a whole.

        `targets`: of each image the texts that are explained, None for the question's.
        """
        if self.prepare.fixed_size:
            with contextlib.suppress(InputError, MemoryError, RuntimeError):
                maps = self.run_model(self.prepare.normalise(resized), targets)
                return {i: maps[i] for i in wanted}
        return {i: self.maps_of_one(resized[i], targets and targets[i : i + 1]) for i in wanted}

    def maps_of_one(self, resized, targets) -> list[ImageMaps] | Message | str:
        try:
            return self.run_model(self.prepare.normalise(resized[None]), targets)[0]
        except (InputError, MemoryError, RuntimeError) as error:
            return reason(error)

    def run_model(self, images, targets) -> list[list[ImageMaps]]:
        if self.device.type != "cpu":
            with self.turn:
                return self.explainer(images, targets)
        if not hasattr(self.own, "explainer"):
            self.own.explainer = self.explainer.twin()
        return self.own.explainer(images, targets)

    def finish(self, image: PlannedImage, pixels, maps: list[ImageMaps] | Message | str) -> Finished:
        """An image's files and its line in the part. A bad image is its reason, never the end of the run."""
        folder, of_case = self.state.folder, {}
        try:
            if not isinstance(maps, list):
                raise InputError(maps)
            results = self.explainer.result(pixels, maps, file_name(image.path)).keeping()
            truth = self.truth(image, pixels.shape[:2])
            if truth is not None and self.choice.figure:
                results = truth.outlined(results)
            figure = folder / f"{image.name}.{self.choice.figure_format or FIGURE_FORMATS[0]}"
            files = encode_outputs(results, figure, self.choice)
            rows = table_rows(results, files, image.path, folder, self.run_columns, truth)
            contents = files.contents | self.card(image, results, truth)
            if truth is not None:
                of_case = {"case": image.case, "labels": truth.labels, "coverages": truth.packed_coverages(rows)}
        except Exception as error:
            return self.failed(image, error)
        sizes = {name_below(folder, path): len(data) for path, data in contents.items()}
        return Finished(image, contents, {"image": image.path, "files": sizes, "rows": rows, **of_case})

    def keep(self, finished: Finished) -> dict:
        """Write the files of a finished image; returns its line."""
        try:
            write_files(finished.contents, durable=True, staging=self.state.staging, within=self.state.folder)
        except Exception as error:
            return self.failed(finished.image, error).record
        return finished.record

    def failed(self, image: PlannedImage, error: Exception) -> Finished:
        """An image that an error leaves without files; the error itself where the others would meet it too."""
        if getattr(error.__cause__, "errno", None) in NO_USE_GOING_ON:
            raise error
        if not isinstance(error, InputError):
            error = InputError("{}: {}", type(error).__name__, reason(error))
        why = in_both_languages("error", error)
        row = {"image": image.path, **self.run_columns, **why}
        of_case = {} if image.case is None else {"case": image.case}
        return Finished(image, {}, {"image": image.path, "files": {}, "rows": [row], **why, **of_case})

    def card(self, image: PlannedImage, results: Results, truth: Truth | None) -> dict[Path, bytes]:
        """The file that the report shows an image from; none where there is to be no report."""
        if not self.report_choice.report:
            return {}
        outlines = [] if truth is None else truth.outlines(MOST_POINTS)
        return {self.state.card(image.name): encode_card(results, outlines)}

    def truth(self, image: PlannedImage, size: tuple[int, int]) -> Truth | None:
        """What the list of cases and the annotations say of an image [H, W]; None where there is no list."""
        if image.case is None:
            return None
        names, texts = self.explainer.question.names, self.explainer.question.texts
        return Truth.of(image.labels, read_annotations(image, names, texts, size, self.cases.annotations), names)


NO_USE_GOING_ON = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)  # the disk's trouble, not one image's


def one_thread() -> None:
    """What a thread that works on chunks is told: images are beside each other, and sums round as on any machine."""
    torch.set_num_threads(1)
    cv2.setNumThreads(1)


@contextlib.contextmanager
def sigterm_as_ctrl_c(ranks: Ranks) -> Iterator[None]:
    """While it lasts, SIGTERM (of a queue whose time is up, say) interrupts as Ctrl-C does.

    Not under torchrun, whose ranks end at once so that it can start them again; in the main thread alone: elsewhere
    Python takes no handler.
    """

    def interrupt(*_):
        raise KeyboardInterrupt

    if ranks.world > 1 or threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def finish_run(run: Run, plan: Sequence[PlannedImage], size: ChunkSize, ranks: Ranks) -> int:
    """Do the work, join the tables, and say how it went; returns the exit code: 1 where images are missing."""
    names = run.explainer.question.names
    with Progress(plan, ranks) as progress, sigterm_as_ctrl_c(ranks):
        try:
            run.work(plan, size, ranks, progress)
            ranks.announce("finished")
            ranks.wait_for("finished", range(ranks.world) if ranks.is_first else [])
        except BaseException as error:
            if ranks.is_first and run.state.shard is None:
                with contextlib.suppress(InputError):  # a disk that is full may be too full for the tables
                    run.state.join(names, run.cases.tolerance, run.choice.lang)
            if not isinstance(error, InputError):
                raise
            print_error(Message("{}；已完成的结果都在，排除故障后加 --resume 继续", error))
            return 1
    if not ranks.is_first:
        return 0
    return conclude(run.state, names, run.cases, run.report_choice, run.choice.lang, progress)


def conclude(
    state: RunState,
    names: Sequence[str],
    cases: CaseChoice,
    choice: ReportChoice,
    lang: str,
    progress: Progress | None = None,
) -> int:
    """Write tables, evaluation and report and say how it went; returns the exit code: 1 where images are missing.

    A shard's tables wait until all are joined. Where evaluation or report fails, the tables stay, and the code is 1.
    """
    totals, failures = state.totals(names) if state.shard else state.join(names, cases.tolerance, lang), []
    print_totals(totals, progress)
    if state.shard:
        say(Message("分片 {} 已完成；全部分片完成后执行 --join --output-dir {} 得到结果表", state.shard, state.folder))
    else:
        say(Message("结果表已保存：{}", Joined("、", map(str, totals.tables))))
        evaluation = None
        with _failing_alone(failures):
            evaluation = evaluate_run(state, totals, cases, lang) if totals.has_list else None
        with _failing_alone(failures):
            if choice.report:
                say(*write_report(state, totals, cases.tolerance, lang, evaluation, choice.anonymous))
            else:
                state.remove_report()
    print_problems(totals)
    return int(bool(failures) or totals.done < totals.total)


@contextlib.contextmanager
def _failing_alone(failures: list[InputError]) -> Iterator[None]:
    """An InputError while it lasts is said and added to `failures`; what comes after it is done all the same."""
    try:
        yield
    except InputError as error:
        failures.append(error)
        print_error(error)
