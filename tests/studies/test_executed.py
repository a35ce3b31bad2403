"""What of an executed notebook GitHub shows."""

import base64
import io

import nbformat
import numpy as np
import pytest
from nbformat import v4
from PIL import Image

from lib.studies import executed
from lib.studies.executed import MOST_BYTES, WIDGET, main, shown


def picture(side, seed=0):
    made, noise = io.BytesIO(), np.random.default_rng(seed).integers(0, 255, (side, side, 3), np.uint8)
    Image.fromarray(noise).save(made, "png")
    return base64.b64encode(made.getvalue()).decode()


def notebook(*outputs):
    tagged = {"tags": ["parameters"], "papermill": {"duration": 1.5}}
    cell = v4.new_code_cell("1", outputs=list(outputs), metadata=tagged)
    bare = v4.new_code_cell("2", metadata={"execution": {"iopub.status.busy": "2026"}})
    about = {"kernelspec": {"name": "python3", "display_name": "Python 3"}, "widgets": {"state": {}}}
    return v4.new_notebook(cells=[cell, bare, v4.new_markdown_cell("a")], metadata=about)


def data(**given):
    return v4.new_output("display_data", data={"text/plain": "a figure", **given})


def test_bars_and_stderr_go_and_a_widgets_picture_stays():
    bar, widget = data(**{WIDGET: {"model_id": "1"}}), data(**{WIDGET: {"model_id": "2"}, "image/png": picture(2)})
    streams = [v4.new_output("stream", name=name, text="x") for name in ("stdout", "stderr")]
    kept = shown(notebook(bar, widget, *streams)).cells[0].outputs
    assert [output.output_type for output in kept] == ["display_data", "stream"]
    assert set(kept[0].data) == {"text/plain", "image/png"} and kept[1].name == "stdout"


def test_nothing_tells_of_the_machine_or_the_time():
    kept = shown(notebook(data(**{"text/plain": "<Axes at 0x7f00ab>"})))
    assert set(kept.metadata) == {"kernelspec", "language_info"}
    assert [cell.metadata for cell in kept.cells] == [{"tags": ["parameters"]}, {}, {}]
    assert kept.cells[0].outputs[0].data["text/plain"] == "<Axes>"


def test_pictures_stay_as_they_are_while_there_is_room(tmp_path):
    small = picture(100)
    nbformat.write(notebook(data(**{"image/png": small})), tmp_path / "a.ipynb")
    main(tmp_path / "a.ipynb", tmp_path / "copies" / "a.ipynb")
    copy = nbformat.read(tmp_path / "copies" / "a.ipynb", 4)
    assert copy.cells[0].outputs[0].data["image/png"] == small


def test_too_large_a_notebook_has_pictures_of_256_colours(tmp_path):
    outputs = [data(**{"image/png": picture(512, seed)}) for seed in range(3)]
    nbformat.write(notebook(*outputs), tmp_path / "a.ipynb")
    assert (tmp_path / "a.ipynb").stat().st_size > MOST_BYTES
    main(tmp_path / "a.ipynb", tmp_path / "b.ipynb")
    assert (tmp_path / "b.ipynb").stat().st_size < MOST_BYTES
    for output in nbformat.read(tmp_path / "b.ipynb", 4).cells[0].outputs:
        image = Image.open(io.BytesIO(base64.b64decode(output.data["image/png"])))
        assert image.size == (512, 512) and len(image.convert("RGB").getcolors()) <= 256


def test_one_that_stays_too_large_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(executed, "MOST_BYTES", 1000)
    nbformat.write(notebook(data(**{"image/png": picture(64)})), tmp_path / "a.ipynb")
    with pytest.raises(ValueError, match=r"b\.ipynb would have \d+ bytes: it must have at most 1000"):
        main(tmp_path / "a.ipynb", tmp_path / "b.ipynb")
    assert not (tmp_path / "b.ipynb").exists()
