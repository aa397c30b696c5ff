"""models/images.py and models/images/dicom.py: finding, reading and decoding images."""

import os
import re
import signal
import struct
import subprocess
import sys
import time
import unicodedata
import warnings
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pydicom
import pytest
import torch
from PIL import Image
from project import PROJECT
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.sequence import Sequence
from pydicom.uid import UID
from tiny import gradient_picture

from models.errors import InputError, InputWarning
from models.explain.methods import METHODS
from models.images import loader as loader_module
from models.images.finding import IMAGE_SUFFIXES, find_images, is_single
from models.images.loader import DecodedChunk, ImageDataset, is_lost_worker, make_loader
from models.images.naming import ImageFile, common_parent, place_below
from models.images.preprocessing import square
from models.images.reading import read_image

NFC, NFD = (unicodedata.normalize(form, "ä") for form in ("NFC", "NFD"))


# -- reading ----------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:Palette images with Transparency")
@pytest.mark.parametrize(
    "suffix, change, options, tolerance",
    [
        (".png", lambda i: i, {}, 0),
        (".bmp", lambda i: i, {}, 0),
        (".tiff", lambda i: i, {}, 0),
        (".tif", lambda i: i, {"compression": "tiff_lzw"}, 0),
        (".webp", lambda i: i, {"lossless": True}, 0),
        (".jpg", lambda i: i, {"quality": 98}, 20),
        (".jpeg", lambda i: i, {"quality": 98, "progressive": True}, 20),
        (".png", lambda i: i.quantize(16), {}, 0),
        (".png", lambda i: i.convert("RGBA").quantize(16), {}, 0),
        (".png", lambda i: i.convert("L"), {}, 0),
        (".png", lambda i: i.convert("LA"), {}, 0),
        (".png", lambda i: i.convert("RGBA"), {}, 0),
        (".png", lambda i: i.convert("1"), {}, 0),
        (".tiff", lambda i: i.convert("CMYK"), {}, 0),
        (".jpg", lambda i: i.convert("CMYK"), {}, 20),
        (".jpg", lambda i: i.convert("YCbCr"), {}, 20),  # Pillow before 13 cannot read its own plain TIFF of it
    ],
)
def test_formats_and_colour_modes(tmp_path, suffix, change, options, tolerance):
    image = change(Image.fromarray(gradient_picture()))
    path = tmp_path / f"图 像{suffix}"
    image.save(path, **options)
    read = read_image(path)
    assert read.dtype == np.uint8 and read.shape == (60, 90, 3)
    assert np.abs(read.astype(int) - np.asarray(image.convert("RGB"))).max() <= tolerance
    np.testing.assert_array_equal(read_image(str(path)), read)


@pytest.mark.parametrize(
    "dtype, suffix, low, high",
    [
        (np.uint16, ".png", 1000, 3000),
        (np.uint16, ".tiff", 0, 65535),
        (np.int32, ".tiff", -500, 70000),
        (np.float32, ".tiff", -1.5, 2.5),
        (np.float32, ".tiff", -1e-6, 1e-6),
        (">u2", ".tiff", 10, 5000),
        (np.uint16, ".tiff", 777, 777),
        (np.int32, ".tiff", -4, -4),
    ],
)
def test_deep_grey_is_scaled_over_its_own_range(tmp_path, dtype, suffix, low, high):
    ramp = np.linspace(low, high, 60 * 90).reshape(60, 90)
    path = tmp_path / f"deep{suffix}"
    Image.fromarray(np.ascontiguousarray(ramp.astype(dtype))).save(path)
    read = read_image(path)
    top = 255 if high > low else 0  # one level alone is black
    assert read.dtype == np.uint8 and read.shape == (60, 90, 3)
    assert read.min() <= 1 and read.max() == top
    assert np.abs(grey_of(read) - np.linspace(0, top, 60 * 90).reshape(60, 90)).max() <= 1.01


def test_float_grey_with_nan_and_infinity(tmp_path):
    grey = np.linspace(0, 1, 12, dtype=np.float32).reshape(3, 4)
    expected = np.rint(grey * 255)
    for place, value in (((0, 0), np.nan), ((1, 1), np.inf), ((2, 0), -np.inf)):
        grey[place], expected[place] = value, 0
    Image.fromarray(grey).save(tmp_path / "a.tiff")
    np.testing.assert_array_equal(grey_of(read_image(tmp_path / "a.tiff")), expected)
    Image.fromarray(np.full((3, 4), np.nan, dtype=np.float32)).save(tmp_path / "b.tiff")
    with pytest.raises(InputError, match="b.tiff"):
        read_image(tmp_path / "b.tiff")


@pytest.mark.parametrize(
    "orientation, suffix, turn",  # EXIF orientation, and what must be done to the stored pixels
    [
        (1, ".png", lambda a: a),
        (2, ".webp", lambda a: a[:, ::-1]),
        (3, ".tiff", lambda a: a[::-1, ::-1]),
        (4, ".png", lambda a: a[::-1]),
        (5, ".webp", lambda a: a.transpose(1, 0, 2)),
        (6, ".tiff", lambda a: np.rot90(a, -1)),
        (7, ".png", lambda a: a[::-1, ::-1].transpose(1, 0, 2)),
        (8, ".webp", lambda a: np.rot90(a)),
    ],
)
def test_exif_rotation(tmp_path, orientation, suffix, turn):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"turned{suffix}"
    options = {"lossless": True} if suffix == ".webp" else {}
    Image.fromarray(gradient_picture()).save(path, exif=exif, **options)
    np.testing.assert_array_equal(read_image(path), turn(gradient_picture()))


def cut(data):
    return [data[: int(len(data) * share)] for share in np.linspace(0, 0.99, 40)]


def spoilt(data, start, stop, trials):
    """The data with a few bytes between start and stop changed at random."""
    generator = np.random.default_rng(0)
    for _ in range(trials):
        changed = np.frombuffer(data, np.uint8).copy()
        changed[generator.integers(start, min(len(data), stop), 10)] = generator.integers(0, 256, 10)
        yield changed.tobytes()


def refusals(path, contents):
    """How many contents of a file are refused, in one line that names it; the others are images."""
    count = 0
    for content in contents:
        path.write_bytes(content)
        try:
            assert read_image(path).shape[2] == 3
        except InputError as error:
            count += 1
            assert path.name in str(error) and "\n" not in str(error)
    return count


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tiff", ".bmp", ".webp", ".gif"])
def test_damaged_images_are_an_error_or_an_image(tmp_path, suffix):
    path = tmp_path / f"damaged{suffix}"
    Image.fromarray(gradient_picture()).save(path)
    data = path.read_bytes()
    assert refusals(path, [*cut(data), *spoilt(data, 0, 400, 20)]) >= 10


