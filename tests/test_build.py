"""The script behind `make book`: what it refuses, and what it leaves out of notebooks."""

import importlib.util
import sys
import types
from pathlib import Path

import nbformat
import pytest

SCRIPT = Path(__file__).resolve().parent.parent / "book" / "build.py"


@pytest.fixture
def build(tmp_path, monkeypatch):
    """The script, at work in an empty folder."""
    spec = importlib.util.spec_from_file_location("build", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "ROOT", tmp_path)
    monkeypatch.setattr(module, "BUILD", tmp_path / "_build")
    (tmp_path / "notebooks").mkdir()
    return module


def notebook(*sources):
    return nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_code_cell(source) for source in sources],
        metadata={
            "kernelspec": {"name": "python3", "display_name": "mine", "language": "python"},
            "language_info": {"name": "python", "version": "3.11.99"},
            "widgets": {"state": {}},
        },
    )


def test_two_runs_of_a_notebook_are_the_same(build, tmp_path):
    path = tmp_path / "notebooks" / "01_x.ipynb"
    nbformat.write(notebook("6 * 7"), path)
    build.rewrite_notebooks()
    first = path.read_bytes()
    build.rewrite_notebooks()
    assert path.read_bytes() == first
    written = nbformat.read(path, 4)
    assert set(written.metadata) == {"kernelspec", "language_info"}
    assert "3.11.99" not in first.decode()
    assert written.cells[0].metadata == {}
    assert written.cells[0].outputs[0].data == {"text/plain": "42"}


def test_a_failing_notebook_is_named_in_one_line_and_left_alone(build, tmp_path, capsys):
    path = tmp_path / "notebooks" / "01_x.ipynb"
    nbformat.write(notebook("x = 0", "1 / x"), path)
    before = path.read_bytes()
    with pytest.raises(build.BuildError) as error:
        build.rewrite_notebooks()
    message = str(error.value)
    assert message.startswith("notebooks/01_x.ipynb, cell [2]: ZeroDivisionError: division by zero")
    assert "\n" not in message
    assert path.read_bytes() == before
    assert (tmp_path / "_build" / "run" / "01_x.ipynb").is_file()


def test_notebooks_run_again_only_if_something_changed(build, tmp_path, monkeypatch):
    monkeypatch.setattr(build, "interactive_parts", lambda code: {})
    monkeypatch.setattr(build, "stage", lambda executed, made: None)
    monkeypatch.setattr(build, "build_pages", lambda: None)
    ran = []
    monkeypatch.setattr(build, "run", lambda path: ran.append(path.name) or nbformat.read(path, 4))
    (tmp_path / "lrc").mkdir()
    (tmp_path / "constraints.txt").write_text("numpy==1\n")
    path = tmp_path / "notebooks" / "01_x.ipynb"
    book = notebook("x = 0")
    nbformat.write(book, path)
    for change in (
        lambda: None,
        lambda: None,  # nothing
        lambda: book.cells[0].outputs.append(nbformat.v4.new_output("stream", text="?")),  # no code
        lambda: book.cells[0].update(source="x = 1"),
        lambda: (tmp_path / "lrc" / "srp.py").write_text("# new"),
        lambda: (tmp_path / "constraints.txt").write_text("numpy==2\n"),
        lambda: monkeypatch.setenv("LRC_TRACES", "elsewhere"),
    ):
        change()
        nbformat.write(book, path)
        build.book()
    assert len(ran) == 5


def test_a_notebook_without_its_public_traces_keeps_its_outputs(
    build, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(build, "interactive_parts", lambda code: {})
    monkeypatch.setattr(build, "stage", lambda executed, made: None)
    monkeypatch.setattr(build, "build_pages", lambda: None)
    here = []
    monkeypatch.setattr(build.public_traces, "is_here", lambda name: name in here)
    (tmp_path / "constraints.txt").write_text("")
    path = tmp_path / "notebooks" / "01_x.ipynb"
    book = notebook("6 * 7")
    book.metadata["lrc"] = {"public_traces": ["phone-qwen", "gpt-oss-20b"]}
    book.cells[0].outputs = [nbformat.v4.new_output("stream", text="as committed")]
    nbformat.write(book, path)
    before = path.read_bytes()
    here.append("phone-qwen")
    build.book()
    build.rewrite_notebooks()
    told = capsys.readouterr().out.splitlines()
    assert len(told) == 2
    assert "01_x.ipynb  not run, committed outputs used" in told[0]
    assert "(gpt-oss-20b)" in told[0]
    assert path.read_bytes() == before
    executed = tmp_path / "_build" / "executed" / "01_x.ipynb"
    assert executed.read_bytes() == before
    here.append("gpt-oss-20b")
    build.book()
    assert nbformat.read(executed, 4).cells[0].outputs[0].data == {"text/plain": "42"}
    assert path.read_bytes() == before
    assert nbformat.read(executed, 4).metadata["lrc"] == book.metadata["lrc"]


def test_interactive_pages_are_computed_again_only_if_something_changed(build, monkeypatch):
    written = []

    def write(folder):
        written.append(folder)
        (folder / "data.js").write_text("x")
        return {Path("book/_static/data.js"): folder / "data.js"}

    monkeypatch.setitem(sys.modules, "interactive", types.SimpleNamespace(write=write))
    first = build.interactive_parts(b"code")
    assert build.interactive_parts(b"code") == first
    assert len(written) == 1
    assert build.interactive_parts(b"other code") == first
    assert len(written) == 2


def test_charts_describe_themselves_to_the_page(build):
    book = notebook("chart", "chart with a text of its author")
    for cell in book.cells:
        metadata = {"image/png": {"alt": "made by the chart", "width": 720}}
        data = {"image/png": "", "text/plain": "model srp"}
        cell.outputs = [nbformat.v4.new_output("display_data", data=data, metadata=metadata)]
    book.cells[0].metadata["mystnb"] = {"figure": {"caption": "A caption."}}
    book.cells[1].metadata["mystnb"] = {"image": {"alt": "better"}}
    build._with_alt_texts(book)
    assert book.cells[0].metadata["mystnb"] == {
        "figure": {"caption": "A caption."},
        "image": {"alt": "made by the chart"},
    }
    assert book.cells[1].metadata["mystnb"] == {"image": {"alt": "better"}}


@pytest.mark.parametrize(
    ("page", "offline"),
    [
        ('<script src="../_static/mathjax/tex-chtml.js"></script>', True),
        ('<a href="https://arxiv.org/abs/2505.16056">paper</a>', True),
        ('<script defer src="https://cdn.example/mathjax.js"></script>', False),
        ('<link rel="stylesheet" href="//fonts.example/x.css"/>', False),
        ('<img alt="" src="http://example.org/x.png"/>', False),
    ],
)
def test_pages_that_need_the_network_are_refused(build, tmp_path, page, offline):
    (tmp_path / "index.html").write_text(f"<html>{page}</html>")
    if offline:
        build.check_offline(tmp_path)
    else:
        with pytest.raises(build.BuildError, match=r"index\.html needs the network: <"):
            build.check_offline(tmp_path)
