"""Pictures that lie about themselves, or that others read wrongly: the right picture, or one line that says why not."""

import contextlib
import csv
import io
import os
import socket
import struct
import tracemalloc
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from dicom_kinds import (
    DEFLATED,
    EIGHT,
    JPEG_2000,
    RAMP,
    SHAPE,
    SIGNED,
    WINDOW,
    bare,
    dataset,
    empty_table,
    file_of,
    kinds,
    table,
)
from PIL import Image
from pydicom.encaps import encapsulate, get_frame
from pydicom.sequence import Sequence
from tiny import gradient_picture, tiny_clip

import clip_gradcam_visualization as script
from models.errors import InputError, InputWarning
from models.images import dicom_file
from models.images.flatness import describe_flat_picture
from models.images.grey import GreyRange, grey_to_rgb, parse_grey_range
from models.images.loader import ImageDataset
from models.images.preprocessing import square
from models.images.reading import read_image, to_pixels

DEMO = Path(script.__file__).parent / "models" / "assets" / "demo"
DCM2PNM = np.load(Path(__file__).with_name("dcm2pnm.npz"))
GREY = np.linspace(0, 255, 60 * 90).astype(np.uint8).reshape(60, 90)


def assert_refused(path, *words):
    """One line that names the file and holds the words."""
    with pytest.raises(InputError) as caught:
        read_image(path)
    message = str(caught.value)
    assert Path(path).name in message and "\n" not in message and len(message) < 500
    assert all(word in message for word in words), message


def grey_of(rgb):
    assert (rgb == rgb[..., :1]).all()
    return rgb[..., 0].astype(int)


# -- what is opened ---------------------------------------------------------------------------


def saved(name, **options):
    file = io.BytesIO()
    Image.fromarray(gradient_picture()).save(file, name, **options)
    return file.getvalue()


POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n%%EOF\n" + b" " * 200


@pytest.mark.parametrize("kind", ["postscript", "DDS", "PPM", "TGA", "PCX", "SGI", "ICO", "JPEG2000", "PSD", "DIB"])
def test_other_formats_under_a_pictures_name_are_refused(tmp_path, kind, monkeypatch):
    monkeypatch.setattr("subprocess.Popen", None)  # Pillow starts Ghostscript for PostScript
    contents = {"postscript": POSTSCRIPT, "PSD": b"8BPS\0\1" + bytes(6) + struct.pack(">HIIHH", 3, 10, 10, 8, 3)}
    (tmp_path / "a.png").write_bytes(contents.get(kind) or saved(kind))
    assert_refused(tmp_path / "a.png", "不是支持的图像格式", "PNG、JPEG、BMP、TIFF、WebP、GIF、DICOM")


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "BMP", "TIFF", "WEBP", "GIF"])
def test_the_documented_formats_are_known_by_content(tmp_path, kind):
    (tmp_path / "a.png").write_bytes(saved(kind))
    assert np.abs(read_image(tmp_path / "a.png").astype(int) - gradient_picture()).mean() < 12


@pytest.mark.skipif(os.name == "nt", reason="no pipes with a path")
@pytest.mark.parametrize("suffix", [".png", ".dcm"])
def test_pipes_sockets_devices_and_folders_are_refused_at_once(tmp_path, suffix):
    os.mkfifo(tmp_path / f"pipe{suffix}")
    (tmp_path / f"folder{suffix}").mkdir()
    os.symlink("/dev/zero", tmp_path / f"device{suffix}")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(os.path.relpath(tmp_path / f"socket{suffix}"))
        for name, word in {"pipe": "管道", "folder": "文件夹", "device": "设备", "socket": "套接字"}.items():
            assert_refused(tmp_path / f"{name}{suffix}", word, "不是普通文件")


@pytest.mark.skipif(os.name == "nt", reason="no pipes with a path")
def test_a_pipe_among_the_images_of_a_folder_is_a_row_with_its_reason(tmp_path):
    os.mkfifo(tmp_path / "a.png")
    chunk = ImageDataset(square(16))[0, [(0, str(tmp_path / "a.png"))]]
    assert chunk.pixels == [None] and "管道" in str(chunk.errors[0])


# -- how much memory is taken -----------------------------------------------------------------