@pytest.mark.parametrize("content", [b"", b"hello", b"{}", struct.pack("<1000x")])
def test_a_file_that_is_no_image_a_missing_one_and_a_folder(tmp_path, content):
    (tmp_path / "a.png").write_bytes(content)
    places = {
        "a.png": "无法读取图像.*a.png",
        "没有.png": "找不到图像文件.*没有.png",
        "没有.dcm": "找不到图像文件",
        "": "无法读取图像",
    }
    for name, message in places.items():
        with pytest.raises(InputError, match=message):
            read_image(tmp_path / name)


def test_the_module_is_light():
    heavy = "('torch', 'PIL', 'pydicom', 'cv2', 'matplotlib', 'transformers')"
    code = f"import sys, models.images.finding; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


# -- DICOM ------------------------------------------------------------------------------------

RADIOGRAPH, REPORT = "1.2.840.10008.5.1.4.1.1.1.1", "1.2.840.10008.5.1.4.1.1.88.11"
IMPLICIT, EXPLICIT, DEFLATED, BIG_ENDIAN, JPEG, JPEG_LOSSLESS, MPEG2, RLE = (
    UID(f"1.2.840.10008.1.2{end}") for end in ("", ".1", ".1.99", ".2", ".4.50", ".4.70", ".4.100", ".5")
)
RAMP = np.arange(96, dtype=np.uint8).reshape(8, 12)
OWN_RANGE = np.rint(RAMP * 255.0 / 95)  # the ramp as it is drawn without a window


def dicom(pixels, kind="MONOCHROME2", bits=None, syntax=EXPLICIT, **tags):
    """A Dataset of pixels [H, W], [H, W, 3] or, with NumberOfFrames among the tags, [frames, H, W]."""
    pixels = np.asarray(pixels)
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = EXPLICIT if syntax == RLE else syntax
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = tags.get("SOPClassUID", RADIOGRAPH)
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID = "1.2.3"
    shape = pixels.shape[1:] if "NumberOfFrames" in tags else pixels.shape
    dataset.Rows, dataset.Columns, dataset.SamplesPerPixel = *shape[:2], 3 if len(shape) == 3 else 1
    dataset.PhotometricInterpretation, dataset.PlanarConfiguration = kind, 0
    dataset.BitsAllocated = 8 * pixels.dtype.itemsize
    if pixels.dtype.kind in "iu":
        dataset.BitsStored = bits or dataset.BitsAllocated
        dataset.HighBit = dataset.BitsStored - 1
        dataset.PixelRepresentation = int(pixels.dtype.kind == "i")
        order = ">" if syntax == BIG_ENDIAN else "<"
        dataset.PixelData = pixels.astype(pixels.dtype.newbyteorder(order)).tobytes()
        dataset["PixelData"].VR = "OW" if pixels.dtype.itemsize > 1 else "OB"
    else:
        setattr(dataset, {4: "FloatPixelData", 8: "DoubleFloatPixelData"}[pixels.dtype.itemsize], pixels.tobytes())
    for keyword, value in tags.items():
        setattr(dataset, keyword, value)
    if syntax == RLE:
        dataset.compress(RLE, encoding_plugin="pydicom")
    return dataset


def written(dataset, path):
    dataset.save_as(path, enforce_file_format=True)
    return path


@pytest.fixture
def read_dicom_of(tmp_path):
    """A function that writes a Dataset and reads it as an image: uint8 [H, W, 3]."""

    def write_and_read(dataset, name="image.dcm"):
        read = read_image(written(dataset, tmp_path / name))
        assert read.dtype == np.uint8 and read.shape == (dataset.Rows, dataset.Columns, 3)
        return read

    return write_and_read


def grey_of(read):
    assert (read == read[..., :1]).all()
    return read[..., 0].astype(int)


def assert_rounded(read, expected):
    assert np.abs(grey_of(read) - expected).max() <= 0.5 + 1e-6


def window_oracle(x, centre, width, function):
    """PS3.3 C.11.2.1.2.1, C.11.2.1.3.1 and C.11.2.1.3.2, from 0 to 255."""
    if function == "SIGMOID":
        return 255 / (1 + np.exp(-4 * (x - centre) / width))
    if function == "LINEAR":
        centre, width = centre - 0.5, width - 1
    return np.select([x <= centre - width / 2, x > centre + width / 2], [0, 255], ((x - centre) / width + 0.5) * 255)


STORED = {  # what is stored -> (pixels, bits stored)
    "8 bit": (np.arange(240, dtype=np.uint8).reshape(12, 20), 8),
    "12 bit": (np.linspace(0, 4095, 240).astype(np.uint16).reshape(12, 20), 12),
    "12 bit signed": (np.linspace(-2048, 2047, 240).astype(np.int16).reshape(12, 20), 12),
    "16 bit": (np.linspace(0, 65535, 240).astype(np.uint16).reshape(12, 20), 16),
    "16 bit signed": (np.linspace(-32768, 32767, 240).astype(np.int16).reshape(12, 20), 16),
    "32 bit signed": (np.linspace(-1e9, 1e9, 240).astype(np.int32).reshape(12, 20), 32),
    "float": (np.linspace(-3, 7, 240, dtype=np.float32).reshape(12, 20), None),
    "double": (np.linspace(-3, 7, 240, dtype=np.float64).reshape(12, 20), None),
}


@pytest.mark.parametrize("stored, function", list(zip(STORED, [None, "LINEAR", "LINEAR_EXACT", "SIGMOID"] * 2)))
@pytest.mark.parametrize("kind", ["MONOCHROME1", "MONOCHROME2"])
def test_windows_are_the_standards_and_without_one_the_frames_own_range_counts(read_dicom_of, stored, function, kind):
    pixels, bits = STORED[stored]
    low, high = float(pixels.min()), float(pixels.max())
    slope = f"{200 / (high - low):.10g}"
    window = {"RescaleSlope": slope, "RescaleIntercept": -20, "WindowCenter": 30, "WindowWidth": 61}
    window |= {"VOILUTFunction": function} if function else {}
    windowed = window_oracle(pixels.astype(np.float64) * float(slope) - 20, 30, 61, function or "LINEAR")
    for tags, expected in (window, windowed), ({}, (pixels.astype(np.float64) - low) * 255 / (high - low)):
        read = read_dicom_of(dicom(pixels, kind, bits, **tags))
        assert_rounded(read, 255 - expected if kind == "MONOCHROME1" else expected)
        assert read.min() < 10 and read.max() > 245 and len(np.unique(read)) > 20


