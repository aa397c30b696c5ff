"""Time and memory as ratios within one run; not collected by pytest.

    python tests/benchmark.py             # everything, about five minutes
    python tests/benchmark.py --quick     # fewer repetitions

The command is measured as a whole process against its floor, `python -c "import torch"`; the CAM call
against a plain forward pass under `no_grad`, and against grad-cam, torchcam and captum where installed.
Each pair is run in turn, A B A B ..., so that a machine whose speed drifts slows both: what counts is the
median of the pairs' ratios.
"""

import argparse
import gc
import importlib.util
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(PROJECT))
SHORT_TEXTS = ("正常", "异常", "病灶")  # the guide's first example
CLASS_TEXTS_FILE = PROJECT / "class_texts_hip_prosthesis.json"


def run_process(command: list[str]) -> tuple[float, float]:
    """(wall seconds, peak memory in GB) of one finished process; RuntimeError where it fails."""
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    if status != 0:
        raise RuntimeError(f"{command} failed: {process.stderr.read().decode()[-500:]}")
    process.stderr.close()
    return seconds, usage.ru_maxrss * 1024 / 1e9


INPUTS = ("resnet50.pth", "image.png")


def write_inputs(folder: Path) -> None:
    """A checkpoint of resnet50 and full-size bert-base-chinese with random weights, and a 1000 x 800 image."""
    import numpy as np
    import torch
    from PIL import Image

    from models.clip import CLIPModel

    torch.manual_seed(0)
    model = CLIPModel("resnet50")
    config = {"image_encoder": "resnet50", "text_encoder": "bert-base-chinese", "embed_dim": 512, "img_size": 224}
    torch.save({"model_state_dict": model.state_dict(), "config": config}, folder / INPUTS[0])
    pixels = np.random.default_rng(0).integers(0, 255, (25, 20), dtype=np.uint8)
    Image.fromarray(pixels).resize((800, 1000), Image.Resampling.BICUBIC).save(folder / INPUTS[1])


def measure_command(repetitions: int) -> None:
    """The cold command against `import torch`."""
    floor = [sys.executable, "-c", "import torch"]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        # in a process of its own: a child's peak counts what its parent held when it was started
        run_process([sys.executable, __file__, "--write-inputs", name])
        checkpoint, image = (folder / part for part in INPUTS)
        command = [sys.executable, str(PROJECT / "clip_gradcam_visualization.py"), "--cpu"]
        command += ["--model-path", str(checkpoint), "--image-path", str(image), "--output-dir", str(folder)]
        variants = {
            "3 short texts": ["--class-texts", *SHORT_TEXTS],
            "9 descriptions": ["--class-texts-file", str(CLASS_TEXTS_FILE)],
        }
        for command_line in (floor, *(command + texts for texts in variants.values())):
            run_process(command_line)  # the disk cache is warm for all
        for label, texts in variants.items():
            pairs = [(run_process(floor), run_process(command + texts)) for _ in range(repetitions)]
            ratio = statistics.median(ours[0] / base[0] for base, ours in pairs)
            seconds = [statistics.median(pair[i][0] for pair in pairs) for i in (0, 1)]
            peak = max(ours[1] for _, ours in pairs)
            print(f"| cold command, {label} | {ratio:.2f} x `import torch` | 2.6 | {peak:.2f} GB (1.4) |", flush=True)
            print(f"|   ({seconds[1]:.2f} s against {seconds[0]:.2f} s) | | | |", flush=True)


def median_ratio(ours, other, repetitions: int) -> float:
    """Median over pairs of (time of `ours` / time of `other`), after two warm-up calls of each."""
    for call in (ours, other) * 2:
        call()
    ratios = []
    for _ in range(repetitions):
        seconds = []
        for call in (ours, other):
            start = time.perf_counter()
            call()
            seconds.append(time.perf_counter() - start)
        ratios.append(seconds[0] / seconds[1])
    return statistics.median(ratios)


