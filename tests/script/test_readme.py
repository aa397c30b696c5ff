"""What the README promises: its Python examples run as printed, and its tables agree with the code."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import evaluate
import evaluate_truth
import numpy as np
import pytest
from evaluate_demo import markdown
from PIL import Image
from project import PROJECT

from clip_gradcam_visualization import FLAGS, main
from models.explain.defaults import ENCODERS
from models.explain.methods import METHODS

README = (PROJECT / "README.md").read_text(encoding="utf-8")
DEMO = PROJECT / "models" / "assets" / "demo"
MEASUREMENTS = (DEMO / "measurements.zh.md").read_text(encoding="utf-8")


def code_blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```", README, flags=re.DOTALL | re.MULTILINE)


def run_as_printed(source, folder):
    """Run a Python example in `folder`, where `python` is this interpreter."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = {**os.environ, "PATH": path, "PYTHONPATH": str(PROJECT)}
    finished = subprocess.run(
        [sys.executable, "-c", source], cwd=folder, env=environment, capture_output=True, text=True, encoding="utf-8"
    )
    assert finished.returncode == 0, finished.stderr
    return finished


@pytest.fixture
def workplace(tmp_path):
    """A user's folder: the script and its package, a checkpoint, class texts, two images under a Chinese name."""
    for name in ("clip_gradcam_visualization.py", "models"):
        (tmp_path / name).symlink_to(PROJECT / name)
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "clip_model.pth").symlink_to(DEMO / "clip_starnet_bert.pth")
    for name in ("class_texts.json", "class_texts_hip_prosthesis.json"):
        (tmp_path / name).symlink_to(PROJECT / "class_texts_hip_prosthesis.json")
    images = tmp_path / "data" / "test"
    images.mkdir(parents=True)
    for source, name in (("two_findings.png", "001.jpg"), ("infection.png", "髋关节 2.jpg")):
        Image.open(DEMO / source).convert("RGB").save(images / name)
    return tmp_path


def test_the_loop_over_a_folder_runs_as_printed(workplace):
    (loop,) = [block for block in code_blocks("python") if "subprocess.run" in block]
    run_as_printed(loop, workplace)
    written = {path.name for path in (workplace / "results" / "gradcam").iterdir()}
    stems = ("clip_gradcam_001", "clip_gradcam_髋关节 2")
    assert written == {stem + end for stem in stems for end in (".png", "_overlay.png")}


def test_the_notebook_example_runs_as_printed(workplace):
    (example,) = [block for block in code_blocks("python") if "visualize_clip_gradcam(" in block]
    check = "\nassert overlay.dtype.name == 'float32' and overlay.min() >= 0 and overlay.max() <= 1\n"
    run_as_printed(example + check + "print(*overlay.shape)", workplace)
    overlay = np.asarray(Image.open(workplace / "result_overlay.png"))
    original = np.asarray(Image.open(DEMO / "two_findings.png").convert("RGB"))
    assert overlay.shape == original.shape
    assert (workplace / "result.png").exists()


def test_the_example_of_explain_runs_as_printed(workplace):
    (example,) = [block for block in code_blocks("python") if " explain(" in block]
    name = "Local Grad-CAM，两层，点积"
    check = f"\nassert result.map.shape == (900, 700) and result.full_label() == '{name}', result.full_label()\n"
    check += "assert result.layer == 'stages.2.8 + stages.3.3' and result.geometry == (0, 0, 700, 900)\n"
    run_as_printed(example + check + "assert result._repr_png_()[0].startswith(b'\\x89PNG')", workplace)


def test_the_published_model_that_is_shipped_runs_as_printed(workplace, monkeypatch):
    (command,) = [block for block in code_blocks("bash") if "demo_vit" in block]
    monkeypatch.chdir(workplace)
    assert main([part for part in shlex.split(command) if part != "\n"][2:]) == 0
    written = {path.name for path in (workplace / "clip_gradcam_results").iterdir()}
    overlays = {f"clip_gradcam_two_findings_overlay_{method}.png" for method in ("default", *METHODS)}
    assert written == {"clip_gradcam_two_findings.png", *overlays}