@pytest.mark.parametrize(
    "tags, expected",
    [
        ({"WindowCenter": 40, "WindowWidth": 0}, OWN_RANGE),  # what cannot be used counts as none
        ({"WindowCenter": 40, "WindowWidth": "0.5"}, OWN_RANGE),
        ({"WindowCenter": 40, "WindowWidth": -50, "VOILUTFunction": "LINEAR_EXACT"}, OWN_RANGE),
        ({"WindowCenter": 40, "WindowWidth": 0, "VOILUTFunction": "LINEAR_EXACT"}, OWN_RANGE),
        ({"WindowCenter": 40, "WindowWidth": 0, "VOILUTFunction": "SIGMOID"}, OWN_RANGE),
        ({"WindowCenter": 40}, OWN_RANGE),
        ({"WindowWidth": 40}, OWN_RANGE),
        ({"WindowCenter": None, "WindowWidth": None}, OWN_RANGE),
        ({"RescaleSlope": 0, "RescaleIntercept": 3}, OWN_RANGE),
        ({"RescaleSlope": 2}, OWN_RANGE),
        ({"RescaleIntercept": -1000}, OWN_RANGE),
        ({"RescaleSlope": None, "RescaleIntercept": ""}, OWN_RANGE),
        ({"WindowCenter": 40, "WindowWidth": 1}, np.where(RAMP > 39.5, 255, 0)),
        ({"WindowCenter": [40, 90], "WindowWidth": [21, 3]}, np.rint(window_oracle(RAMP, 40, 21, "LINEAR"))),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_windows_that_are_none_a_threshold_or_several(read_dicom_of, tags, expected):
    np.testing.assert_array_equal(grey_of(read_dicom_of(dicom(RAMP, **tags))), expected)


@pytest.mark.filterwarnings("ignore")
def test_a_number_with_a_comma_counts_as_missing(tmp_path):
    path = written(dicom(RAMP, WindowCenter="40.5", WindowWidth="30.5"), tmp_path / "comma.dcm")
    path.write_bytes(path.read_bytes().replace(b"40.5", b"40,5"))
    np.testing.assert_array_equal(grey_of(read_image(path)), OWN_RANGE)


def lut_item(entries, first, bits, as_bytes=False):
    item = Dataset()
    item.add_new("LUTDescriptor", "US" if first >= 0 else "SS", [len(entries), first, bits])
    if as_bytes:
        item.add_new("LUTData", "OW", np.asarray(entries, dtype="<u1" if bits == 8 else "<u2").tobytes())
    else:
        item.add_new("LUTData", "US", [int(entry) for entry in entries])
    return item


@pytest.mark.parametrize(
    "bits, as_bytes, first", [(8, False, 0), (8, True, 30), (12, False, -10), (16, True, 0), (16, True, -10)]
)
def test_a_voi_lut_goes_before_the_window(read_dicom_of, bits, as_bytes, first):
    pixels = np.arange(-40, 360, dtype=np.int16).reshape(20, 20)
    table = (np.linspace(0, 1, 300) ** 2 * (2**bits - 1)).astype(int)
    tags = {"VOILUTSequence": Sequence([lut_item(table, first, bits, as_bytes)]), "WindowCenter": 0, "WindowWidth": 2}
    expected = table[np.clip(pixels.astype(int) - first, 0, 299)] * 255 / (2**bits - 1)
    assert_rounded(read_dicom_of(dicom(pixels, **tags)), expected)


def test_a_modality_lut_goes_before_the_window(read_dicom_of):
    pixels = np.arange(256, dtype=np.uint8).reshape(16, 16)
    table = np.arange(256)[::-1] * 16
    tags = {"ModalityLUTSequence": Sequence([lut_item(table, 0, 12)]), "WindowCenter": 2000, "WindowWidth": 1001}
    assert_rounded(read_dicom_of(dicom(pixels, **tags)), window_oracle(table[pixels], 2000, 1001, "LINEAR"))


@pytest.mark.parametrize(
    "value, limit, values",
    [
        (-2000, None, [-2000]),
        (-2000, -1990, [-2000, -1995, -1990]),
        (-1990, -2000, [-2000, -1995, -1990]),
        (2**16 - 2000, None, [-2000]),  # written unsigned for signed pixels
    ],
)
@pytest.mark.parametrize("kind", ["MONOCHROME1", "MONOCHROME2"])
def test_padding_is_left_out_of_the_range_and_darkest(read_dicom_of, value, limit, values, kind):
    pixels = np.linspace(100, 400, 100).astype(np.int16).reshape(10, 10)
    pixels[0, : len(values)] = values
    dataset = dicom(pixels, kind, RescaleSlope=2, RescaleIntercept=-1000)
    dataset.add_new("PixelPaddingValue", "US" if value > 0 else "SS", value)
    if limit:
        dataset.PixelPaddingRangeLimit = limit
    low, high = float(pixels[pixels > 0].min()), 400
    expected = (pixels - low) * 255 / (high - low)
    expected = 255 - expected if kind == "MONOCHROME1" else expected
    assert_rounded(read_dicom_of(dataset), np.where(pixels < 0, 0, expected))


def test_a_frame_of_nothing_but_padding_is_black(read_dicom_of):
    assert not read_dicom_of(dicom(np.full((4, 5), 7, dtype=np.uint8), PixelPaddingValue=7)).any()


def test_float_pixels_that_are_not_finite_are_darkest(read_dicom_of):
    pixels = np.linspace(0, 1, 12, dtype=np.float32).reshape(3, 4)
    pixels[0, 0], pixels[1, 1] = np.nan, np.inf
    for kind, window in (("MONOCHROME1", {}), ("MONOCHROME2", {"WindowCenter": 0, "WindowWidth": 2})):
        grey = grey_of(read_dicom_of(dicom(pixels, kind, **window)))
        assert grey[0, 0] == grey[1, 1] == 0 and grey.max() > 200


@pytest.mark.parametrize(
    "syntax, stored",
    list(zip([IMPLICIT, EXPLICIT, DEFLATED, BIG_ENDIAN, RLE] * 2, [*list(STORED)[:5], *list(STORED)[1:5], "8 bit"])),
    ids=str,
)
def test_the_first_frame_of_several_in_every_encoding(read_dicom_of, syntax, stored):
    pixels, bits = STORED[stored]
    frames = np.stack([pixels, pixels[::-1], np.zeros_like(pixels)])
    several = read_dicom_of(dicom(frames, bits=bits, syntax=syntax, NumberOfFrames=3))
    np.testing.assert_array_equal(several, read_dicom_of(dicom(pixels, bits=bits)))


def test_the_first_frames_own_functional_groups(read_dicom_of):
    """Enhanced multi-frame objects keep rescale and window in sequences, per frame or for all."""

    def item(**tags):
        dataset = Dataset()
        for keyword, value in tags.items():
            setattr(dataset, keyword, value)
        return dataset

    pixels = RAMP.astype(np.uint16)
    windows = [item(FrameVOILUTSequence=[item(WindowCenter=c, WindowWidth=41)]) for c in (100, 10)]
    rescale = [item(PixelValueTransformationSequence=[item(RescaleSlope=3, RescaleIntercept=-30)])]
    groups = {"PerFrameFunctionalGroupsSequence": windows, "SharedFunctionalGroupsSequence": rescale}
    enhanced = dicom(np.stack([pixels, pixels]), NumberOfFrames=2, **groups)
    assert_rounded(read_dicom_of(enhanced), window_oracle(pixels * 3.0 - 30, 100, 41, "LINEAR"))


def test_unused_high_bits_do_not_count(read_dicom_of):
    pixels = np.linspace(0, 4095, 240).astype(np.uint16).reshape(12, 20)
    overlaid = pixels | (np.arange(240).reshape(12, 20) % 3 == 0).astype(np.uint16) << 13
    np.testing.assert_array_equal(read_dicom_of(dicom(overlaid, bits=12)), read_dicom_of(dicom(pixels, bits=12)))


def encoded(syntax, dataset, data=b"\xff\xd8\xff\xd9" * 10):
    """A Dataset with other bytes as its compressed pixels; by itself, with none that can be decoded."""
    dataset.PixelData = encapsulate([data])
    dataset["PixelData"].VR = "OB"
    dataset.file_meta.TransferSyntaxUID = syntax
    return dataset


PICTURE = gradient_picture()
YBR = np.asarray(Image.fromarray(PICTURE).convert("YCbCr"))
YYBR = np.concatenate([YBR[:, 0::2, :1], YBR[:, 1::2, :1], YBR[:, 0::2, 1:]], axis=-1)  # for every two pixels of a row


@pytest.mark.parametrize(
    "dataset, tolerance",
    [
        (dicom(PICTURE, "RGB"), 0),
        (dicom(PICTURE, "RGB", PlanarConfiguration=1, PixelData=PICTURE.transpose(2, 0, 1).tobytes()), 0),
        (dicom(PICTURE.astype(np.uint16) * 257, "RGB"), 0),
        (dicom(YBR, "YBR_FULL"), 1.5),
        (dicom(YBR, "YBR_FULL_422", PixelData=YYBR.tobytes()), 4),
    ],
    ids=["RGB", "planar", "16 bits", "YBR_FULL", "YBR_FULL_422"],
)
def test_colours(read_dicom_of, dataset, tolerance):
    assert np.abs(read_dicom_of(dataset).astype(int) - PICTURE).mean() <= tolerance


@pytest.mark.parametrize("kind, mode", [("YBR_FULL_422", "RGB"), ("MONOCHROME2", "L")])
def test_jpeg_inside_dicom(read_dicom_of, tmp_path, kind, mode):
    """What a JPEG decoder gives for the same bytes outside of DICOM; Pillow decodes both."""
    path, image = tmp_path / "plain.jpg", Image.fromarray(PICTURE).convert(mode)
    image.save(path, quality=95)
    plain = read_image(path).astype(int)
    if mode == "L":
        plain = np.rint((plain - plain.min()) * 255 / (plain.max() - plain.min()))
    read = read_dicom_of(encoded(JPEG, dicom(np.asarray(image), kind), path.read_bytes()))
    assert np.abs(read.astype(int) - plain).max() <= 6  # decoders round, and few pixels have the last levels


@pytest.mark.parametrize("bits, first", [(8, 10), (16, 0), (16, 10)])
def test_palette(read_dicom_of, bits, first):
    pixels = np.arange(240, dtype=np.uint8).reshape(12, 20)
    colours = np.random.default_rng(0).integers(0, 256, (200, 3))
    dataset = dicom(pixels, "PALETTE COLOR")
    for name, entries in zip(("Red", "Green", "Blue"), colours.T):
        data = entries.astype("u1") if bits == 8 else (entries * 257).astype("<u2")
        setattr(dataset, f"{name}PaletteColorLookupTableDescriptor", [200, first, bits])
        setattr(dataset, f"{name}PaletteColorLookupTableData", data.tobytes())
    np.testing.assert_array_equal(read_dicom_of(dataset), colours[np.clip(pixels.astype(int) - first, 0, 199)])


def test_palette_in_segments(read_dicom_of):
    pixels = np.arange(240, dtype=np.uint8).reshape(12, 20)
    dataset = dicom(pixels, "PALETTE COLOR")
    for name in ("Red", "Green", "Blue"):
        segments = [0, 1, 10] + [1, 255, 250]  # discrete: one entry, 10; linear: 255 entries up to 250
        setattr(dataset, f"{name}PaletteColorLookupTableDescriptor", [256, 0, 8])
        setattr(dataset, f"Segmented{name}PaletteColorLookupTableData", bytes(segments))
    assert np.abs(grey_of(read_dicom_of(dataset)) - (10 + pixels.astype(float) * 240 / 255)).max() <= 1


@pytest.mark.parametrize("name", ["IM0001", "image.png", "1.2.840.1", "图 像.DICOM"])
def test_dicom_is_known_by_its_content_too(read_dicom_of, name):
    np.testing.assert_array_equal(grey_of(read_dicom_of(dicom(RAMP), name)), OWN_RANGE)


def assert_refused(content, folder, *words):
    """A file of bytes or of a Dataset is refused in one short line that holds the words."""
    path = folder / "refused.dcm"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        pydicom.dcmwrite(path, content, enforce_file_format=True, implicit_vr=False, little_endian=True)
    with pytest.raises(InputError) as caught:
        read_image(path)
    message = str(caught.value)
    assert path.name in message and "\n" not in message and len(message) < 400
    assert all(word in message for word in words)


def test_without_pydicom_its_installation_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pydicom.pixels", None)  # as before version 3
    assert_refused(dicom(RAMP), tmp_path, '读取 DICOM 需要 pydicom：pip install "pydicom>=3"')
    content = (tmp_path / "refused.dcm").read_bytes()
    monkeypatch.setitem(sys.modules, "pydicom", None)
    assert_refused(content, tmp_path, '读取 DICOM 需要 pydicom：pip install "pydicom>=3"')


def without(dataset, *keywords):
    for keyword in keywords:
        delattr(dataset, keyword)
    return dataset


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "content, words",
    [
        (b"", ["DICM", "重新导出"]),
        (b"hello" * 100, ["DICM", "重新导出"]),
        (bytes(1000), ["DICM", "重新导出"]),
        pytest.param(
            encoded(JPEG_LOSSLESS, dicom(RAMP)),
            ["JPEG Lossless", "pip install pylibjpeg"],
            marks=pytest.mark.skipif(find_spec("libjpeg") is not None, reason="its decoder is installed"),
        ),
        (encoded(MPEG2, dicom(RAMP)), ["MPEG2", "未压缩"]),
        (encoded(UID("1.2.3.4.5"), dicom(RAMP)), ["1.2.3.4.5", "未压缩"]),
        (encoded(JPEG, dicom(RAMP)), ["损坏"]),
        (encoded(RLE, dicom(RAMP)), ["损坏"]),
        (without(dicom(RAMP), "PixelData"), []),
        (without(dicom(RAMP, SOPClassUID=REPORT), "Rows", "Columns", "PixelData"), ["没有图像", "Basic Text SR"]),
        (dicom(RAMP, Rows=65535, Columns=65535), ["65535", "过大"]),
        (dicom(np.full((3, 4), np.nan, dtype=np.float32)), ["没有有限的像素值"]),
        (dicom(gradient_picture(), "ARGB"), []),
        (dicom(gradient_picture(), "YBR_PARTIAL_422"), []),
        (dicom(gradient_picture(), "HSV"), []),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_dicom_that_cannot_be_shown(tmp_path, content, words):
    assert_refused(content, tmp_path, *words)


def test_the_size_of_a_frame_is_limited(tmp_path, monkeypatch):
    monkeypatch.setattr("models.images.limits.MOST_PIXELS", 95)
    assert_refused(dicom(RAMP), tmp_path, "过大", "12×8", "上限 95 像素")
    monkeypatch.setattr("models.images.limits.MOST_PIXELS", 96)
    assert read_image(tmp_path / "refused.dcm").shape == (8, 12, 3)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("syntax", [IMPLICIT, EXPLICIT, DEFLATED, RLE], ids=lambda uid: uid.name)
def test_damaged_dicom_is_an_error_or_an_image(tmp_path, syntax):
    tags = {"WindowCenter": 99, "WindowWidth": 80, "VOILUTSequence": Sequence([lut_item(range(256), 0, 8)])}
    path = written(dicom(gradient_picture()[..., 0], syntax=syntax, **tags), tmp_path / "damaged.dcm")
    data = path.read_bytes()
    assert refusals(path, cut(data)) == 40
    refusals(path, spoilt(data, 132, 1200, 60))


# -- finding ----------------------------------------------------------------------------------


@pytest.fixture
def tree(tmp_path, monkeypatch):
    """A function that makes empty files below an empty working directory, and returns that."""
    folder = tmp_path / "tree"
    folder.mkdir()
    monkeypatch.chdir(folder)

    def make(*paths):
        for path in paths:
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).touch()
        return folder

    return make


def paths_of(*arguments, **options):
    return [image.path for image in find_images(arguments, **options).images]


def names_of(*arguments, **options):
    return [image.name for image in find_images(arguments, **options).images]


def test_a_folder_is_searched_recursively_in_the_order_of_its_parts(tree):
    root = tree(
        "d/b/2.JPG", "d/b/10.jpg", "d/a.png", "d/b.tif", "d/a/z.DCM", "d/a b/1.webp", "d/z.txt", "d/notes", "d/p.json",
        "d/.ipynb_checkpoints/a.png", "d/._a.png", "d/.hidden.png", "d/b/Thumbs.db", "d/病人/髋.jpeg", "d/x.dcm/1.png",
    )  # fmt: skip
    expected = ["a b/1.webp", "a.png", "a/z.DCM", "b.tif", "b/10.jpg", "b/2.JPG", "x.dcm/1.png", "病人/髋.jpeg"]
    expected.sort(key=lambda path: path.split("/"))
    os.mkfifo(root / "d" / "fifo.png")
    assert paths_of("d") == [f"d/{path}" for path in expected]
    found = find_images([str(root / "d")])
    assert found.root == str(root / "d") and [i.path for i in found.images] == [str(root / "d" / p) for p in expected]
    assert found.images[0] == ImageFile(str(root / "d/a/z.DCM"), "a/clip_gradcam_z")
    assert found.images[-1].name == "病人/clip_gradcam_髋"
    os.chdir("d")
    assert paths_of(".") == expected == paths_of("./")
    assert names_of(".") == [image.name for image in found.images]


def test_every_suffix_is_looked_for(tree):
    paths = [f"d/{name}" for suffix in IMAGE_SUFFIXES for name in (f"1{suffix}", f"2{suffix.upper()}")]
    tree(*paths)
    assert paths_of("d") == sorted(paths)


@pytest.mark.parametrize(
    "pattern, expected",
    {
        "d/*.png": ["d/1.png", "d/2.png"],
        "d/?.png": ["d/1.png", "d/2.png"],
        "d/*": ["d/1.png", "d/2.png", "d/IM0", "d/a/3.png", "d/a/b/4.png", "d/甲/5.png"],
        "d/**/*.png": ["d/1.png", "d/2.png", "d/a/3.png", "d/a/b/4.png", "d/甲/5.png"],
        "d/**": ["d/1.png", "d/2.png", "d/a/3.png", "d/a/b/4.png", "d/甲/5.png"],
        "**/b/*.png": ["d/a/b/4.png"],
        "d/**/IM*": ["d/IM0"],
        "d/[12].png": ["d/1.png", "d/2.png"],
        "d/[!1].png": ["d/2.png"],
        "d/[一-龥]/*.png": ["d/甲/5.png"],
        "d/[a-z]": ["d/a/3.png", "d/a/b/4.png"],
        "*/a/*.png": ["d/a/3.png"],
        "./d/a/../1.p*": ["d/a/../1.png"],
        "d/*/b/4.png": ["d/a/b/4.png"],
        f"e/{NFC}*.png": [f"e/{NFD}1.png"],  # composed and decomposed letters fit each other
        "e/a[1].png": ["e/a[1].png"],  # what exists as it is written is no pattern
        "e/x[1]": ["e/x[1]/2.png"],
        "e/x[1]/*.png": ["e/x[1]/2.png"],
        "[ab]": ["[ab]/4.png"],
        "e/a[1]*": ["e/a1.png"],
    }.items(),
)
def test_patterns(tree, pattern, expected):
    root = tree("d/1.png", "d/2.png", "d/IM0", "d/a/3.png", "d/a/b/4.png", "d/甲/5.png", "d/.h/6.png", "d/.7.png")
    tree("e/a[1].png", "e/a1.png", "e/x[1]/2.png", "e/x1/3.png", "[ab]/4.png", "a/5.png", f"e/{NFD}1.png")
    assert paths_of(pattern) == expected
    if ".." not in pattern:
        assert paths_of(str(root / pattern)) == [str(root / path) for path in expected]


def test_a_file_named_explicitly_is_taken_whatever_it_is_called(tree):
    tree("d/IM0001", "d/notes.txt", "d/.hidden.png", ".h/1.png", "d/clip_gradcam_1.png")
    assert paths_of("d/IM0001", "d/notes.txt", "d/.hidden.png", ".h") == [
        ".h/1.png", "d/.hidden.png", "d/IM0001", "d/notes.txt",
    ]  # fmt: skip
    with pytest.warns(InputWarning, match="clip_gradcam_1.png"):
        assert paths_of("d/clip_gradcam_1.png", exclude="d") == ["d/clip_gradcam_1.png"]


def test_the_same_file_reached_twice_appears_once(tree):
    root = tree("a/1.png", "a/b/2.png")
    (root / "link").symlink_to("a")
    for arguments in (
        ["a/1.png", "./a/1.png", "a/b/../1.png", str(root / "a/1.png"), "link/1.png"],
        ["a/1.png", "a/*.png", "a/?.png"],
    ):
        assert paths_of(*arguments) == ["a/1.png"]
    assert paths_of("a", "a/b", "a/b/2.png", "./a") == ["a/1.png", "a/b/2.png"]
    assert paths_of("link", "a") == ["link/1.png", "link/b/2.png"]
    assert paths_of(".") == ["a/1.png", "a/b/2.png"]  # the real folder goes before the link to it


def test_links_to_folders_are_followed_but_never_in_a_circle(tree):
    root = tree("d/1.png", "d/e/2.png", "other/3.png", "other/f/4.png", "beside.png")
    (root / "d" / "up").symlink_to("..")
    (root / "d" / "e" / "self").symlink_to(".")
    (root / "d" / "e" / "loop").symlink_to("../../d")
    (root / "d" / "more").symlink_to("../other")
    (root / "d" / "again").symlink_to("../other")
    (root / "other" / "back").symlink_to("../d")
    (root / "d" / "picture.png").symlink_to("1.png")
    (root / "d" / "lost.png").symlink_to("nowhere.png")
    expected = ["1.png", "again/3.png", "again/f/4.png", "e/2.png", "lost.png", "picture.png"]
    assert paths_of("d") == [f"d/{path}" for path in expected]
    assert paths_of("d/**/*.png") == [f"d/{path}" for path in expected]


def test_results_inside_of_the_searched_folder_are_no_input(tree):
    tree(
        "d/1.png",
        "d/out/clip_gradcam_1.png",
        "d/out/a/2.png",
        "d/deep/out/3.png",
        "d/clip_gradcam_4.png",
        "d/out2/6.png",
    )
    with pytest.warns(InputWarning, match="1 张.*d/clip_gradcam_4.png.*移走"):  # taken, and said
        expected = ["d/1.png", "d/clip_gradcam_4.png", "d/deep/out/3.png", "d/out2/6.png"]
        assert paths_of("d", exclude="d/out") == expected == paths_of("d/**/*.png", exclude=Path("d/out"))
    tree("d/e/5.png")
    expected = ["d/e/5.png", "d/out2/6.png"]
    assert paths_of("d/*/*.png", exclude="./d/out") == expected == paths_of("d/[eo]*", exclude="d/out")
    with pytest.raises(InputError, match="d/out.*输出目录"):
        paths_of("d/out/*.png", exclude="d/out")


def test_results_beside_the_images_are_no_input(tree):
    tree("d/1.png", "d/clip_gradcam_1.png", "d/a/clip_gradcam_2_overlay.png", "d/a/2.png")
    for exclude in ("d", "."):
        assert paths_of("d", exclude=exclude) == ["d/1.png", "d/a/2.png"] == paths_of("d/**/*", exclude=exclude)
    tree("e/clip_gradcam_1.png")
    with pytest.raises(InputError, match="输出目录"):
        paths_of("e", exclude="e")


def test_an_argument_that_means_no_image_is_named_with_the_remedy(tree):
    tree("d/1.png", "empty/notes.txt")
    for argument, words in {
        "none": "找不到.*none.*检查路径",
        "none.png": "找不到.*none.png",
        "empty": r"empty 中没有图像.*\.png.*\.dcm.*IM\*",
        "d/*.jpg": r"没有文件符合 d/\*\.jpg",
        "none/*.png": r"没有文件符合 none/\*\.png",
        "d/[.png": r"没有文件符合",
        "": "找不到",
        "a\0b": "找不到",
    }.items():
        for arguments in ([argument], ["d", argument]):
            with pytest.raises(InputError, match=words) as caught:
                find_images(arguments)
            assert "\n" not in str(caught.value)
    with pytest.raises(InputError):
        find_images([])
    assert find_images("d").images == find_images([Path("d")]).images == find_images(["d"]).images


def test_a_folder_that_cannot_be_read_is_said(tree, monkeypatch):
    tree("d/1.png", "d/locked/2.png")
    genuine = os.scandir

    def scandir(path):
        if str(path).endswith("locked"):
            raise PermissionError(13, "Permission denied", path)
        return genuine(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.warns(InputWarning, match="d/locked.*已跳过.*Permission denied"):
        assert paths_of("d") == ["d/1.png"]


def test_is_single(tree):
    tree("d/1.png", "a[1].png")
    for arguments in (["d/1.png"], ["a[1].png"], ["none.png"], "d/1.png", [Path("d/1.png")]):
        assert is_single(arguments)
    for arguments in (["d"], ["d/*.png"], ["d/1.png", "d/1.png"], ["none[1].png"], [], "d", ["."]):
        assert not is_single(arguments)


def test_the_root_is_what_the_arguments_have_in_common(tree):
    root = tree("d/a/1.png", "d/b/1.png", "e/1.png", "1.png")
    for arguments, common, names in (
        (["d"], "d", ["a/clip_gradcam_1", "b/clip_gradcam_1"]),
        (["d/*/1.png"], "d", ["a/clip_gradcam_1", "b/clip_gradcam_1"]),
        (["d/a/1.png"], "d/a", ["clip_gradcam_1"]),
        (["1.png"], ".", ["clip_gradcam_1"]),
        (["d/a", "d/b"], "d", ["a/clip_gradcam_1", "b/clip_gradcam_1"]),
        (["d/a/1.png", "d/b/1.png"], "d", ["a/clip_gradcam_1", "b/clip_gradcam_1"]),
        (["d/a", "d"], "d", ["a/clip_gradcam_1", "b/clip_gradcam_1"]),
        (["d/b", "e"], ".", ["d/b/clip_gradcam_1", "e/clip_gradcam_1"]),
        (["1.png", str(root / "e")], ".", ["clip_gradcam_1", "e/clip_gradcam_1"]),
    ):
        found = find_images(arguments)
        assert found.root == os.path.abspath(common)
        assert [image.name for image in found.images] == names


def test_several_windows_drives():
    import ntpath

    assert common_parent([r"C:\a\b", r"C:\a\c"], ntpath) == r"C:\a"
    assert place_below(r"C:\a\c", r"C:\a", ntpath) == "c" and place_below(r"C:\a", r"C:\a", ntpath) == ""
    assert common_parent([r"C:\a", r"D:\a", r"\\server\share\x"], ntpath) == ""
    places = [place_below(path, "", ntpath) for path in (r"C:\a", r"D:\a", r"D:" + "\\", r"\\server\share\x")]
    assert places == ["C/a", "D/a", "D", "server/share/x"]


# -- names of results -------------------------------------------------------------------------

ENDINGS = ["", "_overlay", "_overlay_0", "_overlay_12", "_heatmap", "_heatmap_0", "_heatmap_12", "_heatmap_layer"]
ENDINGS += ["_heatmap_12_layer", "_heatmap_layer_12", "_panel_a", "_panel_b"]


def assert_no_two_share_a_file(names):
    """Not even on a file system that folds case or composes letters."""

    def folded(text):
        return unicodedata.normalize("NFC", unicodedata.normalize("NFC", text).casefold())

    results = [folded(name + ending) for name in names for ending in ENDINGS]
    assert len(set(results)) == len(results)


COLLISIONS = {  # files -> the stems of their results
    "001.jpg 001.png 002.jpg": "001.jpg 001.png 002",
    "001.jpg 001_overlay.jpg": "001.jpg 001_overlay.jpg",
    "001.jpg 001_overlay_2.jpg": "001.jpg 001_overlay_2.jpg",
    "001.jpg 001_heatmap_layer.png": "001.jpg 001_heatmap_layer.png",
    "001_overlay.jpg 002.jpg": "001_overlay 002",
    "1.png 1_overlay.png 1_overlay_heatmap.png": "1.png 1_overlay.png 1_overlay_heatmap.png",
    "A.jpg a.jpg": "A.jpg a.jpg-2",
    "a.JPG a.jpg": "a.JPG a.jpg-2",
    "a.jpg a.jpg.png a.png": "a.jpg-2 a.jpg a.png",
    "a.jpg a_overlay": "a.jpg a_overlay",
    "a.jpg a_panel_b.jpg b_panel_a.jpg a_panel.jpg": "a.jpg a_panel a_panel_b.jpg b_panel_a",
    "a a_overlay": "a a_overlay-2",
    "a a_overlay_layer": "a a_overlay_layer-2",
    "a a_heatmap_grad-eclip": "a a_heatmap_grad-eclip-2",
    "a a_heatmap_scorecam2_1": "a a_heatmap_scorecam2_1-2",
    "a a.jpg": "a a.jpg",
    "a.png A_Overlay.png": "A_Overlay.png a.png",
    f"{NFD}.png {NFC}.png": f"{NFD}.png {NFC}.png-2",
    "1.2.840.1 1.2.840.2": "1.2.840.1 1.2.840.2",
    "A/1.png a/1.png a/2.png b/1.png": "A/1.png a/1.png-2 a/2 b/1",
}


@pytest.mark.parametrize("files, stems", COLLISIONS.items())
def test_names_that_would_collide_keep_their_suffix(tree, files, stems):
    root = tree(*(f"d/{name}" for name in files.split()))
    assert names_of("d/*") == [re.sub("([^/]+)$", r"clip_gradcam_\1", stem) for stem in stems.split()]
    assert names_of(*reversed(sorted(str(root / "d" / name) for name in files.split()))) == names_of("d/*")
    assert_no_two_share_a_file(names_of("d/*"))


@pytest.mark.parametrize("method", METHODS)
def test_results_of_each_method_are_known_by_its_name(tree, method):
    files = ["a.png", f"a_overlay_{method}.png", f"a_heatmap_layer_{method}_2.png"]
    tree(*(f"d/{name}" for name in files))
    assert set(names_of("d")) == {f"clip_gradcam_{name}" for name in files}  # with the suffix: they would meet


def test_no_two_images_ever_share_a_file(tree):
    """Names made at random of the parts that matter."""
    generator = np.random.default_rng(0)
    parts = ["a", "A", "_overlay", "_heatmap", "_panel", "_b", "_2", "_layer", ".png", ".jpg", ".PNG", NFC, NFD]
    for trial in range(40):
        names = {"".join(generator.choice(parts, generator.integers(1, 5))) for _ in range(40)}
        names = {name for name in names if not name.startswith(".")}
        folder = tree(*(f"{trial}/{name}" for name in names)) / str(trial)
        stems = names_of(*(str(folder / name) for name in names))
        assert len(stems) == len(names)
        assert_no_two_share_a_file(stems)


@pytest.mark.parametrize("stem", ["a" * 240, "髋" * 80, "é" * 120, unicodedata.normalize("NFD", "é") * 80])
def test_long_names_are_shortened_and_stay_apart(tree, stem):
    tree(*(f"d/{stem}{end}.png" for end in ("1", "2")))
    names = names_of("d")
    assert len(set(names)) == 2
    for name in names:
        assert name.startswith("clip_gradcam_" + stem[:20])
        assert len(name.encode()) <= 200
        (Path("d") / f"{name}_heatmap_layer_12.npy").touch()
    assert names_of(f"d/{stem}1.png") == [names[0]]


def test_names_with_bytes_that_are_no_text(tree):
    root = os.fsencode(tree("d/1.png"))
    with open(os.path.join(root, b"d", b"\xff" * 200 + b".png"), "wb"), open(os.path.join(root, b"d\xfe.png"), "wb"):
        pass
    found = find_images(["d", os.fsdecode(b"d\xfe.png")]).images
    assert len(found) == 3 and all(os.path.exists(image.path) for image in found)
    assert all(len(os.fsencode(image.name)) < 255 for image in found)


# -- decoding beside the model ----------------------------------------------------------------


def chunk_of(index, paths):
    return index, [(10 * index + row, path) for row, path in enumerate(paths)]


@pytest.fixture
def pictures(tmp_path):
    """Paths of seven images of different sizes, the fifth damaged."""
    paths = []
    for index in range(7):
        path = tmp_path / f"{index}.png"
        Image.fromarray(gradient_picture(20 + index, 30 + 2 * index)).save(path)
        paths.append(str(path))
    Path(paths[4]).write_bytes(b"\x89PNG\r\n\x1a\n damaged")
    return paths


def test_a_chunk_of_images(pictures):
    chunk = ImageDataset(square(16))[chunk_of(3, [pictures[0], None, pictures[4], pictures[1]])]
    assert isinstance(chunk, DecodedChunk) and chunk.index == 3
    assert chunk.resized.shape == (4, 16, 16, 3) and chunk.resized.dtype == np.uint8
    for row, path in ((0, pictures[0]), (3, pictures[1])):
        np.testing.assert_array_equal(chunk.pixels[row], read_image(path))
        np.testing.assert_array_equal(chunk.resized[row], square(16).resize_and_crop(read_image(path)))
        assert chunk.errors[row] is None
    for row in (1, 2):
        assert chunk.pixels[row] is None and not chunk.resized[row].any()
    assert chunk.errors[1] is None and "4.png" in str(chunk.errors[2]) and "\n" not in str(chunk.errors[2])


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("two\nlines"), RecursionError("deep"), KeyError("x")])
def test_whatever_a_decoder_raises_is_a_reason_of_one_line(pictures, monkeypatch, error):
    genuine = loader_module.read_image

    def read(path, *options):
        warnings.warn("what a library says", UserWarning, stacklevel=1)
        if path == pictures[1]:
            raise error
        return genuine(path, *options)

    monkeypatch.setattr(loader_module, "read_image", read)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        chunk = ImageDataset(square(16))[chunk_of(0, pictures[:3])]
    assert [reason is None for reason in chunk.errors] == [True, False, True]
    assert pictures[1] in str(chunk.errors[1]) and "\n" not in str(chunk.errors[1])
    assert chunk.pixels[2] is not None


@pytest.mark.parametrize("num_workers, method", [(0, "spawn"), (1, "spawn"), (2, loader_module.START_METHOD)])
def test_the_loader_gives_chunks_in_order_and_draws_lazily(pictures, monkeypatch, num_workers, method):
    monkeypatch.setattr(loader_module, "START_METHOD", method)
    drawn = []

    def chunks():
        for index in range(30):
            drawn.append(index)
            yield chunk_of(index, [pictures[index % 7], None])

    before = torch.get_rng_state()
    received = []
    for chunk in make_loader(ImageDataset(square(16)), chunks(), num_workers):
        received.append(chunk.index)
        assert len(drawn) - len(received) <= 2 * num_workers + 1
        assert isinstance(chunk.resized, np.ndarray) and isinstance(chunk.errors, list)
        broken = chunk.index % 7 == 4
        assert (chunk.errors[0] is not None) == broken == (chunk.pixels[0] is None)
        if not broken:
            np.testing.assert_array_equal(chunk.pixels[0], read_image(pictures[chunk.index % 7]))
    assert received == list(range(30)) == drawn
    assert torch.equal(torch.get_rng_state(), before)


def test_workers_start_after_libraries_have_used_their_threads(pictures):
    """In a process of its own: a worker that waits for a thread which the fork did not copy would wait for ever."""
    code = (
        "import sys, cv2, numpy as np, torch\n"
        "from models.images.loader import ImageDataset, make_loader\n"
        "from models.images.preprocessing import square\n"
        "cv2.setNumThreads(4), torch.set_num_threads(4)\n"
        "cv2.GaussianBlur(np.zeros((3000, 3000, 3), np.float32), (9, 9), 0)\n"
        "torch.nn.functional.conv2d(torch.zeros(4, 3, 200, 200), torch.zeros(8, 3, 5, 5))\n"
        "chunks = ((i, [(i, path)]) for i, path in enumerate(sys.argv[1:]))\n"
        "print(*(chunk.index for chunk in make_loader(ImageDataset(square(16)), chunks, 2)))\n"
    )
    command = [sys.executable, "-c", code, *pictures]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, timeout=60)
    assert done.stdout == "0 1 2 3 4 5 6\n", done.stderr