def other_libraries(model, layer, images, text_features) -> dict:
    """Name -> a call that computes the same Grad-CAM of text 0 with another library, for those installed."""
    import torch

    class Similarity(torch.nn.Module):
        """What those libraries expect: images in, one score per class out."""

        def __init__(self):
            super().__init__()
            self.image_encoder = model.image_encoder

        def forward(self, images):
            return self.image_encoder(images) @ text_features.T

    network, calls = Similarity().eval(), {}
    targets = [0] * len(images)
    if importlib.util.find_spec("torchcam"):
        from torchcam.methods import GradCAM as TorchCAM

        def torchcam():
            with TorchCAM(network, layer) as extractor:
                return extractor(targets, network(images))[0]

        calls["torchcam"] = torchcam
    if importlib.util.find_spec("pytorch_grad_cam"):
        from pytorch_grad_cam import GradCAM
        from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

        chosen = [ClassifierOutputTarget(0) for _ in targets]

        def grad_cam():
            with GradCAM(model=network, target_layers=[layer]) as extractor:
                return torch.from_numpy(extractor(input_tensor=images, targets=chosen))

        calls["grad-cam"] = grad_cam
    if importlib.util.find_spec("captum"):
        from captum.attr import LayerGradCam

        def captum():
            return LayerGradCam(network, layer).attribute(images, target=0, relu_attributions=True)[:, 0]

        calls["captum"] = captum
    return calls


def measure_call(repetitions: int) -> None:
    """The CAM call against a forward pass and against other libraries: resnet50 at 224."""
    import torch

    from clip_gradcam_visualization import CLIPGradCAM, get_target_layer_for_clip
    from models.clip import CLIPModel

    torch.manual_seed(0)
    tiny_text = {"num_hidden_layers": 1, "hidden_size": 64, "intermediate_size": 64, "num_attention_heads": 1}
    model = CLIPModel("resnet50", text_config=tiny_text).eval()
    layer = get_target_layer_for_clip(model)
    cam = CLIPGradCAM(model, layer, use_cuda=False)
    text_features = torch.nn.functional.normalize(torch.randn(9, 512), dim=-1)

    def forward(images):
        with torch.no_grad():
            return model.image_encoder(images)

    for batch, demanded in ((1, "1.05"), (16, "")):
        images = torch.randn(batch, 3, 224, 224)
        every_text = torch.arange(9).expand(batch, 9)

        def one_text(images=images):
            return cam(images, text_features, 0)

        def nine_texts(images=images, every_text=every_text):
            return cam.explain(images, text_features, every_text)

        runs = max(5, repetitions * (4 if batch == 1 else 1))
        ratio = median_ratio(one_text, lambda images=images: forward(images), runs)
        print(f"| CAM call, batch {batch}, one text | {ratio:.2f} x forward pass | {demanded} | |", flush=True)
        ratio = median_ratio(nine_texts, one_text, runs)
        print(f"| CAM call, batch {batch}, nine texts | {ratio:.2f} x one text | 1.2 | |", flush=True)
        for name, call in other_libraries(model, layer, images, text_features).items():
            demanded = "0.8" if (name, batch) == ("torchcam", 16) else ""
            ratio = median_ratio(one_text, call, runs)
            print(f"| CAM call, batch {batch}, one text | {ratio:.2f} x {name} | {demanded} | |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="fewer repetitions")
    parser.add_argument("--only", choices=("command", "call"), help="measure one of the two")
    parser.add_argument("--write-inputs", metavar="FOLDER", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.write_inputs:
        return write_inputs(arguments.write_inputs)
    repetitions = 3 if arguments.quick else 9
    print("| what | measured (median of pairs) | demanded at most | peak memory |\n| --- | --- | --- | --- |")
    if arguments.only != "call":
        measure_command(repetitions)
        gc.collect()
    if arguments.only != "command":
        measure_call(repetitions)


if __name__ == "__main__":
    main()
