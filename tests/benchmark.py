"""Time and memory as ratios within one run; not collected by pytest.

    python tests/benchmark.py                  # everything, about 30 minutes
    python tests/benchmark.py --quick          # fewer repetitions
    python tests/benchmark.py --only folder    # one part: see PARTS
    python tests/benchmark.py --against OLD    # whole commands against those of another checkout, pair by pair

The command is measured as a whole process against its floor, `python -c "import torch"`, without and with
text features in the cache; the CAM call against a plain forward pass under `no_grad`, and against grad-cam,
torchcam and captum where installed; other methods and the test of a heatmap against forward passes; a folder of images
against plain forward passes of the same machine.
Each pair is run in turn, A B A B ..., so that a machine whose speed drifts slows both: what counts is the
median of the pairs' ratios.
"""

import argparse
import contextlib
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
SHORT = ["--class-texts", *SHORT_TEXTS]
NINE = ["--class-texts-file", str(PROJECT / "class_texts_hip_prosthesis.json")]
SCRIPT = [sys.executable, str(PROJECT / "clip_gradcam_visualization.py"), "--cpu"]


def run_process(command: list[str], environment=None) -> tuple[float, float]:
    """(wall seconds, peak memory in GB) of one finished process; RuntimeError where it fails."""
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=environment)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    if status != 0:
        raise RuntimeError(f"{command} failed: {process.stderr.read().decode()[-500:]}")
    process.stderr.close()
    return seconds, usage.ru_maxrss * 1024 / 1e9


IMAGE = "image.png"
ENCODERS = ("resnet50", "starnet_s1")


def write_inputs(folder: Path) -> None:
    """Checkpoints of two encoders with full-size bert-base-chinese and random weights, and a 1000 x 800 image."""
    import numpy as np
    import torch
    from PIL import Image

    from models.clip import CLIPModel

    torch.manual_seed(0)
    for encoder in ENCODERS:
        model = CLIPModel(encoder)
        config = {"image_encoder": encoder, "text_encoder": "bert-base-chinese", "embed_dim": 512, "img_size": 224}
        torch.save({"model_state_dict": model.state_dict(), "config": config}, folder / f"{encoder}.pth")
    pixels = np.random.default_rng(0).integers(0, 255, (25, 20), dtype=np.uint8)
    Image.fromarray(pixels).resize((800, 1000), Image.Resampling.BICUBIC).save(folder / IMAGE)


