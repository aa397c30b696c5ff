"""DICOM files of every kind, small, each with the options that make dcmtk's dcm2pnm show it as a viewer does.

The pictures that dcm2pnm makes of them stand in `dcm2pnm.npz`; `make_dcm2pnm.py` writes that again.
"""

import io
from typing import NamedTuple

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.filewriter import write_dataset
from pydicom.sequence import Sequence
from pydicom.uid import UID

IMPLICIT, EXPLICIT, DEFLATED, BIG_ENDIAN, RLE, JPEG_2000 = (
    UID(f"1.2.840.10008.1.2{end}") for end in ("", ".1", ".1.99", ".2", ".5", ".4.90")
)
SHAPE = (32, 40)
RAMP = np.linspace(0, 4095, SHAPE[0] * SHAPE[1]).astype(np.uint16).reshape(SHAPE)
SIGNED = (RAMP.astype(np.int16) - 2048).reshape(SHAPE)
EIGHT = (RAMP >> 4).astype(np.uint8)
COLOURS = np.dstack([EIGHT, EIGHT[::-1], EIGHT[:, ::-1]])
WINDOW = {"WindowCenter": "2000", "WindowWidth": "3000"}
WINDOWED, RANGE, VOI_TABLE, PLAIN = ("+Wi", "1"), ("+Wm",), ("+Wl", "1"), ()


class Kind(NamedTuple):
    data: bytes
    options: tuple[str, ...]  # of dcm2pnm
    tolerance: int = 1  # levels


def dataset(pixels, kind="MONOCHROME2", bits=None, **tags) -> Dataset:
    """Image and pixels [H, W], [H, W, 3] or, with NumberOfFrames, [frames, H, W], without a meta header."""
    ds = Dataset()
    ds.SOPClassUID, ds.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.1", "1.2.3"
    shape = pixels.shape[1:] if "NumberOfFrames" in tags else pixels.shape
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 3 if len(shape) == 3 else 1, kind
    if len(shape) == 3:
        ds.PlanarConfiguration = 0
    ds.Rows, ds.Columns = shape[:2]
    ds.BitsAllocated = 8 * pixels.dtype.itemsize
    ds.BitsStored = bits or ds.BitsAllocated
    ds.HighBit, ds.PixelRepresentation = ds.BitsStored - 1, int(pixels.dtype.kind == "i")
    ds.add_new("PixelData", "OW" if pixels.dtype.itemsize > 1 else "OB", pixels.tobytes())
    for keyword, value in tags.items():
        setattr(ds, keyword, value)
    return ds


def file_of(ds, syntax=EXPLICIT) -> bytes:
    """A whole file; of a big-endian one the pixels are those of this machine swapped."""
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = EXPLICIT if syntax in (RLE, JPEG_2000) else syntax
    ds.file_meta.MediaStorageSOPClassUID, ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPClassUID, ds.SOPInstanceUID
    if syntax == BIG_ENDIAN:
        ds.PixelData = np.frombuffer(ds.PixelData, np.uint16).byteswap().tobytes()
    if syntax == RLE:
        ds.compress(RLE, encoding_plugin="pydicom")
    elif syntax == JPEG_2000:
        ds.compress(JPEG_2000, encoding_plugin="pylibjpeg")
    file = io.BytesIO()
    ds.save_as(file, enforce_file_format=True)
    return file.getvalue()


def bare(ds, is_implicit=False, is_little=True) -> bytes:
    """The dataset alone: no preamble, no meta header."""
    from pydicom.filebase import DicomBytesIO

    file = DicomBytesIO()
    file.is_implicit_VR, file.is_little_endian = is_implicit, is_little
    write_dataset(file, ds)
    return file.getvalue()


def without_syntax(data: bytes) -> bytes:
    """A file without its TransferSyntaxUID, the group's length mended."""
    at = data.index(b"\x02\x00\x10\x00UI")
    length = 8 + int.from_bytes(data[at + 6 : at + 8], "little")
    cut = bytearray(data[:at] + data[at + length :])
    group = cut.index(b"\x02\x00\x00\x00UL") + 8
    cut[group : group + 4] = (int.from_bytes(cut[group : group + 4], "little") - length).to_bytes(4, "little")
    return bytes(cut)


def table(entries, first, bits, vr, data_vr="US") -> Sequence:
    """A sequence of one LUT whose descriptor is written with a VR, `first` as it is or wrapped to fit."""
    item = Dataset()
    limits = (0, 2**16) if vr == "US" else (-(2**15), 2**15)
    first = first + 2**16 if first < limits[0] else first - 2**16 if first >= limits[1] else first
    item.add_new("LUTDescriptor", vr, [len(entries), first, bits])
    values = np.asarray(entries)
    item.add_new("LUTData", data_vr, values.tolist() if data_vr == "US" else values.astype("<u2").tobytes())
    return Sequence([item])


