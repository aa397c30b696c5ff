"""Masks as image files: where they are inside, at the image's size; what is no mask is said."""

import contextlib
import os
import struct
import zlib

import numpy as np
import pytest
from annotated import assert_masks, drawing, read
from PIL import Image

from models.cases.annotations import Annotation
from models.cases.masks import read_mask
from models.cases.shapes import check_proportions, resize_nearest
from models.errors import InputError

RING = drawing("""
    .....
    .###.
    .#.#.
    .###.""")
SIZE = RING.shape


@pytest.fixture
def save(tmp_path):
    def save(image, name="m.png", **options):
        image = image if isinstance(image, Image.Image) else Image.fromarray(image)
        image.save(tmp_path / name, **options)
        return tmp_path / name

    return save


def refusal(path, size=SIZE):
    with pytest.raises(InputError) as error:
        read([path], size, labels=[1])
    assert str(path) in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("suffix", ["png", "bmp", "tif", "gif"])
@pytest.mark.parametrize("level", [1, 7, 255])
def test_what_is_not_black_is_inside(save, suffix, level):
    assert_masks(read([save(RING * np.uint8(level), f"m.{suffix}")], SIZE, labels=[2]), {2: RING})


def kinds():
    """Pictures of RING in Pillow's modes."""
    grey = RING * np.uint8(200)
    zeros = np.zeros_like(grey)
    yield "1", Image.fromarray(RING)
    yield "I;16", Image.fromarray(RING.astype(np.uint16) * 3)
    yield "I", Image.fromarray(RING.astype(np.int32) * 70_000)
    yield "F", Image.fromarray(np.where(RING, 0.25, 0).astype(np.float32))
    yield "RGB", Image.fromarray(np.dstack([zeros, zeros, grey]))
    yield "CMYK", Image.fromarray(np.dstack([grey] * 3)).convert("CMYK")
    yield "black with alpha", Image.fromarray(np.dstack([grey, np.full_like(grey, 9)]), "LA")
    yield "white with alpha", Image.fromarray(np.dstack([np.full_like(grey, 255)] * 3 + [grey]))


@pytest.mark.parametrize(("mode", "picture"), [*kinds()])
def test_modes(save, mode, picture):
    path = save(picture, "m.tif" if mode in ("CMYK", "F", "I") else "m.png")
    np.testing.assert_array_equal(read_mask(path, SIZE), RING)


def test_black_is_outside_though_opaque_and_colour_though_transparent(save):
    picture = np.zeros((1, 4, 4), dtype=np.uint8)
    picture[0] = [[0, 0, 0, 0], [0, 0, 0, 255], [0, 9, 0, 0], [0, 9, 0, 1]]
    np.testing.assert_array_equal(read_mask(save(picture), (1, 4)), [[False, False, False, True]])


def with_palette(indices, colours):
    picture = Image.fromarray(np.asarray(indices, dtype=np.uint8), "P")
    picture.putpalette(np.asarray(colours, dtype=np.uint8).ravel().tolist())
    return picture


@pytest.mark.parametrize(
    ("colours", "inside"),
    [
        ([(0, 0, 0), (128, 0, 0)], 1),  # as Pascal VOC
        ([(90, 90, 0), (128, 0, 0)], 1),  # no black: index 0 is outside
        ([(0, 0, 0), (0, 0, 0)], 1),  # never filled in
        ([(255, 255, 255), (0, 0, 0)], 0),  # greys are what they look like
        ([(255, 0, 0), (0, 0, 0)], 0),  # sorted anew: black is outside
    ],
)
def test_palettes(save, colours, inside):
    indices = np.where(RING, inside, 1 - inside)
    np.testing.assert_array_equal(read_mask(save(with_palette(indices, colours)), SIZE), RING)


def test_soft_edges_are_inside_in_a_palette_of_greys_too(save):
    picture = with_palette([[0, 1, 2, 3]], [(0, 0, 0), (60, 60, 60), (130, 130, 130), (255, 255, 255)])
    np.testing.assert_array_equal(read_mask(save(picture), (1, 4)), [[False, True, True, True]])


def test_jpeg_is_inside_from_half_of_white(save):
    square = np.zeros((32, 32), dtype=bool)
    square[8:24, 8:16] = True
    np.testing.assert_array_equal(read_mask(save(square * np.uint8(255), "m.jpg", quality=95), (32, 32)), square)
    grey = np.full((16, 16), 127, dtype=np.uint8)
    grey[:, 8:] = 128
    blocks = read_mask(save(grey, "m.jpg", quality=100), (16, 16))
    np.testing.assert_array_equal(blocks, grey == 128)
    assert "没有一处达到白色的一半" in refusal(save(square * np.uint8(90), "m.jpg"), (32, 32))


def test_colours_of_classes_are_no_mask(save):
    colours = np.zeros((20, 20, 3), dtype=np.uint8)
    colours[2:9, 2:9] = 250, 60, 50
    assert read_mask(save(colours), (20, 20)).sum() == 49  # one colour is one mask
    colours[12:15, 12:15] = 40, 230, 30
    assert "掩膜有几种颜色" in refusal(save(colours), (20, 20))


def test_an_empty_mask_is_no_annotation(save):
    annotation = read([save(np.zeros(SIZE, dtype=np.uint8))], SIZE, labels=[1])
    assert annotation == Annotation({}, frozenset(), [], ["松动"])


