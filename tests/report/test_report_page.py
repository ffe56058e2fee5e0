"""The page in a real browser: it draws, it sorts, it asks for nothing, and text stays text."""

import hashlib
import io
import tomllib
from fnmatch import fnmatch
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from matplotlib.colors import to_rgb
from PIL import Image

from pipeline.report.content import Column, Figure, Picture, Report, Table, View
from pipeline.report.layout import PALETTE
from pipeline.report.page import write_page
from pipeline.report.report_page import NIIVUE, write_report
from pipeline.volume import Grid, Volume

ROOT = Path(__file__).parents[2]
HOSTILE = "</script><img src=x onerror='window.hacked = 1'><!-- ${x} {{ 7 * 7 }}"
MARK = (9, 30, 21)
AFFINE = np.array([[-1.5, 0, 0, 30.25], [0, 0, 1.25, -8.5], [0, 1.0, 0, 5.75], [0, 0, 0, 1]])
NIIVUE_SHA256 = "47b896b77ec4a5be3ef1949c33ad393b6f45629921f326c279000bcf51bdb4af"


def png(colour):
    file = io.BytesIO()
    Image.new("RGB", (64, 48), colour).save(file, "PNG")
    return file.getvalue()


def views():
    """A ball and a block; the reference holds a cube more around `MARK`."""
    prediction = np.zeros((32, 40, 36), np.uint8)
    offsets = np.indices(prediction.shape) - np.reshape((16, 20, 18), (3, 1, 1, 1))
    prediction[(offsets**2).sum(0) < 60] = 1
    prediction[20:28, 8:16, 8:30] = 2
    reference = prediction.copy()
    reference[tuple(slice(index - 2, index + 3) for index in MARK)] = 2
    grid = Grid(prediction.shape, AFFINE)
    image = np.random.default_rng(0).integers(0, 300, prediction.shape).astype(np.int16)
    maps = {"Reference": Volume(reference, grid), "Prediction": Volume(prediction, grid)}
    labels = {"ball": 1, HOSTILE: 2}
    picture = Picture("slices", png("navy"))
    return [
        View(name, rank, maps, Volume(image, grid), labels, None, frozenset(), picture)
        for name, rank in ((HOSTILE, "worst of 3"), ("b", "best of 3"))
    ]


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "report.html"
    rows = [(HOSTILE, 0.5, "x"), ("b", 0.9, None), ("c", None, HOSTILE), ("d", 0.1, "y")]
    table = Table("Cases", HOSTILE, (Column("Case"), Column("Dice", 2), Column("Remarks")), rows)
    write_report(
        path,
        Report(
            title=HOSTILE,
            lead=HOSTILE,
            figures=[Figure(HOSTILE, HOSTILE, HOSTILE)],
            cases=table,
            views=views(),
            charts=[Picture(HOSTILE, png("white"), is_chart=True)],
            facts={HOSTILE: {HOSTILE: HOSTILE}},
            remarks=[HOSTILE],
        ),
    )
    return path


@pytest.fixture(scope="module")
def opened(browser, page):
    browser.open(page.as_uri(), width=360, height=480)
    browser.wait_for("clinsegViewer.isReady || clinsegViewer.failed")
    return browser


def count(browser, viewer, *conditions):
    """Pixels for which each condition on `r`, `g` and `b` holds, read back from what NiiVue draws."""
    return browser.run(
        f"""(() => {{
        const {{gl, canvas}} = clinsegViewer.{viewer};
        clinsegViewer.{viewer}.drawScene();
        const bytes = new Uint8Array(4 * canvas.width * canvas.height);
        gl.readPixels(0, 0, canvas.width, canvas.height, gl.RGBA, gl.UNSIGNED_BYTE, bytes);
        const num = [{", ".join("0" * len(conditions))}];
        for (let i = 0; i < bytes.length; i += 4) {{
            const r = bytes[i], g = bytes[i + 1], b = bytes[i + 2];
            {" ".join(f"num[{n}] += {condition};" for n, condition in enumerate(conditions))}
        }}
        return num; }})()"""
    )


def near(colour):
    r, g, b = (round(255 * share) for share in to_rgb(colour))
    return f"Math.abs(r - {r}) + Math.abs(g - {g}) + Math.abs(b - {b}) < 24"


def set_input(browser, selector, value):
    browser.run(
        f"(e => {{ if (e.type === 'checkbox') e.checked = {value}; else e.value = {value};"
        " e.dispatchEvent(new Event('input')); e.dispatchEvent(new Event('change')); })"
        f"(document.querySelector('{selector}'))"
    )


def test_it_draws_label_colours_in_slices_and_a_rendering(opened):
    set_input(opened, "#opacity", 100)
    assert min(count(opened, "slices", *map(near, PALETTE[:2]))) > 100
    orange, blue, shown, flat = count(
        opened,
        "rendering",
        "r > 90 && r > b + 60",
        "b > 90 && b > r + 60",
        "r + g + b > 90",
        near(PALETTE[0]),
    )
    assert min(orange, blue) > 100 and flat < shown / 2  # in shades
    set_input(opened, "[data-layer=prediction]", "false")
    set_input(opened, "[data-layer=difference]", "true")
    assert count(opened, "slices", near(PALETTE[0])) == [0]
    assert count(opened, "slices", near("#D81B60")) > [10]