def png(width, height, bits, colour_type, pixels=b""):
    header = struct.pack(">IIBBBBB", width, height, bits, colour_type, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(pixels)), (b"IEND", b""))
    parts = (struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def tiff(pixels, photometric=1, kind=1, order="<", **changed):
    """A plain TIFF of grey levels; `kind`: 1 unsigned, 2 signed, 3 float; `changed`: t<number>=value of other tags."""
    height, width = pixels.shape
    data = pixels.astype(pixels.dtype.newbyteorder(order)).tobytes()
    tags = {256: width, 257: height, 258: 8 * pixels.dtype.itemsize, 259: 1, 262: photometric, 273: 8, 277: 1}
    tags |= {278: height, 279: len(data), 339: kind} | {int(name[1:]): value for name, value in changed.items()}
    forms = {True: "HHII", False: "HHIHxx"}  # a long, a short
    long = {tag: tag in (256, 257, 273, 279, 322, 323) for tag in tags}
    rows = b"".join(
        struct.pack(order + forms[long[tag]], tag, 4 if long[tag] else 3, 1, tags[tag]) for tag in sorted(tags)
    )
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "I", 8 + len(data))
    return head + data + struct.pack(order + "H", len(tags)) + rows + b"\0\0\0\0"


def bmp(width, height):
    return (
        b"BM" + struct.pack("<IHHIIiiHHIIiiII", 100, 0, 0, 54, 40, width, height, 1, 24, 0, 0, 0, 0, 0, 0) + bytes(50)
    )


