"""DICOM segmentations: the frames of a segment united, those of other images left out."""

import struct
import sys
import zlib

import numpy as np
import pydicom
import pytest
from annotated import assert_masks, drawing, read
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.pixels.utils import pack_bits
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian, SegmentationStorage

from models.errors import InputError

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:pydicom")  # of files that are cut
ONE = drawing("##... ..... .....")
TWO = drawing("..... ..#.. .....")
THREE = drawing("..... ..... ....#")
SIZE = ONE.shape
HERE, THERE = "1.2.3", "1.2.4"


def item(**elements):
    dataset = Dataset()
    for name, value in elements.items():
        setattr(dataset, name, value)
    return dataset


def frame(segment, source=None, number=None):
    """The functional groups of a frame; `number`: of the source's frame, one or several."""
    groups = item(SegmentIdentificationSequence=[item(ReferencedSegmentNumber=segment)])
    if source is not None:
        about = {"ReferencedSOPInstanceUID": source} | ({} if number is None else {"ReferencedFrameNumber": number})
        groups.DerivationImageSequence = [item(SourceImageSequence=[item(**about)])]
    return groups


@pytest.fixture
def save(tmp_path):
    def save(frames, pixels, labels=("骨折", "松动"), name="s.dcm", syntax=ExplicitVRLittleEndian, **other):
        segments = [item(SegmentNumber=number, SegmentLabel=label) for number, label in enumerate(labels, 1)]
        dataset = item(
            SpecificCharacterSet="ISO_IR 192",
            SOPClassUID=SegmentationStorage,
            SOPInstanceUID="1.2.9",
            Modality="SEG",
            SegmentationType="BINARY",
            SamplesPerPixel=1,
            PhotometricInterpretation="MONOCHROME2",
            PixelRepresentation=0,
            Rows=SIZE[0],
            Columns=SIZE[1],
            NumberOfFrames=len(frames),
            BitsAllocated=1,
            BitsStored=1,
            HighBit=0,
            SegmentSequence=segments,
            PerFrameFunctionalGroupsSequence=[frame(*numbers) for numbers in frames],
            PixelData=pack_bits(np.stack(pixels).astype(np.uint8)),
        )
        dataset.update(item(**other))
        dataset.file_meta = FileMetaDataset()
        dataset.file_meta.TransferSyntaxUID = syntax
        dataset.file_meta.MediaStorageSOPClassUID = SegmentationStorage
        dataset.file_meta.MediaStorageSOPInstanceUID = "1.2.9"
        dataset.save_as(tmp_path / name, enforce_file_format=True)
        return tmp_path / name

    return save


@pytest.fixture
def radiograph(tmp_path):
    """A DICOM file whose instance is HERE; nothing else of it is read."""
    dataset = item(SOPClassUID="1.2.840.10008.5.1.4.1.1.1.1", SOPInstanceUID=HERE, PixelData=bytes(30))
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset["PixelData"].VR = "OB"
    dataset.save_as(tmp_path / "a.dcm", enforce_file_format=True)
    return tmp_path / "a.dcm"


@pytest.fixture
def picture(tmp_path):
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    return tmp_path / "a.png"


def refusal(path, image, size=SIZE):
    with pytest.raises(InputError) as error:
        read([path], size, path=image)
    return str(error.value).removeprefix(f"无法使用标注 {path}：")


def test_frames_of_a_segment_are_united(save, picture):
    path = save([(1, HERE), (2, HERE), (1, THERE)], [ONE, TWO, THREE])
    assert_masks(read([path], SIZE, path=picture), {2: ONE | THREE, 1: TWO})
    path = save([(1,), (2,)], [ONE, TWO], labels=("骨折", "左"))
    result = read([path], SIZE, path=picture)
    assert_masks(result, {2: ONE})
    assert (result.ignored, result.points_only) == (["左"], frozenset())


def test_frames_of_another_image_are_left_out(save, radiograph):
    path = save([(1, HERE), (2, HERE), (1, THERE)], [ONE, TWO, THREE])
    assert_masks(read([path], SIZE, path=radiograph), {2: ONE, 1: TWO})
    assert_masks(read([save([(1,), (1, THERE)], [ONE, TWO])], SIZE, path=radiograph), {2: ONE})
    assert "引用的不是这张图像" in refusal(save([(1, THERE)], [ONE]), radiograph)


