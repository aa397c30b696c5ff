"""The README's examples in a notebook, run by nbconvert and looked at in a browser."""

import re
import shutil

import pytest
from project import PROJECT

nbformat = pytest.importorskip("nbformat", reason="nbformat is not installed")
nbconvert = pytest.importorskip("nbconvert", reason="nbconvert is not installed")
pytest.importorskip("ipykernel", reason="ipykernel is not installed")

SECTION = "## 在 Python 或 notebook 中使用"
SEVERAL = "explain(model, [image, image.rotate(90)], {'骨折': '假体周围骨折', '松动': '髋臼杯松动'}, target_text_idx=1)"
NARROW = "explain(model, image.crop((300, 0, 340, 900)), ['骨折', '松动'], target_text_idx='all')"


def example_cells() -> list[str]:
    """The code of the README's section on Python, and some of what it says without code."""
    readme = (PROJECT / "README.md").read_text(encoding="utf-8")
    section = readme.split(SECTION)[1].split("\n## ")[0]
    examples = re.findall(r"^```python\n(.*?)^```", section, flags=re.DOTALL | re.MULTILINE)
    return [*examples, "print(result)", f"several = {SEVERAL}\nseveral[0] == several[1]", NARROW]


@pytest.fixture(scope="module")
def notebook(tmp_path_factory):
    """The notebook of `example_cells`, as executed in a folder that holds the script and its package."""
    folder, own = tmp_path_factory.mktemp("notebook"), tmp_path_factory.mktemp("jupyter")
    for name in ("clip_gradcam_visualization.py", "models"):
        (folder / name).symlink_to(PROJECT / name)
    cells = [nbformat.v4.new_code_cell(source) for source in example_cells()]
    notebook = nbformat.v4.new_notebook(cells=cells)
    with pytest.MonkeyPatch.context() as patch:
        for variable in ("JUPYTER_RUNTIME_DIR", "JUPYTER_CONFIG_DIR", "IPYTHONDIR", "XDG_CACHE_HOME"):
            patch.setenv(variable, str(own / variable))
        run = nbconvert.preprocessors.ExecutePreprocessor(timeout=300, kernel_name="python3")
        run.preprocess(notebook, {"metadata": {"path": str(folder)}})
    return notebook


def result_of(cell):
    """What a cell's last line gives: (data, metadata) by media type."""
    (output,) = [output for output in cell.outputs if output.output_type == "execute_result"]
    return output.data, output.metadata


def test_a_result_is_its_figure_and_at_most_ten_lines(notebook):
    data, metadata = result_of(notebook.cells[1])
    assert set(data) == {"image/png", "text/plain"} and metadata == {"image/png": {"width": 1000}}
    lines = data["text/plain"].split("\n")
    assert lines[0].startswith("ImageResult") and lines[1].startswith("预测：骨折（") and len(lines) <= 10
    (printed,) = notebook.cells[2].outputs
    assert printed.text == data["text/plain"] + "\n"


def test_several_images_give_several_results(notebook):
    assert result_of(notebook.cells[3])[0] == {"text/plain": "False"}


@pytest.fixture(scope="module")
def browser():
    """A Chromium: the system's, else playwright's own."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    system = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    with sync_api.sync_playwright() as playwright:
        if system is None and not shutil.which(playwright.chromium.executable_path):
            pytest.skip("no Chromium is installed")
        browser = playwright.chromium.launch(executable_path=system, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.mark.parametrize("dots_per_pixel", [1, 2])
def test_the_picture_is_1000_pixels_wide_on_the_page_and_a_small_one_as_it_is(
    notebook, browser, dots_per_pixel, tmp_path
):
    html, _ = nbconvert.HTMLExporter().from_notebook_node(notebook)
    (tmp_path / "notebook.html").write_text(html, encoding="utf-8")
    context = browser.new_context(
        offline=True, viewport={"width": 1400, "height": 900}, device_scale_factor=dots_per_pixel
    )
    page = context.new_page()
    page.goto((tmp_path / "notebook.html").as_uri())
    images = page.locator("img")
    assert images.count() == 2
    sizes = images.evaluate_all("all => all.map(i => [i.getBoundingClientRect().width, i.naturalWidth])")
    (shown, own), (small, its_own) = sizes
    assert shown == 1000 < own and small == its_own < 1000
    height = images.first.evaluate("i => i.getBoundingClientRect().height / i.naturalHeight")
    assert height == pytest.approx(1000 / own, rel=1e-3)  # its proportions are kept
    context.close()