def empty_table() -> Sequence:
    item = Dataset()
    item.add_new("LUTDescriptor", "SS", None)
    item.add_new("LUTData", "OW", None)
    return Sequence([item])


def palette(bits) -> dict:
    tags = {}
    for name, factor in zip(("Red", "Green", "Blue"), (1.0, 0.5, 0.25)):
        entries = (np.arange(256) * factor).astype(int)
        data = entries.astype("u1") if bits == 8 else (entries * 257).astype("<u2")
        tags[f"{name}PaletteColorLookupTableDescriptor"] = [256, 0, bits]
        tags[f"{name}PaletteColorLookupTableData"] = data.tobytes()
    return tags


def _ybr(rgb):
    """PS3.3 C.7.6.3.1.2"""
    matrix = np.array([[0.299, 0.587, 0.114], [-0.168736, -0.331264, 0.5], [0.5, -0.418688, -0.081312]])
    return np.clip(np.rint(rgb @ matrix.T + [0, 128, 128]), 0, 255).astype(np.uint8)


def kinds() -> dict[str, Kind]:
    """A file of each kind that is written here; those of JPEG are dcmtk's (`make_dcm2pnm.py`)."""
    curve = (np.linspace(0, 1, 3000) ** 2 * 4095).astype(int)
    good = dataset(RAMP, bits=12, **WINDOW)
    files = {
        "window": (good, WINDOWED),
        "two windows": (dataset(RAMP, bits=12, WindowCenter=["2000", "90"], WindowWidth=["3000", "9"]), WINDOWED),
        "narrow window": (dataset(RAMP, bits=12, WindowCenter="2000", WindowWidth="2"), WINDOWED),
        "threshold": (dataset(RAMP, bits=12, WindowCenter="2000", WindowWidth="1"), WINDOWED),
        "sigmoid": (dataset(RAMP, bits=12, VOILUTFunction="SIGMOID", **WINDOW), WINDOWED),
        "window that misses": (dataset(RAMP + 12000, WindowCenter="3174", WindowWidth="2426"), WINDOWED),
        "monochrome1": (dataset(RAMP, "MONOCHROME1", 12, **WINDOW), WINDOWED),
        "spaces": (dataset(RAMP, "MONOCHROME1 ", 12, **WINDOW), WINDOWED),
        "inverse 1": (dataset(RAMP, "MONOCHROME1", 12, PresentationLUTShape="INVERSE", **WINDOW), WINDOWED),
        "inverse 2": (dataset(RAMP, "MONOCHROME2", 12, PresentationLUTShape="INVERSE", **WINDOW), WINDOWED),
        "identity 1": (dataset(RAMP, "MONOCHROME1", 12, PresentationLUTShape="IDENTITY", **WINDOW), WINDOWED),
        "identity 2": (dataset(RAMP, "MONOCHROME2", 12, PresentationLUTShape="IDENTITY", **WINDOW), WINDOWED),
        "high bit 15 of 12": (dataset(RAMP << 4, bits=12, HighBit=15, **WINDOW), WINDOWED),
        "high bit 13 of 12": (dataset(RAMP << 2 | 0xC003, bits=12, HighBit=13, **WINDOW), WINDOWED),
        "high bit 15 of 12, signed": (
            dataset(SIGNED << 4, bits=12, HighBit=15, WindowCenter="0", WindowWidth="3000"),
            WINDOWED,
        ),
        "high bit of 8 in 16": (dataset(EIGHT.astype(np.uint16) << 8, bits=8, HighBit=15), RANGE),
        "overlay above": (dataset(RAMP | 0x5000, bits=12, **WINDOW), WINDOWED),
        "overlay above, signed": (
            dataset(SIGNED & 0xFFF | 0x5000, bits=12, WindowCenter="0", WindowWidth="3000"),
            WINDOWED,
        ),
        "signed": (dataset(SIGNED, bits=12, WindowCenter="0", WindowWidth="3000"), WINDOWED),
        "signed 16": (dataset(SIGNED * 15, WindowCenter="100", WindowWidth="45000"), WINDOWED),
        "8 bits": (dataset(EIGHT, WindowCenter="100", WindowWidth="200"), WINDOWED),
        "32 bits": (dataset(RAMP.astype(np.uint32) * 1000, WindowCenter="2e6", WindowWidth="3e6"), WINDOWED),
        "1 bit": (
            dataset(EIGHT, bits=1, BitsAllocated=1, PixelData=np.packbits(EIGHT > 99, bitorder="little").tobytes()),
            RANGE,
        ),
        "no window": (dataset(RAMP + 700, bits=13), RANGE),
        "no window, signed": (dataset(SIGNED, bits=12), RANGE),
        "no window, monochrome1": (dataset(RAMP, "MONOCHROME1", 12), RANGE),
        "rescale": (
            dataset(RAMP, bits=12, RescaleSlope="0.5", RescaleIntercept="-1000", WindowCenter="40", WindowWidth="400"),
            WINDOWED,
        ),
        "negative slope": (
            dataset(RAMP, bits=12, RescaleSlope="-1", RescaleIntercept="4095", **WINDOW),
            WINDOWED,
        ),
        "modality table": (
            dataset(RAMP, bits=12, ModalityLUTSequence=table(curve, 500, 12, "US"), ModalityLUTType="US", **WINDOW),
            WINDOWED,
        ),
        "modality table, first written unsigned": (
            dataset(SIGNED, bits=12, ModalityLUTSequence=table(curve, -1500, 12, "US"), ModalityLUTType="US", **WINDOW),
            WINDOWED,
        ),
        "voi table": (dataset(RAMP, bits=12, VOILUTSequence=table(curve, 500, 12, "US")), VOI_TABLE),
        "voi table of bytes": (dataset(RAMP, bits=12, VOILUTSequence=table(curve, 500, 12, "US", "OW")), VOI_TABLE),
        "voi table of 16 bits": (dataset(RAMP, bits=12, VOILUTSequence=table(curve * 16, 500, 16, "US")), VOI_TABLE),
        "voi table, first written unsigned": (
            dataset(SIGNED, bits=12, VOILUTSequence=table(curve, -1500, 12, "US")),
            VOI_TABLE,
        ),
        "voi table, first signed": (dataset(SIGNED, bits=12, VOILUTSequence=table(curve, -1500, 12, "SS")), VOI_TABLE),
        "empty voi table": (dataset(RAMP, bits=12, VOILUTSequence=empty_table(), **WINDOW), WINDOWED),
        "empty modality table": (dataset(RAMP, bits=12, ModalityLUTSequence=empty_table(), **WINDOW), WINDOWED),
        "padding and window": (dataset(RAMP, bits=12, PixelPaddingValue=0, **WINDOW), WINDOWED),
        "palette": (dataset(EIGHT, "PALETTE COLOR", **palette(8)), PLAIN),
        "palette of 16 bits": (dataset(EIGHT, "PALETTE COLOR", **palette(16)), PLAIN),
        "rgb": (dataset(COLOURS, "RGB"), PLAIN),
        "rgb, lower case": (dataset(COLOURS, "rgb"), PLAIN),
        "rgb by planes": (
            dataset(COLOURS, "RGB", PlanarConfiguration=1, PixelData=COLOURS.transpose(2, 0, 1).tobytes()),
            PLAIN,
        ),
        "ybr": (dataset(_ybr(COLOURS), "YBR_FULL"), PLAIN, 2),  # pydicom rounds in between
        "frames": (dataset(np.stack([RAMP, RAMP[::-1]]), bits=12, NumberOfFrames=2, **WINDOW), WINDOWED),
    }
    written = {name: Kind(file_of(ds), *rest) for name, (ds, *rest) in files.items()}
    lower = dataset(RAMP, "MONOCHROME1", 12, **WINDOW)
    written["lower case"] = Kind(file_of(lower).replace(b"MONOCHROME1", b"monochrome1"), WINDOWED)
    for name, syntax in (("implicit", IMPLICIT), ("deflated", DEFLATED), ("rle", RLE), ("big endian", BIG_ENDIAN)):
        written[name] = Kind(file_of(dataset(RAMP, bits=12, **WINDOW), syntax), WINDOWED)
    written["rle of 8 bits"] = Kind(file_of(dataset(EIGHT, WindowCenter="100", WindowWidth="200"), RLE), WINDOWED)
    written["rle, high bit 15 of 12"] = Kind(file_of(dataset(RAMP << 4, bits=12, HighBit=15, **WINDOW), RLE), WINDOWED)
    written["no transfer syntax"] = Kind(without_syntax(written["window"].data), WINDOWED)
    written["no transfer syntax, implicit"] = Kind(without_syntax(written["implicit"].data), WINDOWED)
    written["no preamble"] = Kind(written["window"].data[132:], WINDOWED)
    good = dataset(RAMP, bits=12, **WINDOW)
    written["no meta header"] = Kind(bare(good), WINDOWED)
    written["no meta header, implicit"] = Kind(bare(good, is_implicit=True), WINDOWED)
    return written
