"""Write `dcm2pnm.npz`: what dcmtk's dcm2pnm makes of each of `dicom_kinds.py`, and dcmtk's JPEGs of their ramp.

python tests/images/make_dcm2pnm.py          # needs dcmtk (dcm2pnm, dcmj2pnm, dcmcjpeg, dcmcjpls, dcmdjpls)
"""

import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from dicom_kinds import COLOURS, EIGHT, RAMP, WINDOW, WINDOWED, dataset, file_of, kinds
from PIL import Image

JPEGS = {  # name -> (dataset, encoder and its options)
    "jpeg": (dataset(EIGHT, WindowCenter="100", WindowWidth="200"), ("dcmcjpeg", "+eb", "+q", "95")),
    "jpeg of colours": (dataset(COLOURS, "RGB"), ("dcmcjpeg", "+eb", "+q", "95", "+s4")),
    "jpeg of 12 bits": (dataset(RAMP, bits=12, **WINDOW), ("dcmcjpeg", "+ee", "+q", "95")),
    "jpeg lossless": (dataset(RAMP, bits=12, **WINDOW), ("dcmcjpeg", "+e1")),
    "jpeg lossless, any": (dataset(RAMP << 4, **{**WINDOW, "WindowWidth": "60000"}), ("dcmcjpeg", "+el")),
    "jpeg-ls": (dataset(RAMP, bits=12, **WINDOW), ("dcmcjpls", "+el")),
}


def scan_ends_at_zero(data: bytes) -> bytes:
    """A file of sequential JPEG with the end of the spectral selection set to 0, as in NEMA's WG04 set."""
    start = data.index(b"\xff\xda")
    changed = bytearray(data)
    changed[start + 6 + 2 * changed[start + 4]] = 0
    return bytes(changed)


def show(folder: Path, data: bytes, options, program="dcm2pnm") -> np.ndarray:
    """What dcm2pnm writes of a file: uint8 [H, W] or [H, W, 3]."""
    (folder / "a.dcm").write_bytes(data)
    command = [program, "+op", *options, folder / "a.dcm", folder / "a.pnm"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr.strip())
    return np.asarray(Image.open(folder / "a.pnm"))


def main() -> None:
    """Write the pictures, and say which kinds dcmtk refuses."""
    pictures, files = {}, {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for kind, (data, options, _) in kinds().items():
            try:
                pictures[f"picture/{kind}"] = show(folder, data, options)
            except RuntimeError as error:
                print(f"{kind}: {error}", file=sys.stderr)
        for kind, (ds, (program, *options)) in JPEGS.items():
            (folder / "plain.dcm").write_bytes(file_of(ds))
            subprocess.run([program, *options, folder / "plain.dcm", folder / "packed.dcm"], check=True)
            data = (folder / "packed.dcm").read_bytes()
            if program == "dcmcjpls":
                subprocess.run(["dcmdjpls", folder / "packed.dcm", folder / "plain.dcm"], check=True)
            shown = (folder / "plain.dcm").read_bytes() if program == "dcmcjpls" else data
            options = WINDOWED if ds.PhotometricInterpretation != "RGB" else ()
            pictures[f"picture/{kind}"] = show(folder, shown, options, "dcmj2pnm")
            files[f"file/{kind}"] = np.frombuffer(data, np.uint8)
        twelve = files["file/jpeg of 12 bits"].tobytes()
        files["file/jpeg of 12 bits whose scan ends at 0"] = np.frombuffer(scan_ends_at_zero(twelve), np.uint8)
        pictures["picture/jpeg of 12 bits whose scan ends at 0"] = pictures["picture/jpeg of 12 bits"]
    np.savez_compressed(Path(__file__).with_name("dcm2pnm.npz"), **pictures, **files)


if __name__ == "__main__":
    main()