HUGE = {
    "8 bits": png(9000, 9000, 8, 0),
    "16 bits": png(13000, 13000, 16, 0),
    "beyond Pillow's own limit": png(60000, 60000, 16, 0),
    "colours of 16 bits": png(9000, 9000, 16, 2),
    "bmp": bmp(9000, 9000),
    "tiff": tiff(GREY.astype(np.uint16), t256=9000, t257=9000),
    "gif": b"GIF89a" + struct.pack("<HHBBB", 20000, 20000, 0x80, 0, 0) + bytes(6) + b"," + bytes(9) + b"\2\2\x44\1\0;",
    "dicom": file_of(dataset(EIGHT, Rows=9000, Columns=9000)),
    "dicom deflated": file_of(dataset(EIGHT, Rows=9000, Columns=9000), DEFLATED),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", HUGE)
def test_the_limit_on_pixels_is_checked_before_memory_is_taken(tmp_path, kind):
    (tmp_path / "a.png").write_bytes(HUGE[kind])
    tracemalloc.start()
    try:
        assert_refused(tmp_path / "a.png")
        assert tracemalloc.get_traced_memory()[1] < 30e6
    finally:
        tracemalloc.stop()
    if kind not in ("beyond Pillow's own limit", "gif"):
        assert_refused(tmp_path / "a.png", "图像过大", "上限 64000000 像素", "缩小或裁剪")


def deflated(ds, tail=b""):
    """A deflated file; `tail`: what follows its dataset, inside of the stream."""
    data = file_of(ds, DEFLATED)
    start = dicom_file._start_of_deflated(io.BytesIO(data))
    packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    return data[:start] + packer.compress(zlib.decompress(data[start:], -zlib.MAX_WBITS) + tail) + packer.flush()


def test_a_deflated_file_is_inflated_to_its_first_frame_and_no_further(tmp_path, monkeypatch):
    (tmp_path / "a.dcm").write_bytes(deflated(dataset(RAMP, bits=12, **WINDOW), bytes(10**8)))
    tracemalloc.start()
    try:
        shown = read_image(tmp_path / "a.dcm")
        assert tracemalloc.get_traced_memory()[1] < 10e6
    finally:
        tracemalloc.stop()
    assert np.abs(grey_of(shown) - DCM2PNM["picture/window"]).max() <= 1
    monkeypatch.setattr(dicom_file, "LONGEST_HEADER", 1 << 22)
    long = dataset(RAMP, bits=12, **WINDOW)
    long.add_new("EncapsulatedDocument", "OB", bytes(1 << 24))
    (tmp_path / "b.dcm").write_bytes(deflated(long))
    assert_refused(tmp_path / "b.dcm", "像素之前的数据超过 4 MB")


@pytest.mark.filterwarnings("ignore")
def test_bombs_beside_the_pixels(tmp_path):
    """Text chunks, colour profiles and EXIF data that unpack to far more than the file holds, or lie."""
    plain, bomb = saved("PNG"), zlib.compress(bytes(10**8), 9)
    at = plain.index(b"IDAT") - 4
    for kind, data in ((b"zTXt", b"a\0\0" + bomb), (b"iCCP", b"a\0\0" + bomb), (b"iTXt", b"a\0\1\0\0\0" + bomb)):
        chunk = struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        (tmp_path / "a.png").write_bytes(plain[:at] + chunk + plain[at:])
        try:
            np.testing.assert_array_equal(read_image(tmp_path / "a.png"), gradient_picture())
        except InputError as error:
            assert "\n" not in str(error)
    for exif in (b"Exif\0\0II*\0" + b"\xff" * 40, b"Exif\0\0MM\0*\0\0\0\x08\xff\xff" + bytes(100)):
        (tmp_path / "a.png").write_bytes(saved("PNG", exif=exif))
        np.testing.assert_array_equal(read_image(tmp_path / "a.png"), gradient_picture())


# -- grey levels of more than 8 bits ----------------------------------------------------------


@pytest.fixture(scope="module")
def radiograph():
    return np.asarray(Image.open(DEMO / "dislocation.png").convert("L"))


IN_MORE_BITS = {
    "as they are": lambda g: g.astype(np.uint16),
    "times 257": lambda g: g.astype(np.uint16) * 257,
    "times 256": lambda g: g.astype(np.uint16) * 256,
    "10 bits": lambda g: g.astype(np.uint16) << 2,
    "12 bits": lambda g: g.astype(np.uint16) << 4,
    "14 bits": lambda g: g.astype(np.uint16) << 6,
    "over 12 bits": lambda g: np.rint(g * (4095 / 255)).astype(np.uint16),
    "32 bits": lambda g: g.astype(np.uint32) * 0x01010101,
    "float up to 255": lambda g: g.astype(np.float32),
    "float up to 1": lambda g: (g / 255).astype(np.float32),
}


BRIGHTNESSES = [(kind, brightness) for kind in IN_MORE_BITS for brightness in (1, 0.5)]
BRIGHTNESSES += [(kind, 0.2) for kind in ("as they are", "times 257", "times 256", "float up to 1")]  # of other
# kinds a picture that dark is a brighter one of fewer bits


@pytest.mark.parametrize("kind, brightness", BRIGHTNESSES)
def test_8_bits_in_more_are_the_8_bit_picture(radiograph, kind, brightness):
    grey = (radiograph * brightness).astype(np.uint8)
    np.testing.assert_array_equal(grey_of(grey_to_rgb(IN_MORE_BITS[kind](grey))), grey)


def noisy(grey, bits, share=1.0, offset=0):
    """A picture of so many bits with levels between those of 8, filling a share of them from `offset` on."""
    generator = np.random.default_rng(0)
    levels = (grey + generator.random(grey.shape)) / 256 * share * 2**bits + offset
    return np.clip(levels, 0, 2**bits - 1).astype(np.uint16)


DEEP = {
    "10 bits": lambda g: noisy(g, 10),
    "12 bits": lambda g: noisy(g, 12),
    "12 bits, a part of them": lambda g: noisy(g, 12, 0.6),
    "14 bits": lambda g: noisy(g, 14),
    "16 bits": lambda g: noisy(g, 16),
    "16 bits, the middle": lambda g: noisy(g, 16, 0.3, 20000),
    "signed": lambda g: noisy(g, 12).astype(np.int16) - 1024,
    "float": lambda g: noisy(g, 12) / np.float32(1000) - np.float32(1),
    "8 bits in 12": lambda g: g.astype(np.uint16) << 4,
    "8 bits": lambda g: g.astype(np.uint16),
}


def marker(levels, top):
    levels[20:120, 20:60] = top


def white_border(levels, top):
    levels[:40] = levels[-40:] = top
    levels[:, :40] = levels[:, -40:] = top


def black_border(levels, top):
    white_border(levels, 0 if levels.min() >= 0 else -top)


def hot_and_dead_pixels(levels, top):
    places = np.random.default_rng(1).integers(0, levels.size, 800)
    levels.reshape(-1)[places[:400]] = np.linspace(0, top, 400).astype(levels.dtype)
    levels.reshape(-1)[places[400:]] = 0


def blend(levels, top, mask):
    """Lay `top` over levels as a mask in [0, 1] says."""
    levels[:] = (
        np.rint(levels * (1 - mask) + top * mask) if levels.dtype.kind in "iu" else levels * (1 - mask) + top * mask
    )


def soft_letters(levels, top):
    """What a system burns in, smoothed: half-bright levels on 1 % of the pixels."""
    letters = cv2.putText(np.zeros(levels.shape, np.uint8), "R L 123", (30, 80), cv2.FONT_HERSHEY_SIMPLEX, 1.5, 255, 4)
    blend(levels, top, cv2.GaussianBlur((letters > 0).astype(np.float32), (0, 0), 1))


def step_wedge(levels, top):
    """All levels up to the top in a stripe at the side."""
    levels[:, :20] = (np.linspace(0, 1, len(levels))[:, None] * top).astype(levels.dtype)


def rough_patch(levels, top):
    levels[20:60, 20:90] = top * np.random.default_rng(2).normal(0.9, 0.005, (40, 70))


MARKS = (marker, white_border, black_border, hot_and_dead_pixels, soft_letters, step_wedge, rough_patch)


@pytest.mark.parametrize("added", MARKS)
@pytest.mark.parametrize("kind", DEEP)
def test_no_marker_border_or_pixel_moves_the_levels(radiograph, kind, added):
    levels = DEEP[kind](radiograph)
    plain = grey_of(grey_to_rgb(levels))
    assert np.abs(plain - radiograph.astype(int)).max() <= 2
    changed = levels.copy()
    added(changed, 1e4 if levels.dtype.kind == "f" else np.iinfo(levels.dtype).max)
    shown = grey_of(grey_to_rgb(changed))
    same = changed == levels
    assert np.abs(shown[same] - plain[same]).max() <= 4


def test_a_mask_and_a_few_levels():
    for levels in ([0, 65535], [0, 1], [0, 100], [-5, 5]):
        mask = np.zeros((40, 40), np.int32) + levels[0]
        mask[10:30, 10:30] = levels[1]
        shown = grey_of(grey_to_rgb(mask))
        assert shown[0, 0] == 0 and shown[20, 20] == (255 if levels[1] in (65535, 5) else levels[1])
    np.testing.assert_array_equal(grey_of(grey_to_rgb(np.array([[0, 32768, 65535]], np.uint16))), [[0, 128, 255]])


@pytest.mark.parametrize("low, high", [(-1e30, 1e30), (0, 1e25), (3, 5), (0, 3e-39), (1e300, 1.1e300), (-2e9, 2e9)])
def test_fractions_of_any_size(low, high):
    levels = np.linspace(low, high, 60 * 90).reshape(60, 90)
    expected = levels * 255 if high < 1 else (levels - low) / (high - low) * 255  # from 0 to 1, black to white
    assert np.abs(grey_of(grey_to_rgb(levels)) - expected).max() <= 0.51


@pytest.mark.parametrize(
    "choice, low, high",
    [
        ("full", 0, 65535),
        ("minmax", 700, 3900),
        ("0 4095", 0, 4095),
        (("p0", "p100"), 700, 3900),
        (["1000", "2000"], 1000, 2000),
        ((-1000, 3000.0), -1000, 3000),
        ("p25 p75", 1500, 3100),
    ],
)
def test_the_other_rules(choice, low, high):
    levels = np.linspace(700, 3900, 60 * 90).astype(np.uint16).reshape(60, 90)
    expected = np.clip((levels.astype(float) - low) * 255 / (high - low), 0, 255)
    assert (
        np.abs(grey_of(to_pixels(levels, choice)) - expected).max() <= 0.7
    )  # rounded, and a percentile is one of the levels


def test_the_rule_reaches_files_folders_pil_images_and_dicom(tmp_path):
    levels = np.linspace(700, 3900, 60 * 90).astype(np.uint16).reshape(60, 90)
    expected, choice = to_pixels(levels, "0 4095"), parse_grey_range("0 4095")
    Image.fromarray(levels).save(tmp_path / "a.png")
    (tmp_path / "a.dcm").write_bytes(file_of(dataset(levels, bits=12, **WINDOW)))
    for name in ("a.png", "a.dcm"):
        np.testing.assert_array_equal(read_image(tmp_path / name, choice), expected)
        chunk = ImageDataset(square(16), choice)[0, [(0, str(tmp_path / name))]]
        np.testing.assert_array_equal(chunk.pixels[0], expected)
    np.testing.assert_array_equal(to_pixels(Image.fromarray(levels), (0, 4095)), expected)
    scaled = dataset(levels, bits=12, RescaleSlope="2", RescaleIntercept="-1000", **WINDOW)
    (tmp_path / "b.dcm").write_bytes(file_of(scaled))  # levels after the rescale: Hounsfield units, say
    np.testing.assert_array_equal(read_image(tmp_path / "b.dcm", parse_grey_range("-1000 7190")), expected)


WRONG = [
    "",
    "automatic",
    "1",
    "5 4",
    "4 4",
    "p1 99",
    "p-1 p99",
    "p1 p101",
    "nan 4",
    "0 inf",
    "1 2 3",
    "p1",
    "x y",
    5,
    (1, None),
    [],
]


@pytest.mark.parametrize("choice", WRONG)
def test_other_choices_are_one_line_that_says_what_can_be_written(choice):
    with pytest.raises(InputError, match="--grey-range.*auto、full、minmax.*0 4095.*p0.5 p99.5") as caught:
        parse_grey_range(choice)
    assert "\n" not in str(caught.value)


def test_a_choice_is_written_as_it_is_given():
    for choice in ("auto", "full", "minmax", "-160 240", "p0.5 p99.5", "0.1 4095.123456"):
        assert str(parse_grey_range(choice)) == choice
    parser = script.build_parser()
    assert parse_grey_range(parser.parse_args(["--grey-range", "-160", "240"]).grey_range) == GreyRange(
        "values", -160, 240
    )
    assert parse_grey_range(None) == GreyRange() == parse_grey_range("auto")


def test_the_marker_does_not_change_the_prediction(tmp_path, capsys, radiograph):
    """The demo checkpoint through the command: a marker on 12 bits in 16 turned 脱位 into 自然."""
    levels = radiograph.astype(np.uint16) << 4
    Image.fromarray(levels).save(tmp_path / "plain.png")
    marker(levels, 65535)
    Image.fromarray(levels).save(tmp_path / "marked.png")
    command = ["--model-path", str(DEMO / "clip_starnet_bert.pth"), "--output-dir", str(tmp_path / "out")]
    command += ["--class-texts-file", str(Path(script.__file__).parent / "class_texts_hip_prosthesis.json")]
    for name in ("plain", "marked"):
        assert script.main([*command, "--image-path", str(tmp_path / f"{name}.png")]) == 0
        assert "预测：假体脱位（96." in capsys.readouterr().out
    both = ["--image-path", str(tmp_path / "marked.png"), "--grey-range"]
    assert script.main([*command, *both, "minmax"]) == 0
    assert "假体脱位" not in capsys.readouterr().out.splitlines()[0]
    assert script.main([*command, *both, "5", "4"]) == 2
    assert capsys.readouterr().err.startswith("错误: --grey-range")


# -- pictures of one level --------------------------------------------------------------------


@pytest.mark.parametrize("level, look", [(0, "全黑"), (255, "全白"), (100, "只有一个灰度"), (7, "全黑")])
def test_a_picture_of_one_level_is_said(level, look):
    picture = np.full((700, 900, 3), level, np.uint8)
    assert look in str(describe_flat_picture(picture))
    picture[::2, ::2] += np.uint8(3) if level < 250 else np.uint8(0)  # noise
    picture[20:90, 20:120] = 180  # a marker
    assert look in str(describe_flat_picture(picture))
    result = script.explain(tiny_clip(), picture, ["甲", "乙"], img_size=64)
    assert [look in message for message in result.messages()].count(True) == 1
    assert look in result.warnings()[0]


def test_ordinary_pictures_are_not_called_flat():
    for name in ("well_fixed", "stem_loosening", "infection", "dislocation", "two_findings"):
        assert describe_flat_picture(read_image(DEMO / f"{name}.png")) is None
    collimated = np.zeros((900, 700, 3), np.uint8)
    collimated[300:500, 300:400] = np.linspace(30, 200, 200).astype(np.uint8)[:, None, None]
    assert describe_flat_picture(collimated) is None
    assert describe_flat_picture(np.arange(27, dtype=np.uint8).reshape(3, 3, 3) * 9) is None
    assert describe_flat_picture(np.zeros((1, 1, 3), np.uint8))


# -- TIFF and the modes of Pillow -------------------------------------------------------------

STORED = {  # (values of GREY, kind of sample)
    "uint8": (GREY, 1),
    "int8": ((GREY.astype(int) - 128).astype(np.int8), 2),
    "uint16": (GREY.astype(np.uint16) * 257, 1),
    "int16": (GREY.astype(np.int16) - 128, 2),
    "uint32": (GREY.astype(np.uint32) * 0x01010101, 1),
    "int32": (GREY.astype(np.int32) * 1000 - 128000, 2),
    "float": ((GREY / 255).astype(np.float32), 3),
}


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("photometric", [0, 1])
@pytest.mark.parametrize("kind", STORED)
def test_tiff_of_every_kind_of_sample(tmp_path, kind, photometric, order):
    pixels, sample = STORED[kind]
    path = tmp_path / "a.tif"
    path.write_bytes(tiff(pixels, photometric, sample, order))
    if kind == "uint32" and order == ">":  # Pillow reads none
        return assert_refused(path, "不是支持的图像格式")
    expected = GREY if photometric else 255 - GREY.astype(int)
    assert np.abs(grey_of(read_image(path)) - expected).max() <= 1


def test_min_is_white_of_few_bits(tmp_path):
    bits = np.packbits(GREY > 127, axis=1)
    padded = tiff(bits, 0, 1, t256=90, t258=1)
    (tmp_path / "a.tif").write_bytes(padded)
    np.testing.assert_array_equal(grey_of(read_image(tmp_path / "a.tif")), np.where(GREY > 127, 0, 255))


@pytest.mark.parametrize("compression", ["tiff_lzw", "tiff_adobe_deflate", "jpeg", "group4"])
def test_nothing_but_our_line_is_written_of_a_damaged_tiff(tmp_path, capfd, compression):
    """libtiff writes to standard error by itself."""
    image = Image.fromarray(gradient_picture())
    image = image.convert("1") if compression == "group4" else image
    image.save(tmp_path / "a.tif", compression=compression)
    data = bytearray((tmp_path / "a.tif").read_bytes())
    data[10:400:3] = bytes(len(data[10:400:3]))
    (tmp_path / "a.tif").write_bytes(data)
    os.write(2, b"before ")
    with contextlib.suppress(InputError):
        read_image(tmp_path / "a.tif")
    os.write(2, b"after")
    assert capfd.readouterr().err == "before after"


def test_a_tiff_whose_tiles_are_larger_than_a_picture(tmp_path):
    (tmp_path / "a.tif").write_bytes(tiff(GREY.astype(np.uint16), t322=60000, t323=60000))
    assert_refused(tmp_path / "a.tif", "图像过大")


@pytest.mark.parametrize("factor", [1, 16, 257])
@pytest.mark.parametrize("suffix", [".png", ".tif"])
@pytest.mark.parametrize("channels", [3, 4])
def test_colours_of_16_bits_keep_all_of_them(tmp_path, capfd, factor, suffix, channels):
    colours = gradient_picture().astype(np.uint16)
    stored = np.dstack([colours[..., ::-1] * factor, np.full(colours.shape[:2], 65535, np.uint16)])[..., :channels]
    cv2.imwrite(str(tmp_path / f"a{suffix}"), stored)
    capfd.readouterr()
    np.testing.assert_array_equal(read_image(tmp_path / f"a{suffix}"), gradient_picture())
    assert capfd.readouterr() == ("", "")


def test_grey_of_16_bits_with_alpha_keeps_all_of_them(tmp_path):
    stored = np.dstack([GREY.astype(">u2") * 16, np.full(GREY.shape, 65535)]).astype(">u2")
    lines = b"".join(b"\0" + row.tobytes() for row in stored)
    (tmp_path / "a.png").write_bytes(png(90, 60, 16, 4, lines))
    np.testing.assert_array_equal(grey_of(read_image(tmp_path / "a.png")), GREY)


@pytest.mark.parametrize(
    "mode", ["1", "L", "P", "LA", "La", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "HSV"]
)
def test_pil_images_of_every_mode(mode):
    image = Image.fromarray(np.repeat(GREY[..., None], 3, 2))
    for step in {"La": ("LA",), "RGBa": ("RGBA",), "PA": ("P",)}.get(mode, ()):
        image = image.convert("L").convert(step) if step == "LA" else image.convert(step)
    image = image.convert("L").convert("1", dither=0) if mode == "1" else image.convert(mode)
    expected = np.where(GREY > 127, 255, 0) if mode == "1" else GREY.astype(int)
    assert np.abs(to_pixels(image).astype(int) - expected[..., None]).max() <= (51 if mode in ("P", "PA") else 1)


# -- DICOM against dcmtk ----------------------------------------------------------------------

KINDS = kinds()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", KINDS)
def test_dicom_of_every_kind_as_dcm2pnm_shows_it(tmp_path, name):
    (tmp_path / "a").write_bytes(KINDS[name].data)  # no suffix: known by its content
    shown, expected = read_image(tmp_path / "a").astype(int), DCM2PNM[f"picture/{name}"].astype(int)
    expected = expected if expected.ndim == 3 else expected[..., None]
    assert np.abs(shown - expected).max() <= KINDS[name].tolerance


JPEGS = [name.removeprefix("file/") for name in DCM2PNM.files if name.startswith("file/")]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("is_named", [True, False])
@pytest.mark.parametrize("name", JPEGS)
def test_jpeg_in_dicom_as_dcmtk_shows_it(tmp_path, name, is_named):
    if name not in ("jpeg", "jpeg of colours"):
        pytest.importorskip("libjpeg")
    data = DCM2PNM[f"file/{name}"].tobytes()
    if not is_named:
        from dicom_kinds import without_syntax

        data = without_syntax(data)
    (tmp_path / "a.dcm").write_bytes(data)
    shown, expected = read_image(tmp_path / "a.dcm").astype(int), DCM2PNM[f"picture/{name}"].astype(int)
    expected = expected if expected.ndim == 3 else expected[..., None]
    assert np.abs(shown - expected).max() <= {"jpeg": 2, "jpeg of colours": 3}.get(name, 1)  # decoders round


@pytest.mark.filterwarnings("ignore")
def test_jpeg_2000(tmp_path):
    pytest.importorskip("openjpeg")
    for pixels, window in ((RAMP, WINDOW), (SIGNED, {"WindowCenter": "-48", "WindowWidth": "3000"})):
        (tmp_path / "a.dcm").write_bytes(file_of(dataset(pixels, bits=12, **window), JPEG_2000))
        assert np.abs(grey_of(read_image(tmp_path / "a.dcm")) - DCM2PNM["picture/window"]).max() <= 1


def box(kind, data=b"", length=None):
    """A box of a JPEG 2000 file; `length`: what it says of itself."""
    return struct.pack(">I", 8 + len(data) if length is None else length) + kind + data


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("length", [None, 0, 1, 7])
def test_jpeg_2000_in_boxes(tmp_path, length):
    """A codestream in a file of its own inside of DICOM; a box without a length would hold pydicom for ever."""
    pytest.importorskip("openjpeg")
    ds = dataset(RAMP, bits=12, **WINDOW)
    file_of(ds, JPEG_2000)
    header = struct.pack(">IIHBBBB", *SHAPE, 1, 11, 7, 0, 0)
    header = box(b"ihdr", header) + box(b"colr", b"\1\0\0" + struct.pack(">I", 17))
    boxes = box(b"jP  ", b"\r\n\x87\n") + box(b"ftyp", b"jp2 \0\0\0\0jp2 ") + box(b"jp2h", header, length)
    ds.PixelData = encapsulate([boxes + box(b"jp2c", get_frame(ds.PixelData, 0, number_of_frames=1))])
    ds.save_as(tmp_path / "a.dcm", enforce_file_format=True)
    if length is not None:
        return assert_refused(tmp_path / "a.dcm", "JPEG 2000 数据已损坏")
    assert np.abs(grey_of(read_image(tmp_path / "a.dcm")) - DCM2PNM["picture/window"]).max() <= 1


def test_twelve_bits_of_jpeg_without_a_decoder_are_one_line(tmp_path, monkeypatch):
    (tmp_path / "a.dcm").write_bytes(DCM2PNM["file/jpeg of 12 bits"].tobytes())
    monkeypatch.setattr("pydicom.pixels.decoders.base.Decoder.available_plugins", ("pillow",))
    assert_refused(tmp_path / "a.dcm", "12 位 JPEG", "pip install pylibjpeg")


def test_a_voi_table_of_levels_below_zero_after_the_rescale(tmp_path):
    """Written unsigned it wraps (PS3.3 C.11.2.1.1); dcmtk goes by the stored values' sign and draws it black."""
    entries = np.arange(3000) * 4095 // 2999
    ds = dataset(RAMP, bits=12, RescaleIntercept="-1024", VOILUTSequence=table(entries, -500, 12, "US"))
    (tmp_path / "a.dcm").write_bytes(file_of(ds))
    expected = entries[np.clip(RAMP.astype(int) - 1024 + 500, 0, 2999)] * 255 / 4095
    assert np.abs(grey_of(read_image(tmp_path / "a.dcm")) - expected).max() <= 0.51
    ds.PixelData = np.maximum(RAMP, 1100).tobytes()  # none of its levels is below zero, but they could be
    (tmp_path / "a.dcm").write_bytes(file_of(ds))
    expected = np.maximum(expected, entries[1100 - 1024 + 500] * 255 / 4095)
    assert np.abs(grey_of(read_image(tmp_path / "a.dcm")) - expected).max() <= 0.51


def test_an_empty_table_without_a_window_and_one_that_is_cut(tmp_path):
    (tmp_path / "a.dcm").write_bytes(file_of(dataset(RAMP, bits=12, VOILUTSequence=empty_table())))
    assert np.abs(grey_of(read_image(tmp_path / "a.dcm")) - RAMP * 255.0 / 4095).max() <= 0.51
    second = Sequence([empty_table()[0], table(np.arange(4096)[::-1], 0, 12, "US")[0]])
    (tmp_path / "a.dcm").write_bytes(file_of(dataset(RAMP, bits=12, VOILUTSequence=second, **WINDOW)))
    assert np.abs(grey_of(read_image(tmp_path / "a.dcm")) - (4095 - RAMP) * 255.0 / 4095).max() <= 0.51
    cut = table(np.arange(1000), 0, 12, "US", "OW")
    cut[0].LUTDescriptor = [4096, 0, 12]
    (tmp_path / "a.dcm").write_bytes(file_of(dataset(RAMP, bits=12, VOILUTSequence=cut)))
    assert grey_of(read_image(tmp_path / "a.dcm")).max() == round(999 * 255 / 4095)


@pytest.mark.parametrize("value", ["MONOCHROME3", "CMYK", "RGBX", "XYZ"])
def test_other_colour_spaces_are_refused_by_name(tmp_path, value):
    (tmp_path / "a.dcm").write_bytes(file_of(dataset(RAMP, value, 12, **WINDOW)))
    assert_refused(tmp_path / "a.dcm", value)


def test_without_a_window_a_marker_does_not_move_the_levels(tmp_path, radiograph):
    levels = noisy(radiograph, 12, 0.6)
    (tmp_path / "a.dcm").write_bytes(file_of(dataset(levels, bits=16)))
    plain = grey_of(read_image(tmp_path / "a.dcm"))
    marker(levels, 65535)
    (tmp_path / "a.dcm").write_bytes(file_of(dataset(levels, bits=16)))
    assert np.abs(grey_of(read_image(tmp_path / "a.dcm"))[120:] - plain[120:]).max() <= 3


@pytest.mark.filterwarnings("ignore")
def test_bare_datasets_that_are_cut_are_one_line(tmp_path):
    data = bare(dataset(RAMP, bits=12, **WINDOW))
    for length in range(8, len(data), 97):
        (tmp_path / "a").write_bytes(data[:length])
        assert_refused(tmp_path / "a")


def test_explain_warns_of_a_window_that_misses_all(tmp_path):
    (tmp_path / "a.dcm").write_bytes(KINDS["window that misses"].data)
    with pytest.warns(InputWarning, match="几乎全白"):
        script.visualize_clip_gradcam(tiny_clip(), tmp_path / "a.dcm", ["甲", "乙"], img_size=64, grey_range="auto")


def test_a_run_is_not_resumed_with_another_rule_and_its_table_tells_flat_pictures(tmp_path, checkpoint, capsys):
    levels = np.linspace(700, 3900, 60 * 90).astype(np.uint16).reshape(60, 90)
    (tmp_path / "in").mkdir()
    Image.fromarray(levels).save(tmp_path / "in" / "a.png")
    Image.new("L", (90, 60), 0).save(tmp_path / "in" / "b.png")
    command = ["--model-path", str(checkpoint), "--image-path", str(tmp_path / "in"), "--class-texts", "甲", "乙"]
    command += ["--output-dir", str(tmp_path / "out"), "--overlay-only", "--cpu", "--num-workers", "0"]
    assert script.main([*command, "--grey-range", "0", "4095"]) == 0
    with open(next((tmp_path / "out").glob("*.csv")), encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    assert "几乎全黑" in rows[1]["warning"] and "全黑" not in rows[0]["warning"]
    capsys.readouterr()
    assert script.main([*command, "--resume", "--grey-range", "minmax"]) == 2
    assert "--grey-range（上次 0 4095，这次 minmax）" in capsys.readouterr().err
    assert script.main([*command, "--resume", "--grey-range", "0", "4095.0"]) == 0