def test_a_worker_that_is_killed_can_be_told_apart(pictures):
    loader = iter(make_loader(ImageDataset(square(16)), (chunk_of(i, pictures) for i in range(10_000)), 2))
    next(loader)
    with pytest.raises(RuntimeError) as caught:
        os.kill(loader._workers[0].pid, signal.SIGKILL)
        for _ in loader:
            time.sleep(0.01)
    assert is_lost_worker(caught.value)
    assert not is_lost_worker(RuntimeError("CUDA out of memory")) and not is_lost_worker(ValueError("x"))


CONSUMER = """
import sys, time
from models.images.loader import ImageDataset, make_loader
from models.images.preprocessing import square
chunks = ((i, [(0, sys.argv[1])] * 8) for i in range(10_000))
loader = iter(make_loader(ImageDataset(square(32)), chunks, 2))
next(loader), next(loader)  # one of each worker
print(*(worker.pid for worker in loader._workers), flush=True)
for line in sys.stdin:
    print(next(loader).index, flush=True)
time.sleep(60)
"""


def is_running(pid):
    """Whether a process is there and not merely waiting for its exit code to be read."""
    state = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True).stdout.strip()
    return state not in ("", "Z", "Z+", "Zl")


def test_workers_leave_ctrl_c_to_the_consumer_and_end_with_it(tmp_path):
    Image.fromarray(gradient_picture(600, 800)).save(tmp_path / "large.png")
    command = [sys.executable, "-c", CONSUMER, str(tmp_path / "large.png")]
    with subprocess.Popen(command, cwd=PROJECT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        workers = [int(pid) for pid in process.stdout.readline().split()]
        assert len(workers) == 2
        for pid in workers:
            os.kill(pid, signal.SIGINT)
        for index in range(2, 5):
            process.stdin.write("next\n")
            process.stdin.flush()
            assert process.stdout.readline() == f"{index}\n"
        time.sleep(1)  # until the workers are blocked: their results are larger than the pipe
        assert all(is_running(pid) for pid in workers)
        process.kill()
    deadline = time.monotonic() + 15
    while any(is_running(pid) for pid in workers) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(is_running(pid) for pid in workers)
