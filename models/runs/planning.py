"""Which images a run is over, in which order, and what the list of cases says of each."""

from __future__ import annotations

import contextlib
import os
import warnings
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import NamedTuple

from ..cases.annotations import check_shared, fingerprint, matched_by_name
from ..cases.listing import Case, CaseList, read_cases
from ..errors import InputError, InputWarning, say
from ..images.finding import find_images
from ..images.naming import common_parent, name_results, place_below
from ..messages import Joined, Message
from .records import PlannedImage
from .tables import list_columns


class Sources(NamedTuple):
    """What the user names: images, a list of cases, or both."""

    images: Sequence[str] | None  # files, folders, patterns
    cases: str | None = None  # a list: see `models.cases.listing`
    splits: Sequence[str] | None = None  # of the list, those that count
    annotations: str | None = None  # a COCO file or a folder, for cases that name no annotation of their own


class Plan(NamedTuple):
    root: str  # absolute: the folder that the outputs' folders are relative to
    images: list[PlannedImage]


def plan_images(sources: Sources, exclude: str | os.PathLike, names: Sequence[str], by_label: bool = False) -> Plan:
    """The images of files, folders and patterns, or those of a list of cases, in its order; all to do.

    With both the list is narrowed to the images that are found. `exclude`: the output folder; `by_label`: each image's
    labels are to be explained. Raises InputError as `find_images` and `read_cases`.
    """
    if sources.cases is not None or sources.annotations is not None:
        _check_names(names)
    if sources.annotations is not None:
        check_shared(sources.annotations)
    if sources.cases is None:
        return _plan_of_found(sources, exclude)
    folders = [path for path in sources.images or () if os.path.isdir(path)]
    listed = read_cases(sources.cases, names, folders, sources.splits, by_label)
    _describe(listed, sources)
    cases = listed.cases if sources.images is None else _found_among(listed.cases, sources.images, exclude)
    root, outputs = _outputs_of([case.path for case in cases])
    own = [name for name in ("patient", "split") if any(getattr(case, name) is not None for case in cases)]
    others = list_columns(listed.columns).values()

    def planned(case):
        columns = {"id": case.id, "image": case.image, **{name: getattr(case, name) for name in own}}
        columns |= dict(zip(others, case.others))
        output, digest = outputs[os.path.abspath(case.path)], fingerprint(case, sources.annotations)
        return PlannedImage(case.path, output, True, columns, case.labels, case.annotations, digest)

    images = list(map(planned, cases))
    _check_matches(images, sources.annotations)
    return Plan(root, images)


def _check_names(names: Sequence[str]) -> None:
    """InputError where two texts have one short name: labels and annotations could not tell them apart."""
    twice = [name for name, count in Counter(name.strip() for name in names).items() if count > 1]
    if twice:
        raise InputError("类别的短名 {} 出现了两次：标签和标注无法区分它们，请改名", twice[0])


def _check_matches(images: Sequence[PlannedImage], default: str | None) -> None:
    """InputError where two images have one annotation by their names: one of them would be measured on another's."""
    named = Counter(path for image in images for path in image.annotations)
    shared = {path for path, count in named.items() if count > 1 or os.path.isdir(path)}
    shared |= {default} if default else set()
    owners: dict[str, str] = {}
    for image in images:
        for path in shared.intersection(image.annotations or [default]):
            match = None
            with contextlib.suppress(InputError):  # said of the image
                match = matched_by_name(image, path)
            # by its text: messages of one sentence share a hash, and thousands of keys would be compared one by one
            owner = owners.setdefault(str(match), image.image) if match else image.image
            if owner != image.image:
                raise InputError(
                    "按文件名，{} 同时是 {} 和 {} 的标注：请让子文件夹也一致，或在列表的 annotation 列写明各自的文件",
                    *(match, owner, image.image),
                )


WRITTEN_AS = {  # how the list calls a column
    "image": "图像＝{}",
    "label": "标签＝{}",
    "annotation": "标注＝{}",
    "patient": "患者＝{}",
    "split": "划分＝{}",
    "id": "编号＝{}",
}
LACKING = {"label": "标签 列", "annotation": "标注 列", "patient": "患者 列"}


def _describe(listed: CaseList, sources: Sources) -> None:
    """Say how the list is read and warn of what the evaluation will lack: a column may have an unforeseen name."""
    own = Joined("，", (Message(WRITTEN_AS[column], written) for column, written in listed.own.items()))
    missing = Joined("、", (Message(name) for column, name in LACKING.items() if column not in listed.own))
    lacking = Message("；没有 {}", missing) if missing else ""
    carried = Message("；原样带入结果表：{}", Joined("、", listed.columns)) if listed.columns else ""
    say(Message("病例列表 {}：{} 个病例；{}{}{}", sources.cases, len(listed.cases), own, lacking, carried))
    if "label" not in listed.own and ("annotation" in listed.own or sources.annotations):
        warnings.warn(
            InputWarning("列表没有 label（标签）列：有标注的文本算作标签，没有标注的图像不计入准确率"), stacklevel=3
        )
    empty = [case.line for case in listed.cases if case.patient is None]
    if "patient" in listed.own and empty:
        warnings.warn(
            InputWarning("patient（患者）列有 {} 行是空的，例如第 {} 行：置信区间只能按图像重抽", len(empty), empty[0]),
            stacklevel=3,
        )


def _plan_of_found(sources: Sources, exclude) -> Plan:
    """Of images without a list; where there are annotations, these alone say what is true of each."""
    found = find_images(sources.images, exclude)
    planned = []
    for path, name in found.images:
        folder, file = os.path.split(os.path.abspath(path))
        place = place_below(folder, found.root)
        image = PlannedImage(path, name, True, {"id": f"{place}/{file}" if place else file, "image": path})
        case = fingerprint(image, sources.annotations) if sources.annotations else None
        planned.append(image._replace(case=case))
    _check_matches(planned, sources.annotations)
    return Plan(found.root, planned)


def _found_among(cases: Sequence[Case], images: Sequence[str], exclude) -> list[Case]:
    """The cases whose image is one of those that the user names; what is left out on either side is said."""
    found = {os.path.abspath(path) for path, _ in find_images(images, exclude).images}
    common = [case for case in cases if os.path.abspath(case.path) in found]
    if not common:
        raise InputError("列表中的图像没有一张在 --image-path 之中；请检查两者，或去掉 --image-path")
    for count, what in (
        (len(cases) - len(common), "列表中有 {} 张图像不在 --image-path 之中，没有处理"),
        (len(found) - len(common), "--image-path 中有 {} 张图像不在列表之中，没有处理"),
    ):
        if count:
            warnings.warn(InputWarning(what, count), stacklevel=3)
    return common


def _outputs_of(paths: Sequence[str]) -> tuple[str, dict[str, str]]:
    """(the folder that all lie in, {absolute path: name of the outputs})."""
    files = defaultdict(list)
    for path in paths:
        folder, file = os.path.split(path)
        files[folder or "."].append(file)
    root = common_parent(map(os.path.abspath, files))
    return root, {os.path.abspath(path): name for path, name in name_results(files.items(), root)}
