"""The valid list of cases with an annotation of each form, and what runs over it leave."""

import base64
import contextlib
import io
import json
import os
from pathlib import Path

import numpy as np
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, RLELossless, SegmentationStorage
from tiny import gradient_picture

import clip_gradcam_visualization as script

from .cases import CASE_RUN, HEADER, ROWS

SIZE = 48, 64  # (H, W)


def write_cases(folder: Path) -> None:
    folder.mkdir()
    picture = Image.fromarray(gradient_picture(*SIZE))
    for name in ("a", "b", "d"):
        picture.save(folder / f"{name}.png")
    grey = np.asarray(picture.convert("L"))
    _dataset(grey, SOPClassUID="1.2.840.10008.5.1.4.1.1.1", SOPInstanceUID="1.2.3").save_as(folder / "c.dcm")
    inside = np.zeros(SIZE, np.uint8)
    inside[10:30, 20:50] = 1
    _write_labelme(folder / "a.json", inside)
    _write_coco(folder / "coco.json")
    _write_masks(folder / "masks", Image.fromarray(255 * inside))
    _write_segmentations(folder / "segmentations", inside)
    (folder / "c_seg.dcm").write_bytes((folder / "segmentations" / "binary").read_bytes())
    lines = (",".join(row) + "\n" for row in [HEADER, *ROWS])
    (folder / "cases.csv").write_text("".join(lines), encoding="utf-8")


def _write_labelme(path: Path, inside: np.ndarray) -> None:
    stream = io.BytesIO()
    Image.fromarray(255 * inside[10:30, 20:50]).save(stream, format="png")
    points = {"polygon": [[5, 5], [40.5, 6], [20, 30]], "rectangle": [[3, 4], [20, 30]], "circle": [[30, 20], [35, 20]]}
    points |= {"point": [[7, 8]], "mask": [[20, 10], [49, 29]]}
    shapes = [{"label": f"{n % 3}", "shape_type": kind, "points": points[kind]} for n, kind in enumerate(points)]
    shapes[-1]["mask"] = base64.b64encode(stream.getvalue()).decode()
    shapes.append({"label": "别的", "points": [[1, 1], [2, 2], [3, 1]], "shape_type": "polygon"})
    document = {"version": "5.4.1", "shapes": shapes, "imagePath": "a.png", "imageData": None}
    path.write_text(json.dumps(document | {"imageHeight": SIZE[0], "imageWidth": SIZE[1]}, ensure_ascii=False), "utf-8")


def _write_coco(path: Path) -> None:
    height, width = SIZE
    runs = {"size": list(SIZE), "counts": [100, 300, height * width - 400]}
    forms = (
        {"segmentation": [[5, 5, 40, 6, 20, 30], [1, 1, 1, 9, 9, 9]]},
        {"segmentation": runs},
        {"segmentation": {"size": [4, 4], "counts": "52203"}},
        {"bbox": [10, 12.5, 20, 9]},
    )
    images = [{"id": n, "file_name": f"{name}.png", "width": width, "height": height} for n, name in enumerate("abd")]
    annotations = [{"id": n, "image_id": n % 2, "category_id": 1 + n % 2, **form} for n, form in enumerate(forms)]
    categories = [{"id": 1, "name": "松动"}, {"id": 2, "name": "感染"}]
    document = {"images": images, "annotations": annotations, "categories": categories}
    path.write_text(json.dumps(document, ensure_ascii=False), encoding="utf-8")


def _write_masks(folder: Path, mask: Image.Image) -> None:
    forms = {
        "png": {"grey": mask, "bits": mask.convert("1"), "palette": mask.convert("P"), "alpha": mask.convert("LA")},
        "tiff": {"grey": mask, "deep": Image.fromarray(np.asarray(mask, np.uint16) * 257), "bits": mask.convert("1")},
        "bmp": {"grey": mask},
        "gif": {"palette": mask.convert("P")},
        "jpeg": {"grey": mask},
    }
    for kind, masks in forms.items():
        (folder / kind).mkdir(parents=True)
        for name, picture in masks.items():
            picture.save(folder / kind / name, format=kind.upper())


def _item(**elements) -> Dataset:
    dataset = Dataset()
    for name, value in elements.items():
        setattr(dataset, name, value)
    return dataset


def _dataset(pixels: np.ndarray, **elements) -> Dataset:
    rows, columns = pixels.shape[-2:]
    about = {"Rows": rows, "Columns": columns, "SamplesPerPixel": 1, "PhotometricInterpretation": "MONOCHROME2"}
    about |= {"BitsAllocated": 8, "BitsStored": 8, "HighBit": 7, "PixelRepresentation": 0, "Modality": "CR"}
    dataset = _item(**about | elements)
    dataset.PixelData = elements.get("PixelData", pixels.tobytes())
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    return dataset


def _write_segmentations(folder: Path, inside: np.ndarray) -> None:
    folder.mkdir()
    sources = [_item(SourceImageSequence=[_item(ReferencedSOPInstanceUID="1.2.3")])]
    frames = [
        _item(SegmentIdentificationSequence=[_item(ReferencedSegmentNumber=n)], DerivationImageSequence=sources)
        for n in (1, 2)
    ]
    segments = [_item(SegmentNumber=n, SegmentLabel=label) for n, label in ((1, "松动"), (2, "感染"))]
    about = {"SOPClassUID": SegmentationStorage, "SOPInstanceUID": "1.2.9", "Modality": "SEG", "NumberOfFrames": 2}
    about |= {"SegmentSequence": segments, "PerFrameFunctionalGroupsSequence": frames, "SegmentationType": "BINARY"}
    about |= {"SpecificCharacterSet": "ISO_IR 192"}
    bits = {"BitsAllocated": 1, "BitsStored": 1, "HighBit": 0}
    both = np.stack([inside, inside[::-1]])
    packed = np.packbits(both, bitorder="little").tobytes()
    fractional = {"SegmentationType": "FRACTIONAL", "MaximumFractionalValue": 255}
    runs = _dataset(255 * both, **about | fractional)
    runs.compress(RLELossless, generate_instance_uid=False)
    datasets = {
        "binary": _dataset(both, **about, **bits, PixelData=packed),
        "fractional": _dataset(255 * both, **about | fractional),
        "runs": runs,
    }
    for name, dataset in datasets.items():
        dataset.save_as(folder / name, enforce_file_format=True)


def write_case_runs(folder: Path) -> None:
    """A finished run over the list, and one in two shards that are not joined yet; from the working folder's `out`."""
    for name, shards in (("case_run", [[]]), ("case_shards", [["--shard", "1/2"], ["--shard", "2/2"]])):
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()) as stderr:
            codes = [script.main([*CASE_RUN, *shard]) for shard in shards]
        if any(codes):
            raise RuntimeError(f"the valid cases do not work: {stderr.getvalue()}")
        for lock in Path("out").rglob("lock"):
            lock.write_text("")
        os.rename("out", folder / name)