def test_both_commands_are_one_line_each():
    for name in ("main", "test"):
        (command,) = re.findall(rf"<!-- {name} command -->\n```bash\n(.*?)\n```", README, flags=re.DOTALL)
        assert "\n" not in command
        assert "requirements.txt" in command


@pytest.mark.parametrize("method", METHODS)
def test_each_method_has_a_row(method):
    assert re.search(rf"^\| `{re.escape(method)}` \|", README, flags=re.MULTILINE)


@pytest.mark.parametrize("flag", [flag for flag, _, _ in FLAGS if flag != "--help"])
def test_each_flag_stands_in_the_table(flag):
    assert re.search(rf"^\| [^|]*`{flag}\b", README, flags=re.MULTILINE)


def test_the_target_layer_table_names_every_family():
    table = README.split("## 目标层")[1].split("公式")[0]
    for encoder in ENCODERS:
        family = re.split(r"[-_\d]", encoder)[0]
        assert family in table


def test_the_table_of_methods_is_the_published_measurement():
    methods = json.loads((DEMO / "methods.json").read_text(encoding="utf-8"))
    table = MEASUREMENTS.split("<!-- methods -->\n")[1].split("\n<!-- end of methods -->")[0]
    assert table == evaluate.markdown(methods)


def test_the_demo_table_is_the_published_measurement():
    evaluation = json.loads((DEMO / "evaluation.json").read_text(encoding="utf-8"))
    table = MEASUREMENTS.split("<!-- evaluation -->\n")[1].split("\n<!-- end of evaluation -->")[0]
    assert table == markdown(evaluation)


DEMO_COLUMNS = ("image", "predicted", "probability", "peak_x", "peak_y", "area_above_half", "text_specificity")


def test_the_rows_of_the_demo_are_those_of_a_run(tmp_path):
    texts = str(PROJECT / "class_texts_hip_prosthesis.json")
    command = ["--model-path", str(DEMO / "clip_starnet_bert.pth"), "--class-texts-file", texts, "--overlay-only"]
    assert main([*command, "--image-path", str(DEMO / "*.png"), "--output-dir", str(tmp_path)]) == 0
    rows = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text(encoding="utf-8").splitlines()]
    printed = README.split("<!-- demo rows -->\n")[1].split("\n<!-- end of demo rows -->")[0].splitlines()[2:]
    for row, line in zip(rows, printed, strict=True):
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        row["image"] = Path(row["image"]).name
        for column, cell in zip(DEMO_COLUMNS, cells, strict=True):
            value = row[column]
            assert cell == str(value) or float(cell) == pytest.approx(value, abs=0.006), (column, line)


def test_the_readme_is_short_and_its_picture_of_the_house_names_every_room():
    assert len(README.splitlines()) <= 490
    picture = README.split("```text\n")[1].split("```")[0]
    models = PROJECT / "models"
    rooms = [path.stem for path in models.iterdir() if path.name not in ("__init__.py", "__pycache__", "assets")]
    assert not [room for room in rooms if not re.search(rf"\b{room}\b", picture)]


def test_the_tables_of_truth_are_the_published_measurement():
    truth = json.loads((DEMO / "truth.json").read_text(encoding="utf-8"))
    table = MEASUREMENTS.split("<!-- truth -->\n")[1].split("\n<!-- end of truth -->")[0]
    assert table == evaluate_truth.markdown(truth)
    short = README.split("<!-- truth rows -->\n")[1].split("\n<!-- end of truth rows -->")[0]
    assert short == evaluate_truth.short_markdown(truth)


def test_files_that_the_readme_shows_exist():
    for path in re.findall(r"\]\((models/[^)]+)\)", README):
        assert (PROJECT / path).exists(), path
