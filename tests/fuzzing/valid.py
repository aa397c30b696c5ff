"""The valid files that the fuzzer's inputs are made of, the same bytes each time; see fuzz.py."""

import contextlib
import importlib.util
import io
import json
import os
import pickle
import shutil
import struct
import warnings
import zlib
from pathlib import Path
from random import Random

import numpy as np
import test_dual_encoder
import test_openai_clip as openai
import torch
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.sequence import Sequence
from pydicom.uid import UID
from safetensors.torch import save_file
from tiny import gradient_picture, tiny_clip
from tiny_pretrained import FAMILIES, save_pretrained, write_clip_bpe
from torch.serialization import MAGIC_NUMBER, PROTOCOL_VERSION

import clip_gradcam_visualization as script

from .cases import CASE_RUN
from .checkpoints import legacy_parts, read_zip, write_zip
from .leftovers import RUN
from .mutate import HUGE, TEXTS, command, valid_bytes
from .objects import weights_of
from .pickles import boundaries
from .valid_cases import write_case_runs, write_cases


def write_valid(folder: Path) -> None:
    """Write all of them into a new folder, `valid` in an output folder of the fuzzer.

    Ends in the folder `work/0` beside it, from where the inputs see it: a run and a cache are made there.
    """
    folder.mkdir(parents=True)
    (folder / "texts.json").write_text(json.dumps(TEXTS, ensure_ascii=False), encoding="utf-8")
    Image.fromarray(gradient_picture()).save(folder / "picture.png")
    _write_images(folder / "images")
    _write_others(folder / "others")
    _write_dicom(folder / "dicom")
    _write_ours(folder)
    _write_openai(folder / "openai")
    for family in FAMILIES:
        save_pretrained(folder / "families" / family, family)
    for kind in ("deit", "swin"):
        test_dual_encoder.save_dual(folder / "families" / f"dual {kind}", kind)
    if importlib.util.find_spec("peft"):
        import test_adapters

        with_adapter = folder / "families" / "adapter"
        save_pretrained(with_adapter, "clip")
        torch.manual_seed(0)
        test_adapters.adapt(with_adapter, **test_adapters.KINDS["ranks of their own"])
        test_adapters.change_config(with_adapter, base_model_name_or_path="base")
    if importlib.util.find_spec("open_clip"):
        import test_open_clip

        for image, text in (("vit", "bert"), ("siglip", "siglip")):
            test_open_clip.save_tiny(
                folder / "families" / f"open_clip {image}", image, text, "open_clip_model.safetensors"
            )
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    block = packer.compress(bytes(10**7)) + packer.flush(zlib.Z_FULL_FLUSH)  # which can be repeated
    (folder / "zeros.deflate").write_bytes(block * (HUGE // 10**7) + packer.flush())
    write_cases(folder / "cases")
    _write_run(folder)
    write_case_runs(folder)


# -- images --------------------------------------------------------------------------------------


def _write_images(folder: Path) -> None:
    rgb = Image.fromarray(gradient_picture())
    grey = rgb.convert("L")
    levels = np.asarray(grey, dtype=np.uint16)
    deep = Image.fromarray((levels * 257).astype(np.uint16))
    real = Image.fromarray(levels.astype(np.float32) / 255)
    wide = Image.fromarray(levels.astype(np.int32) * 70000)
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = {"exif": exif}
    modes = {mode: rgb.convert(mode) for mode in ("1", "P", "RGBA", "LA", "CMYK")}
    forms = {
        "png": {
            "rgb": (rgb, {}), "grey": (grey, {}), "deep": (deep, {}), "exif": (rgb, turned),
            "icc": (rgb, {"icc_profile": bytes(200)}), **{mode: (modes[mode], {}) for mode in ("1", "P", "RGBA", "LA")},
            "animated": (rgb, {"save_all": True, "append_images": [rgb]}),
        },
        "jpeg": {
            "rgb": (rgb, {}), "grey": (grey, {}), "cmyk": (modes["CMYK"], {}), "exif": (rgb, turned),
            "progressive": (rgb, {"progressive": True}), "icc": (grey, {"icc_profile": bytes(200)}),
        },
        "bmp": {"rgb": (rgb, {}), "grey": (grey, {}), "bits": (modes["1"], {}), "palette": (modes["P"], {})},
        "tiff": {
            "rgb": (rgb, {}), "grey": (grey, {}), "deep": (deep, {}), "float": (real, {}), "wide": (wide, {}),
            "bits": (modes["1"], {"compression": "group4"}), "palette": (modes["P"], {}), "cmyk": (modes["CMYK"], {}),
            **{name: (grey, {"compression": name}) for name in ("tiff_lzw", "tiff_deflate", "packbits")},
            "deep_lzw": (deep, {"compression": "tiff_lzw"}), "jpeg": (rgb, {"compression": "jpeg"}),
            "pages": (grey, {"save_all": True, "append_images": [grey]}), "turned": (rgb, turned),
        },
        "webp": {
            "rgb": (rgb, {}), "lossless": (rgb, {"lossless": True}), "alpha": (modes["RGBA"], {}),
            "exif": (rgb, turned), "animated": (rgb, {"save_all": True, "append_images": [grey]}),
        },
        "gif": {
            "palette": (modes["P"], {}), "grey": (grey, {}), "transparent": (modes["P"], {"transparency": 3}),
            "animated": (rgb, {"save_all": True, "append_images": [grey], "loop": 0}),
        },
    }  # fmt: skip
    for kind, variants in forms.items():
        (folder / kind).mkdir(parents=True)
        for name, (image, options) in variants.items():
            image.save(folder / kind / name, format=kind.upper(), **options)


def _write_others(folder: Path) -> None:
    """Formats that Pillow knows, or others do, and that are none of the documented ones."""
    folder.mkdir()
    rgb = Image.fromarray(gradient_picture())
    Image.init()
    for kind in sorted(set(Image.SAVE) - {"PNG", "JPEG", "BMP", "TIFF", "WEBP", "GIF", "DIB", "PDF"}):
        stream = io.BytesIO()
        with contextlib.suppress(Exception):  # some write one mode only, some are not compiled in
            rgb.save(stream, format=kind)
        if stream.getvalue():
            (folder / kind).write_bytes(stream.getvalue())
    for kind in ("L", "1", "P"):
        stream = io.BytesIO()
        with contextlib.suppress(Exception):
            rgb.convert(kind).save(stream, format={"L": "SPIDER", "1": "XBM", "P": "PCX"}[kind])
            (folder / f"mode {kind}").write_bytes(stream.getvalue())
    texts = {
        "postscript": "%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n(EXECUTED) (w) file\n%%EOF\n",
        "svg": "<svg xmlns='http://www.w3.org/2000/svg'><image href='http://127.0.0.1/x'/></svg>",
        "fits": "SIMPLE  =                    T".ljust(80) + "BITPIX  =    8".ljust(80) + "END".ljust(80),
        "xpm": '/* XPM */\nstatic char *a[] = {"1 1 1 1", "a c #000000", "a"};',
        "html": "<html><script>alert(1)</script></html>",
        "pnm": "P3\n99999999 99999999\n255\n",
        "pfm": "Pf\n4 4\n-1.0\n" + "\0" * 64,
        "gzip": "\x1f\x8b\x08\0\0\0\0\0",
    }
    for kind, text in texts.items():
        (folder / kind).write_bytes((text + " " * 200).encode("latin1"))
    (folder / "psd").write_bytes(b"8BPS\0\1" + bytes(6) + b"\0\3" + b"\0\0\0\x08\0\0\0\x08\0\x08\0\3" + bytes(300))
    (folder / "wmf").write_bytes(b"\xd7\xcd\xc6\x9a" + bytes(18) + b"\1\0\x09\0" + bytes(60))


# -- DICOM ---------------------------------------------------------------------------------------


def _dataset(pixels: np.ndarray, bits: int = 12, syntax: str = "1.2.840.10008.1.2.1", **tags) -> Dataset:
    dataset, meta = Dataset(), FileMetaDataset()
    dataset.file_meta = meta
    meta.TransferSyntaxUID, meta.MediaStorageSOPInstanceUID = UID(syntax), UID("1.2.3")
    meta.MediaStorageSOPClassUID = dataset.SOPClassUID = UID("1.2.840.10008.5.1.4.1.1.1")
    dataset.SOPInstanceUID, dataset.Modality, dataset.PatientName = UID("1.2.3"), "CR", "A^B"
    dataset.Rows, dataset.Columns = pixels.shape[:2]
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation, dataset.PixelRepresentation = 1, "MONOCHROME2", 0
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 8 * pixels.dtype.itemsize, bits, bits - 1
    dataset.PixelData = pixels.tobytes()
    for tag, value in tags.items():
        setattr(dataset, tag, value)
    return dataset


def _item(**tags) -> Dataset:
    item = Dataset()
    for tag, value in tags.items():
        setattr(item, tag, value)
    return item


def _lut(bits: int) -> Sequence:
    entries = np.linspace(0, 2**bits - 1, 4096).astype(np.uint16)
    item = _item(LUTDescriptor=[4096, 0, bits])
    item.add_new(0x00283006, "OW", entries.tobytes())
    return Sequence([item])


def _write_dicom(folder: Path) -> None:
    folder.mkdir()
    grey = np.linspace(0, 4095, 60 * 48).astype(np.uint16).reshape(60, 48)
    byte, rgb = (grey >> 4).astype(np.uint8), gradient_picture(60, 48)
    window = {"WindowCenter": "2607", "WindowWidth": "2785"}
    colour = {"SamplesPerPixel": 3, "PhotometricInterpretation": "RGB", "PlanarConfiguration": 0}
    palette = {f"{name}PaletteColorLookupTableDescriptor": [256, 0, 16] for name in ("Red", "Green", "Blue")}
    palette |= {
        f"{name}PaletteColorLookupTableData": np.arange(0, 65536, 256, np.uint16).tobytes()
        for name in ("Red", "Green", "Blue")
    }
    groups = Sequence([_item(FrameVOILUTSequence=Sequence([_item(WindowCenter="2000", WindowWidth="500")]))])
    groups[0].PixelValueTransformationSequence = Sequence(
        [_item(RescaleSlope="2", RescaleIntercept="-5", RescaleType="US")]
    )
    size = {"Rows": 60, "Columns": 48}
    datasets = {
        "window": _dataset(grey, **window),
        "sigmoid": _dataset(grey, **window, VOILUTFunction="SIGMOID", RescaleSlope="2", RescaleIntercept="-1000"),
        "monochrome1": _dataset(grey, PhotometricInterpretation="MONOCHROME1", PixelPaddingValue=0),
        "signed": _dataset(grey.astype(np.int16) - 1000, 16, PixelRepresentation=1),
        "byte": _dataset(byte, 8),
        "rgb": _dataset(rgb, 8, **colour),
        "palette": _dataset(byte, 8, PhotometricInterpretation="PALETTE COLOR", **palette),
        "voi_lut": _dataset(grey, VOILUTSequence=_lut(8)),
        "modality_lut": _dataset(grey, ModalityLUTSequence=_lut(12), PresentationLUTShape="INVERSE"),
        "frames": _dataset(np.stack([grey, grey]), NumberOfFrames=2, **size, SharedFunctionalGroupsSequence=groups),
        "high_bit": _dataset(grey << 4, HighBit=15),
        "implicit": _dataset(grey, syntax="1.2.840.10008.1.2", **window),
        "deflated": _dataset(grey, syntax="1.2.840.10008.1.2.1.99", **window),
        "big_endian": _dataset(grey.byteswap(), syntax="1.2.840.10008.1.2.2", **window),
    }  # fmt: skip
    real = _dataset(grey, 32)
    del real.PixelData, real.BitsStored, real.HighBit, real.PixelRepresentation
    real.BitsAllocated, real.FloatPixelData = 32, grey.astype(np.float32).tobytes()
    datasets["float"] = real
    for name, kind, syntax in (("jpeg", "JPEG", "4.50"), ("jpeg2000", "JPEG2000", "4.90")):
        stream = io.BytesIO()
        with contextlib.suppress(OSError):  # a Pillow without JPEG 2000
            Image.fromarray(byte).save(stream, format=kind)
            datasets[name] = _dataset(
                byte, 8, f"1.2.840.10008.1.2.{syntax}", PixelData=encapsulate([stream.getvalue()])
            )
            datasets[name]["PixelData"].is_undefined_length = True
    runs = _dataset(byte, 8)
    runs.compress("1.2.840.10008.1.2.5", generate_instance_uid=False)
    datasets["rle"] = runs
    for name, dataset in datasets.items():
        little = dataset.file_meta.TransferSyntaxUID != "1.2.840.10008.1.2.2"
        implicit = dataset.file_meta.TransferSyntaxUID == "1.2.840.10008.1.2"
        dataset.save_as(folder / name, enforce_file_format=True, little_endian=little, implicit_vr=implicit)


# -- checkpoints ---------------------------------------------------------------------------------


def _write_ours(folder: Path) -> None:
    """Our own checkpoint in each format, weights in half precision: half the bytes."""
    weights = {
        key: value.half() if value.is_floating_point() else value for key, value in tiny_clip().state_dict().items()
    }
    whole = {"model_state_dict": weights, "config": {"embed_dim": 32, "img_size": 64}}
    torch.save(whole, folder / "ours.pth")
    torch.save(weights, folder / "weights.pth")
    (folder / "ours_legacy.pth").write_bytes(_legacy(whole))
    (folder / "weights_legacy.pth").write_bytes(_legacy(weights))
    plain = {key: value.contiguous() for key, value in weights.items()}
    save_file(plain, folder / "ours.safetensors", {"img_size": "64", "embed_dim": "32"})
    adapter = {"base_model.model.vision_model.encoder.layers.0.self_attn.q_proj.lora_A.weight": torch.zeros(4, 32)}
    save_file(adapter, folder / "adapter.safetensors")


def _legacy(content) -> bytes:
    """What torch wrote before 1.6, with numbers where it has the tensors' addresses, other ones each time."""
    storages, stream = {}, io.BytesIO()

    def persistent_id(value):
        if not isinstance(value, torch.storage.TypedStorage):
            return None
        key, _ = storages.setdefault(value._cdata, (f"{len(storages):06}", value))
        return "storage", getattr(torch, value._pickle_storage_type()), key, "cpu", value._size(), None

    for header in (MAGIC_NUMBER, PROTOCOL_VERSION, {"protocol_version": PROTOCOL_VERSION, "little_endian": True}):
        pickle.dump(header, stream, protocol=2)
    pickler = pickle.Pickler(stream, protocol=2)
    pickler.persistent_id = persistent_id
    pickler.dump(content)
    pickle.dump([key for key, _ in storages.values()], stream, protocol=2)
    for _, storage in storages.values():
        stream.write(
            struct.pack("<q", len(storage))
            + torch.empty(0, dtype=torch.uint8).set_(storage.untyped()).numpy().tobytes()
        )
    return stream.getvalue()


def _write_openai(folder: Path) -> None:
    """OpenAI's two architectures as state dicts, one as a traced archive; an archive of another kind of network."""
    vocabulary = write_clip_bpe(folder)
    for kind in ("vit", "resnet"):
        torch.save(openai.make_original(kind, vocabulary).state_dict(), folder / f"{kind}.bin")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        openai.trace(openai.make_original("vit", vocabulary), folder / "vit.pt")
        torch.jit.script(openai.Scripted(torch.nn.Linear(3, 4))).save(str(folder / "scripted.pt"))
    for path in (folder / "vit.pt", folder / "scripted.pt"):  # without where the code stood, which differs each time
        entries = read_zip(path.read_bytes())
        path.write_bytes(write_zip([e for e in entries if not e.name.endswith((b".debug_pkl", b"serialization_id"))]))


# -- what earlier runs left ----------------------------------------------------------------------


def _write_run(folder: Path) -> None:
    """A finished run over three images, one of them bad, and the cache of text features that it left."""
    images = folder / "run_images"
    images.mkdir()
    for name in ("a", "picture"):
        shutil.copy(folder / "picture.png", images / f"{name}.png")
    (images / "bad.png").write_bytes(b"bad")
    place = folder.parent / "work" / "0"
    place.mkdir(parents=True, exist_ok=True)
    os.chdir(place)
    os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()) as stderr:
        codes = [script.main(RUN), script.main([*RUN[:3], str(folder / "picture.png"), *RUN[4:-1]])]
    if codes != [1, 0]:
        raise RuntimeError(f"the valid inputs do not work: {stderr.getvalue()}")
    os.remove("out/clip_gradcam_picture.png")
    Path("out/clip_gradcam_picture_overlay.png").rename(folder / "expected.png")  # so there is something to do again
    Path("out/.clip_gradcam/lock").write_text("")
    Path("out").rename(folder / "run")


def warm_up(folder: Path) -> None:
    """Import what commands import as they go, and fill what this process keeps: forked processes have it."""
    import transformers.models.auto.modeling_auto  # noqa: F401

    place = folder.parent / "work" / "0"
    place.mkdir(parents=True, exist_ok=True)
    os.chdir(place)
    os.environ["XDG_CACHE_HOME"] = str(folder.parent / "work" / "cache")
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        for images in (
            [str(folder / "picture.png")],
            [str(folder / "dicom" / "window"), str(folder / "dicom" / "jpeg2000")],
        ):
            script.main([*RUN[:3], *images, *RUN[4:-1], "--no-text-cache"])
        script.main([*CASE_RUN, "--no-text-cache"])
        for family in FAMILIES:
            script.main([*command(Random(0), model=folder / "families" / family)])
    for name in ("ours.pth", "weights.pth", "openai/vit.pt", "ours.safetensors", "zeros.deflate"):
        valid_bytes(name)
    for name in ("weights.pth", "openai/vit.bin", "openai/resnet.bin"):
        weights_of(name)
    for name in ("ours_legacy.pth", "weights_legacy.pth"):
        for pickled in legacy_parts(name)[0]:
            boundaries(pickled)
    for name in ("ours.pth", "weights.pth", "openai/vit.pt"):
        for entry in read_zip(valid_bytes(name)):
            if entry.name.endswith(b"data.pkl"):
                boundaries(entry.data)