def test_frames_on_another_frame_of_the_image_are_left_out(save, radiograph):
    path = save([(1, HERE, 1), (1, HERE, 2), (2, HERE, [2, 1])], [ONE, TWO, THREE])
    assert_masks(read([path], SIZE, path=radiograph), {2: ONE, 1: THREE})
    assert "不是第一帧" in refusal(save([(1, HERE, 2)], [ONE]), radiograph)


def test_the_instance_of_an_image_that_is_deflated(save, radiograph):
    """Inflated to the end of its frame: what follows is neither taken into memory nor looked at."""
    dataset = pydicom.dcmread(radiograph)
    dataset.update(item(Rows=3, Columns=5, BitsAllocated=8, SamplesPerPixel=1, PixelData=bytes(16)))
    dataset["PixelData"].VR = "OB"
    dataset.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    dataset.save_as(radiograph, enforce_file_format=True)
    data = radiograph.read_bytes()
    start = 144 + struct.unpack_from("<I", data, 140)[0]  # behind the meta header
    inflated = zlib.decompress(data[start:], -15)
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    packed = packer.compress(inflated + bytes(1 << 22)) + packer.flush(zlib.Z_FULL_FLUSH)
    radiograph.write_bytes(data[:start] + packed + b"\xff" * 50)
    assert_masks(read([save([(1, HERE), (1, THERE)], [ONE, TWO])], SIZE, path=radiograph), {2: ONE})


def test_a_deflated_file_with_a_long_meta_header(save, picture):
    path = save([(1,)], [ONE], syntax=DeflatedExplicitVRLittleEndian)
    data = path.read_bytes()
    long = struct.pack("<HH2sHI", 2, 1, b"OB", 0, 5000) + bytes(5000)
    path.write_bytes(data[:132] + long + data[data.index(b"\x02\0\x02\0UI") :])
    assert "deflated" in refusal(path, picture)


def test_groups_that_all_frames_share(save, radiograph):
    path = save([(1,)], [ONE], SharedFunctionalGroupsSequence=[frame(2, THERE)])
    assert "引用的不是这张图像" in refusal(path, radiograph)
    path = save([(1,)], [ONE], SharedFunctionalGroupsSequence=[frame(2, HERE)])
    assert_masks(read([path], SIZE, path=radiograph), {2: ONE})


def test_fractions_are_inside_from_half_on(save, picture):
    levels = np.array([[0, 99, 100, 200, 1]] * 3, dtype=np.uint8)
    path = save(
        [(1,)],
        [ONE],
        SegmentationType="FRACTIONAL",
        MaximumFractionalValue=200,
        BitsAllocated=8,
        BitsStored=8,
        HighBit=7,
        PixelData=levels.tobytes() + b"\0",
    )
    assert_masks(read([path], SIZE, path=picture), {2: levels >= 100})


def test_another_size(save, picture):
    path = save([(1,)], [ONE])
    assert_masks(read([path], (6, 10), path=picture), {2: ONE.repeat(2, 0).repeat(2, 1)})
    assert "DICOM SEG 的大小是 5×3，图像是 50×50，宽高比不同" in refusal(path, picture, (50, 50))


def test_what_is_no_segmentation(save, picture, tmp_path, monkeypatch):
    path = save([(1,)], [ONE])
    data = path.read_bytes()
    assert "不是 BINARY 或 FRACTIONAL 的分割" in refusal(save([(1,)], [ONE], Modality="DX"), picture)
    assert "不是 BINARY 或 FRACTIONAL 的分割" in refusal(save([(1,)], [ONE], SegmentationType="LABELMAP"), picture)
    assert "图像过大" in refusal(save([(1,)], [ONE], Rows=60_000, Columns=60_000), picture)
    assert "deflated" in refusal(save([(1,)], [ONE], syntax=DeflatedExplicitVRLittleEndian), picture)
    assert "不完整或已损坏" in refusal(save([(7,)], [ONE]), picture)
    assert "不完整或已损坏" in refusal(save([(1,)] * 900, [ONE]), picture)
    assert "都不是类别文本" in refusal(save([(1,)], [ONE], labels=("左",)), picture)
    for length in range(132, len(data), 7):
        (tmp_path / "cut.dcm").write_bytes(data[:length])
        refusal(tmp_path / "cut.dcm", picture)
    monkeypatch.setitem(sys.modules, "pydicom", None)
    path.write_bytes(data)
    assert refusal(path, picture) == '读取 DICOM SEG 需要 pydicom：pip install "pydicom>=3"'