def test_the_first_mask_is_of_the_first_label(save):
    paths = [save(RING, "m.png"), save(~RING, "n.png")]
    assert_masks(read(paths, SIZE, labels=[2, 0]), {2: RING, 0: ~RING})
    assert_masks(read([paths[0], paths[0]], SIZE, labels=[2, 0]), {2: RING, 0: RING})


def test_masks_that_no_suffix_tells_are_counted_too(save):
    path = save(RING)
    path = path.rename(path.with_name("m.json"))
    assert_masks(read([path], SIZE, labels=[1]), {1: RING})
    with pytest.raises(InputError, match="标签有 2 个，掩膜有 1 个"):
        read([path], SIZE, labels=[0, 1])


def test_nearest_by_the_centres_of_pixels():
    row = np.array([[10, 20, 30]])
    np.testing.assert_array_equal(resize_nearest(row, (2, 6)), [[10, 10, 20, 20, 30, 30]] * 2)
    np.testing.assert_array_equal(resize_nearest(row, (1, 2)), [[10, 30]])
    np.testing.assert_array_equal(resize_nearest(row, (1, 4)), [[10, 20, 20, 30]])
    np.testing.assert_array_equal(resize_nearest(np.arange(7)[None], (1, 1)), [[3]])


def test_a_mask_of_other_size(save):
    twice = RING.repeat(2, 0).repeat(2, 1)
    np.testing.assert_array_equal(read_mask(save(RING), (8, 10)), twice)
    np.testing.assert_array_equal(read_mask(save(twice), SIZE), RING)


@pytest.mark.parametrize(
    ("mask", "image"),
    [((224, 224), (2000, 2000)), ((512, 419), (2500, 2048)), ((511, 419), (2500, 2048)), ((2048, 1667), (307, 250))],
)
def test_rounding_changes_no_proportions(mask, image):
    check_proportions(*mask, image[::-1], "掩膜")
    check_proportions(*image, mask[::-1], "掩膜")


@pytest.mark.parametrize(
    ("mask", "image"),
    [((224, 224), (2000, 1900)), ((2000, 1497), (2000, 1500)), ((50, 40), (40, 50)), ((1, 64_000_000), (10, 10))],
)
def test_other_proportions(mask, image):
    with pytest.raises(InputError, match=f"掩膜的大小是 {mask[0]}×{mask[1]}，图像是 {image[0]}×{image[1]}"):
        check_proportions(*mask, image[::-1], "掩膜")


def test_a_mask_turned_by_its_exif_data(save):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned right
    path = save(np.rot90(RING).astype(np.uint8) * 255, exif=exif)
    np.testing.assert_array_equal(read_mask(path, SIZE), RING)


def test_a_map_of_classes(save):
    text = refusal(save(np.array([[0, 1, 2]], dtype=np.uint8)), (1, 3))
    assert "有 2 种非零的值（1、2…），像是各类别的编号；请每类一个掩膜" in text
    coloured = with_palette([[0, 1, 2]], [(0, 0, 0), (128, 0, 0), (0, 128, 0)])
    assert "像是各类别的编号" in refusal(save(coloured), (1, 3))
    border = np.array([[0, 1, 255]], dtype=np.uint8)
    np.testing.assert_array_equal(read_mask(save(border), (1, 3)), border > 0)


def test_a_picture_is_no_mask(save):
    picture = np.arange(256, dtype=np.uint8).reshape(16, 16)
    assert "像是一张有许多灰度的图像，不是掩膜" in refusal(save(picture), (16, 16))
    assert "像是一张有许多灰度的图像，不是掩膜" in refusal(save(picture, "m.jpg"), (16, 16))


def png(width, height):
    """The beginning of a PNG that declares a size."""
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)), (b"IDAT", zlib.compress(bytes(99)))]
    parts = [
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def test_what_is_no_picture(tmp_path):
    path = tmp_path / "m.png"
    path.write_bytes(b"nothing")
    assert "不是 LabelMe 或 COCO 的 JSON，也不是 PNG" in refusal(path)
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 5 4\n")  # Pillow would start another program
    assert "也不是 PNG" in refusal(path)
    path.write_bytes(png(500, 400))
    assert "掩膜已损坏" in refusal(path, (400, 500))
    path.write_bytes(b"")
    assert "也不是 PNG" in refusal(path)


@pytest.mark.parametrize(("width", "height"), [(8001, 8000), (100_000, 100_000)])
def test_a_bomb_takes_no_memory(tmp_path, width, height):
    path = tmp_path / "m.png"
    path.write_bytes(png(width, height))
    assert str(width) in refusal(path, (height, width)) or "exceeds limit" in refusal(path, (height, width))


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_a_damaged_tiff_is_said_in_one_place(save, capfd):
    path = save(RING * np.uint8(255), "m.tif", compression="tiff_lzw")
    data = path.read_bytes()
    for length in range(8, len(data), 3):
        path.write_bytes(data[:length])
        with contextlib.suppress(InputError):
            read([path], SIZE, labels=[1])
    assert capfd.readouterr() == ("", "")


def test_neither_pipe_nor_folder(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    assert "这是管道，不是普通文件" in refusal(tmp_path / "pipe.png")