def write_photos(folder: Path, count: int, size=(1000, 800), drawings: int = 20) -> None:
    """JPEG files of phantoms with their grain, so that encoding has the work of a photo: a drawing serves several."""
    import numpy as np
    from PIL import Image

    from models.demo.phantoms import draw_phantom

    folder.mkdir()
    greys = [draw_phantom(seed, ("cup_loose",), size=size).image for seed in range(min(count, drawings))]
    for i in range(count):
        grey = np.roll(greys[i % len(greys)], i // len(greys) * 7, axis=1)
        Image.fromarray(grey).convert("RGB").save(folder / f"{i:05d}.jpg", quality=92)


def measure_command(folder: Path, repetitions: int) -> None:
    """The command for one image against `import torch`: cold, and with the text features in the cache."""
    floor = [sys.executable, "-c", "import torch"]
    cold = "--no-text-cache"
    variants = (  # label, encoder, texts, flags, demanded ratio, demanded GB
        ("cold, 3 short texts", "resnet50", SHORT, [cold], 2.6, 1.4),
        ("cold, 9 descriptions", "resnet50", NINE, [cold], 2.6, 1.4),
        ("warm, resnet50, 9 descriptions", "resnet50", NINE, [], 2.0, 1.0),
        ("warm, starnet_s1, 9 descriptions", "starnet_s1", NINE, [], 1.5, 0.9),
    )
    for label, encoder, texts, flags, demanded, gigabytes in variants:
        command = [*SCRIPT, "--model-path", str(folder / f"{encoder}.pth"), "--image-path", str(folder / IMAGE)]
        command += ["--output-dir", str(folder / "out"), *texts, *flags]
        for warm_up in (floor, command):
            run_process(warm_up)
        pairs = [(run_process(floor), run_process(command)) for _ in range(repetitions)]
        ratio = statistics.median(ours[0] / base[0] for base, ours in pairs)
        base, ours = (statistics.median(pair[i][0] for pair in pairs) for i in (0, 1))
        peak = max(ours[1] for _, ours in pairs)
        row(f"command {label}", f"{ratio:.2f} x `import torch` ({ours:.2f} s / {base:.2f} s)", demanded)
        row(f"command {label}: peak memory", f"{peak:.2f} GB", gigabytes)


CALL = """
import statistics, sys, time
sys.path.insert(0, {project!r})
import torch
from clip_gradcam_visualization import CLIPGradCAM, get_target_layer_for_clip
from models.clip import CLIPModel
torch.manual_seed(0)
model = CLIPModel("resnet50", text_tower=False).eval()
cam, seconds = CLIPGradCAM(model, get_target_layer_for_clip(model), use_cuda=False), []
images, texts = torch.randn(1, 3, 224, 224), torch.randn(9, 512)
for _ in range(60):
    start = time.perf_counter()
    cam(images, texts, 0)
    seconds.append(time.perf_counter() - start)
print(statistics.median(seconds[10:]))
"""


def measure_against(folder: Path, other: Path, repetitions: int, count: int) -> None:
    """This checkout's commands against those of another one, in turn: time and peak memory."""
    write_photos_apart(folder / "photos", count)
    images = {"one": [str(folder / IMAGE)], "folder": [str(folder / "photos")]}
    variants = (  # label, encoder, images, flags
        ("cold, resnet50", "resnet50", "one", ["--no-text-cache"]),
        ("warm, resnet50", "resnet50", "one", []),
        ("warm, starnet_s1", "starnet_s1", "one", []),
        (f"{count} photos, both files", "resnet50", "folder", []),
        (f"{count} photos, --overlay-only", "resnet50", "folder", ["--overlay-only"]),
    )
    scripts = [project / "clip_gradcam_visualization.py" for project in (PROJECT, other)]
    for label, encoder, which, flags in variants:
        tail = ["--model-path", str(folder / f"{encoder}.pth"), *NINE, "--image-path", *images[which], *flags]
        commands = [
            [sys.executable, str(script), "--cpu", *tail, "--output-dir", str(folder / f"out_{number}")]
            for number, script in enumerate(scripts)
        ]
        repeated = repetitions if which == "one" else max(3, repetitions // 2)
        for command in commands:
            run_process(command)
        pairs = [[run_process(command) for command in commands] for _ in range(repeated)]
        ratio = statistics.median(ours[0] / theirs[0] for ours, theirs in pairs)
        ours, theirs = (statistics.median(pair[i][0] for pair in pairs) for i in (0, 1))
        peaks = [max(pair[i][1] for pair in pairs) for i in (0, 1)]
        row(f"{label}: time", f"{ratio:.3f} ({ours:.2f} s / {theirs:.2f} s)", 1.03)
        row(f"{label}: peak memory", f"{peaks[0] / peaks[1]:.3f} ({peaks[0]:.2f} GB / {peaks[1]:.2f} GB)", 1.0)
    calls = [[sys.executable, "-c", CALL.format(project=str(script.parent))] for script in scripts]
    seconds = [[float(subprocess.check_output(call)) for call in calls] for _ in range(max(3, repetitions // 2))]
    ratio = statistics.median(ours / theirs for ours, theirs in seconds)
    row("CAM call, batch 1", f"{ratio:.3f} ({1000 * seconds[0][0]:.1f} ms / {1000 * seconds[0][1]:.1f} ms)", 1.03)


def write_photos_apart(folder: Path, count: int) -> None:
    """`write_photos` in a process of its own: a child's peak counts what its parent held when it was started."""
    code = f"import sys; sys.path[:0] = [{str(PROJECT)!r}, {str(PROJECT / 'tests')!r}]; import benchmark, pathlib;"
    run_process([sys.executable, "-c", f"{code} benchmark.write_photos(pathlib.Path({str(folder)!r}), {count})"])


def row(what: str, measured: str, demanded="") -> None:
    print(f"| {what} | {measured} | {demanded} |", flush=True)


def forward_seconds(repetitions: int = 30) -> float:
    """Median seconds of a plain forward pass of one image: resnet50 at 224, `no_grad`, all threads."""
    code = FORWARD.format(repetitions=repetitions, project=str(PROJECT))
    return float(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout)


FORWARD = """
import statistics, sys, time
sys.path.insert(0, {project!r})
import torch
from models.clip import ImageEncoder
model, image, seconds = ImageEncoder("resnet50").eval(), torch.randn(1, 3, 224, 224), []
with torch.no_grad():
    for _ in range({repetitions}):
        start = time.perf_counter()
        model(image)
        seconds.append(time.perf_counter() - start)
print(statistics.median(seconds))
"""


def measure_folder(folder: Path, count: int) -> None:
    """A folder of photos, whole command, against plain forward passes before and after it."""
    photos = folder / "photos"
    write_photos(photos, count)
    command = [*SCRIPT, "--model-path", str(folder / "resnet50.pth"), *NINE, "--image-path", str(photos)]
    one = [*command[:-1], str(photos / "00000.jpg"), "--output-dir", str(folder / "one")]
    only, nine = ["--overlay-only"], ["--all-texts", "--no-figure"]
    variants = (
        ("both files", [], 2.2),
        ("--overlay-only", only, 1.2),
        ("--overlay-only as JPEG", [*only, "--overlay-format", "jpg"], 1.2),
        ("overlays of nine texts", nine, ""),
        ("overlays of nine texts as JPEG", [*nine, "--overlay-format", "jpg"], 1.8),
        ("report of nine texts, no overlays", [*nine, "--no-overlay"], 1.4),
    )
    for label, flags, demanded in variants:
        run_process([*one, *flags, "--report"])  # cache and disk are warm; one image without a file needs a report
        before = forward_seconds()
        seconds, _ = run_process([*command, "--output-dir", str(folder / label), *flags])
        forward = (before + forward_seconds()) / 2
        start, _ = run_process([*command, "--output-dir", str(folder / label), *flags, "--resume"])
        row(f"{count} photos, {label}", f"{seconds / count / forward:.2f} forward passes an image", demanded)
        share = (seconds - start) / count
        row(
            "  without start and end",
            f"{share / forward:.2f} ({1000 * share:.0f} ms of {1000 * seconds / count:.0f} ms)",
        )


def measure_default(folder: Path, repetitions: int, count: int) -> None:
    """What the default costs: the heatmap of one text among nine, with what the command adds, and a folder's time."""
    import torch

    from clip_gradcam_visualization import CLIPGradCAM, Explainer
    from models.explain.question import Question

    names = [str(number) for number in range(9)]
    for encoder, demanded in (("resnet50", 1.5), ("vit", 1.7)):
        model, texts, forward = tower_and_texts(encoder)
        image = torch.randn(1, 3, 224, 224)
        question = Question(names, names, [0], method=None, similarity=None, subtract_others=None)
        explainer = Explainer(model, texts, question)
        (setting,) = explainer.settings
        cam = CLIPGradCAM(model, setting.layers, False, *setting[:2], setting.others)
        runs = max(7, 3 * repetitions)
        for label, call in (
            ("heatmap", lambda cam=cam, texts=texts, image=image: cam.text_maps(image, texts, 0)),
            ("heatmap and text specificity", lambda explainer=explainer, image=image: explainer(image)),
        ):
            ratio = median_ratio(call, lambda forward=forward, image=image: forward(image), runs)
            row(f"default {label}, one text of nine, {encoder}", f"{ratio:.2f} x forward pass", demanded)
    ratio = ratio_of_runs(folder, count, [], ["--method", "gradcam"])
    row(f"{count} photos by the default", f"{ratio:.2f} x --method gradcam", 1.2)


def measure_report(folder: Path, count: int) -> None:
    """What the report costs a folder of photos, of one text and of nine."""
    for label, flags in (("", []), (", --overlay-only", ["--overlay-only"]), (", --all-texts", ["--all-texts"])):
        ratio = ratio_of_runs(folder, count, flags, [*flags, "--no-report"])
        row(f"{count} photos with the report{label}", f"{ratio:.2f} x --no-report", 1.05)


def ratio_of_runs(folder: Path, count: int, ours: list[str], other: list[str]) -> float:
    """Median over five pairs of whole commands over a folder of photos, with the flags `ours` and `other`."""
    photos = folder / "photos"
    if not photos.exists():
        write_photos(photos, count)
    command = [*SCRIPT, "--model-path", str(folder / "resnet50.pth"), *NINE, "--image-path", str(photos)]

    def run(flags):
        return lambda: run_process([*command, "--output-dir", str(folder / "runs"), *flags])

    return median_ratio(run(ours), run(other), 5, warm_up=1)


def measure_memory(folder: Path, few: int, many: int) -> None:
    """Peak memory of a long list of small images against a short one."""
    write_photos(folder / "drawn", 50, size=(64, 64))
    peaks = []
    for count in (few, few, many):  # the first fills the cache of text features
        images = folder / f"small_{count}"
        images.mkdir(exist_ok=True)
        for i in range(count):
            with contextlib.suppress(FileExistsError):
                os.link(folder / "drawn" / f"{i % 50:05d}.jpg", images / f"{i:05d}.jpg")
        command = [*SCRIPT, "--model-path", str(folder / "starnet_s1.pth"), "--image-path", str(images), *NINE]
        command += ["--overlay-only", "--output-dir", str(folder / f"of_{count}")]
        seconds, peak = run_process(command)
        peaks.append(peak)
    row(f"peak memory of {few} / of {many} small images", f"{peaks[1]:.3f} / {peaks[2]:.3f} GB ({seconds:.0f} s)")
    row(f"peak memory of {many} images / of {few}", f"{peaks[2] / peaks[1]:.3f}", 1.1)


def measure_ranks(folder: Path, count: int) -> None:
    """Two processes of one thread each against one, by what a further `count` photos take."""
    write_photos(folder / "more_photos", 2 * count)
    photos = sorted(map(str, (folder / "more_photos").iterdir()))
    seconds = {}
    for processes in (1, 2):
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
        for images in (photos[: count // 4], photos):
            output = str(folder / f"ranks_{processes}_{len(images)}")
            command = [*torchrun, *SCRIPT[1:], "--model-path", str(folder / "resnet50.pth"), *NINE, "--overlay-only"]
            environment = {**os.environ, "OMP_NUM_THREADS": "1"}
            command += ["--output-dir", output, "--image-path", *images]
            seconds[processes, len(images)] = run_process(command, environment)[0]
    taken = {n: seconds[n, len(photos)] - seconds[n, count // 4] for n in (1, 2)}
    row("throughput of 2 processes of one thread / of 1", f"{taken[1] / taken[2]:.2f}", "at least 1.75")


def median_ratio(ours, other, repetitions: int, warm_up: int = 2) -> float:
    """Median over pairs of (time of `ours` / time of `other`), after so many warm-up calls of each."""
    for call in (ours, other) * warm_up:
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

    model, text_features, forward = tower_and_texts("resnet50")
    layer = get_target_layer_for_clip(model)
    cam = CLIPGradCAM(model, layer, use_cuda=False)

    for batch, demanded in ((1, "1.05"), (16, "")):
        images = torch.randn(batch, 3, 224, 224)
        every_text = torch.arange(9).expand(batch, 9)

        def one_text(images=images):
            return cam(images, text_features, 0)

        def nine_texts(images=images, every_text=every_text):
            return cam.text_maps(images, text_features, every_text)

        runs = max(5, repetitions * (4 if batch == 1 else 1))
        ratio = median_ratio(one_text, lambda images=images: forward(images), runs)
        row(f"CAM call, batch {batch}, one text", f"{ratio:.2f} x forward pass", demanded)
        ratio = median_ratio(nine_texts, one_text, runs)
        row(f"CAM call, batch {batch}, nine texts", f"{ratio:.2f} x one text", 1.2)
        for name, call in other_libraries(model, layer, images, text_features).items():
            demanded = "0.8" if (name, batch) == ("torchcam", 16) else ""
            ratio = median_ratio(one_text, call, runs)
            row(f"CAM call, batch {batch}, one text", f"{ratio:.2f} x {name}", demanded)


PARTS = ("command", "call", "default", "methods", "faithfulness", "folder", "report", "memory", "ranks")
TINY_TEXT = {"num_hidden_layers": 1, "hidden_size": 64, "intermediate_size": 64, "num_attention_heads": 1}


def tower_and_texts(encoder: str):
    """(a model of random weights with a tiny text tower, nine unit text features, a plain forward pass)."""
    import torch

    from models.clip import CLIPModel

    torch.manual_seed(0)
    model = CLIPModel(encoder, text_config=TINY_TEXT).eval()

    def forward(images):
        with torch.no_grad():
            return model.image_encoder(images)

    return model, torch.nn.functional.normalize(torch.randn(9, 512), dim=-1), forward


def measure_methods(repetitions: int) -> None:
    """Methods of attention with nine texts, and Score-CAM, against plain forward passes, at 224."""
    import torch

    from clip_gradcam_visualization import CLIPGradCAM, get_target_layer_for_clip
    from models.explain.needs import SCORECAM_BATCH, SCORECAM_CHANNELS

    model, texts, forward = tower_and_texts("vit")
    image, all_texts = torch.randn(1, 3, 224, 224), torch.arange(9)[None]
    for method, demanded in (("legrad", 2.0), ("grad-eclip", 2.0), ("rollout", ""), ("gradcam", "")):
        cam = CLIPGradCAM(model, None if method != "gradcam" else get_target_layer_for_clip(model), False, method)
        ratio = median_ratio(
            lambda cam=cam: cam.text_maps(image, texts, all_texts), lambda: forward(image), max(5, 2 * repetitions)
        )
        row(f"{method}, ViT-B/16, nine texts", f"{ratio:.2f} forward passes", demanded)
    model, texts, forward = tower_and_texts("resnet50")
    cam = CLIPGradCAM(model, get_target_layer_for_clip(model), False, "scorecam")
    batch = torch.randn(SCORECAM_BATCH, 3, 224, 224).contiguous(memory_format=torch.channels_last)
    rest = SCORECAM_CHANNELS % SCORECAM_BATCH

    def channels():
        for _ in range(SCORECAM_CHANNELS // SCORECAM_BATCH):
            forward(batch)
        forward(batch[:rest])

    ratio = median_ratio(lambda: cam.text_maps(image, texts, 0), channels, max(3, repetitions // 2))
    row(f"scorecam, resnet50, {SCORECAM_CHANNELS} channels", f"{ratio:.2f} x as many batched forward passes", 1.1)


def measure_tests(repetitions: int) -> None:
    """Deletion and insertion of one heatmap against plain forward passes of one image, at 224."""
    import torch

    from clip_gradcam_visualization import CLIPGradCAM, get_target_layer_for_clip
    from models.explain.faithfulness import measure_faithfulness

    for encoder in ("resnet50", "starnet_s1", "vit"):
        model, texts, forward = tower_and_texts(encoder)
        cam = CLIPGradCAM(model, get_target_layer_for_clip(model), False)
        image, calls = torch.randn(1, 3, 224, 224), []
        maps = torch.randn(1, 14, 14) if encoder == "vit" else torch.randn(1, 7, 7)

        def score(images, cam=cam, texts=texts, calls=calls):
            calls.append(len(images))
            return cam.score(images, texts)

        def test(score=score, image=image, maps=maps):
            return measure_faithfulness(score, image, maps, [0])

        ratio = median_ratio(test, lambda forward=forward, image=image: forward(image), max(3, repetitions // 2))
        batches = len(calls) // (2 + max(3, repetitions // 2))
        row(f"faithfulness of one heatmap, {encoder}", f"{ratio:.1f} forward passes in {batches} batches", 25)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="fewer repetitions")
    parser.add_argument("--only", choices=PARTS, help="measure one part")
    parser.add_argument("--against", metavar="FOLDER", type=Path, help="compare with another checkout, no more")
    parser.add_argument("--write-inputs", metavar="FOLDER", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.write_inputs:
        return write_inputs(arguments.write_inputs)
    quick = arguments.quick
    repetitions = 3 if quick else 9
    parts = {
        "command": lambda folder: measure_command(folder, repetitions),
        "call": lambda folder: measure_call(repetitions),
        "default": lambda folder: measure_default(folder, repetitions, 40 if quick else 200),
        "methods": lambda folder: measure_methods(repetitions),
        "faithfulness": lambda folder: measure_tests(repetitions),
        "folder": lambda folder: measure_folder(folder, 40 if quick else 200),
        "report": lambda folder: measure_report(folder, 40 if quick else 200),
        "memory": lambda folder: measure_memory(folder, 200, 2000 if quick else 20_000),
        "ranks": lambda folder: measure_ranks(folder, 40 if quick else 200),
    }
    print("| what | measured | demanded at most |\n| --- | --- | --- |")
    with tempfile.TemporaryDirectory() as name:
        os.environ["XDG_CACHE_HOME"] = str(Path(name) / "cache")
        # in a process of its own: a child's peak counts what its parent held when it was started
        run_process([sys.executable, __file__, "--write-inputs", name])
        if arguments.against:
            measure_against(Path(name), arguments.against.resolve(), repetitions, 40 if quick else 100)
            return
        for part in parts if arguments.only is None else [arguments.only]:
            parts[part](Path(name))


if __name__ == "__main__":
    main()
