"""Runs of the command over a folder of small pictures, on a model that is not trained."""

from pathlib import Path

import pytest
from folders import TEXTS, contents, rows_of, write_images

from clip_gradcam_visualization import main


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A working directory with the pictures of TREE."""
    monkeypatch.chdir(tmp_path)
    write_images(tmp_path / "data", 2)
    write_images(tmp_path / "data" / "左 侧", 2)
    write_images(tmp_path / "data" / "b" / "c", 1)
    return tmp_path


@pytest.fixture
def command(checkpoint, home):
    """Arguments of a run over data/ into out/ with three texts."""

    def build(*more, images=("data",), output="out", texts=TEXTS):
        flags = ["--num-workers", "0", "--model-path", checkpoint, "--output-dir", output]
        return [*map(str, flags), "--class-texts", *texts, "--image-path", *images, *more]

    return build


@pytest.fixture
def run(command):
    """A function that runs the command in this process, expects an exit code, and returns the rows of its table."""

    def run_and_read(*more, code=0, output="out", **options):
        assert main(command(*more, output=output, **options)) == code
        return rows_of(output) if (Path(output) / "results.jsonl").exists() else []

    return run_and_read


@pytest.fixture
def as_undisturbed(run):
    """A function that says whether out/ holds what a run leaves that nothing disturbed."""

    def compare(*flags, code=0):
        run(*flags, output="undisturbed", code=code)
        return contents("out") == contents("undisturbed")

    return compare