def test_its_coordinates_are_those_of_the_file(opened):
    x, y, z = nib.affines.apply_affine(AFFINE, MARK)
    opened.run("document.getElementById('focus').click()")
    told = opened.run("document.getElementById('place').textContent")
    assert told.startswith(f"R {x:.1f}  A {y:.1f}  S {z:.1f} mm")
    assert f"voxel {', '.join(map(str, MARK))}" in told
    assert f"reference {HOSTILE}" in told and "prediction –" in told
    opened.run("document.getElementById('slices').focus()")
    opened.press("ArrowLeft")  # to the patient's right
    moved = opened.run("clinsegViewer.mm")
    assert np.allclose(moved, (x + 1.0, y, z), atol=1e-3)


def test_a_click_on_a_heading_sorts(opened):
    def order():
        return opened.run("[...document.querySelectorAll('#cases tbody th')].map(cell => cell.textContent)")

    assert order() == [HOSTILE, "b", "c", "d"]
    heading = "document.querySelectorAll('#cases thead button')[1]"
    opened.run(f"{heading}.click()")
    assert order() == ["d", HOSTILE, "b", "c"]
    opened.run(f"{heading}.focus()")
    opened.press("Enter")
    assert order() == ["b", HOSTILE, "d", "c"]  # what has no value stays last
    assert opened.run(f"{heading}.closest('th').getAttribute('aria-sort')") == "descending"


def test_another_case_is_shown_at_a_click_in_the_table(opened):
    opened.run("document.querySelector('#cases a[data-view=\"1\"]').click()")
    opened.wait_for("clinsegViewer.view.case === 'b'")
    figures = "[...document.querySelectorAll('.slices')].map(figure => figure.hidden)"
    assert opened.run(figures) == [True, False]


def test_text_stays_text_and_nothing_is_asked_for(opened, page):
    assert {url for url in opened.requests if not url.startswith("data:")} == {page.as_uri()}
    assert opened.errors == []
    assert opened.run("document.querySelector('h1').textContent") == HOSTILE
    assert opened.run("document.querySelectorAll('img[src=x]').length") == 0
    # And if text did become an element, the policy would neither run nor fetch what it names.
    opened.run("document.body.insertAdjacentHTML('beforeend', '<img src=x onerror=\"window.hacked = 2\">')")
    opened.run("fetch('https://example.org/').catch(() => 0)")
    assert opened.run("typeof window.hacked") == "undefined"
    assert sum("Content Security Policy" in error for error in opened.errors) >= 2


def test_without_webgl2_slices_stand_in_and_a_line_says_why(browser, page):
    browser.open(page.as_uri(), width=640, before="HTMLCanvasElement.prototype.getContext = () => null")
    browser.wait_for("clinsegViewer.failed")
    assert browser.run("document.getElementById('viewer').hidden")
    assert "WebGL2" in browser.run("document.getElementById('no-viewer').innerText")
    browser.run("document.querySelectorAll('.choice button')[1].click()")
    figures = "[...document.querySelectorAll('.slices')].map(figure => figure.hidden)"
    assert browser.run(figures) == [True, False] and browser.errors == []


def test_it_draws_in_mlflows_pane_where_storage_is_forbidden(browser, page):
    frame = page.with_name("pane.html")
    frame.write_text(
        '<body style="margin:0"><iframe sandbox="allow-scripts" src="report.html#viewer" '
        'style="width:640px;height:900px;border:0"></iframe>'
    )
    browser.open(frame.as_uri(), width=640)
    for _ in range(50):
        with Image.open(io.BytesIO(browser.screenshot())) as picture:
            r, g, b = np.moveaxis(np.asarray(picture.convert("RGB")).astype(int), -1, 0)
        num_coloured = np.count_nonzero((b > r + 50) & (g > r + 20) & (b > 90))
        if num_coloured > 500:
            break
    assert num_coloured > 500, "no label's colour appeared"
    assert browser.errors == []


def test_niivue_is_the_one_that_was_released_and_its_licence_is_beside_it():
    assert hashlib.sha256(NIIVUE.read_bytes()).hexdigest() == NIIVUE_SHA256
    assert "BSD 2-Clause" in (NIIVUE.parent / "LICENSE").read_text()


def test_a_wheel_has_everything_that_pages_are_made_of():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    patterns = project["tool"]["setuptools"]["package-data"]["pipeline"]
    files = [p for p in (ROOT / "pipeline").rglob("*") if p.is_file() and p.suffix not in (".py", ".pyc")]
    assert len(files) > 5
    for file in files:
        assert any(fnmatch(file.relative_to(ROOT / "pipeline").as_posix(), p) for p in patterns), file


def test_a_script_that_would_end_its_element_is_refused(tmp_path):
    script = tmp_path / "a.js"
    script.write_text("document.write('</SCRIPT>')")
    with pytest.raises(ValueError, match="end tag"):
        write_page(tmp_path / "a.html", "page.html", scripts=[script], context={})
