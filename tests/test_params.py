"""Parameters of notebooks: checked in a plain namespace, and in kernels as papermill runs them."""

import subprocess
import sys
import types

import nbformat
import pytest

import lrc
from lrc import params

DECLARATION = """\
trace: str = "toy:baseline"  # the trace to study
segment_length: int = 16  # tokens in a window
segment_lengths: tuple[int, ...] = (4, 16)  # several windows
cache_ratio: float = 2.0  # slots over active experts
policy: str = "lru"
limit: int | None = None
verbose: bool = False
"""
CALL = """
lrc.check_parameters(
    segment_length=range(1, 513),
    segment_lengths=lrc.params.at_least(1),
    cache_ratio=lrc.params.between(0.5, 8),
    policy=("lru", "lfu"),
)
"""


def run(given: str) -> dict:
    """Run the cells of a notebook in a fresh namespace, outside IPython."""
    namespace = {"lrc": lrc}
    for cell in (DECLARATION, given, CALL):
        exec(cell, namespace)
    return namespace


def test_defaults_pass():
    run("")


@pytest.mark.parametrize(
    ("given", "name", "value"),
    [
        ("cache_ratio = 2", "cache_ratio", 2.0),
        ("segment_lengths = '4,16,64'", "segment_lengths", (4, 16, 64)),
        ("segment_lengths = '[4, 16]'", "segment_lengths", (4, 16)),
        ("segment_lengths = [8]", "segment_lengths", (8,)),
        ("segment_lengths = 8", "segment_lengths", (8,)),
        ("limit = 3", "limit", 3),
        ("limit = None", "limit", None),
    ],
)
def test_values_from_a_command_line_are_converted(given, name, value):
    result = run(given)[name]
    assert result == value
    assert type(result) is type(value)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("segment_length = '16'", "segment_length must be int, not '16'"),
        ("segment_length = True", "segment_length must be int, not True"),
        ("segment_length = 0", "segment_length must be from 1 to 512, not 0"),
        ("segment_length = 513", "segment_length must be from 1 to 512, not 513"),
        ("segment_lengths = (4, 0)", "segment_lengths must be at least 1, not (4, 0)"),
        ("segment_lengths = ()", "segment_lengths must be at least one value, not ()"),
        ("segment_lengths = 'four'", "segment_lengths must be tuple[int, ...], not 'four'"),
        ("cache_ratio = 9", "cache_ratio must be from 0.5 to 8, not 9"),
        ("cache_ratio = float('nan')", "cache_ratio must be from 0.5 to 8, not nan"),
        ("policy = 'fifo'", "policy must be one of lru, lfu, not 'fifo'"),
        ("trace = 5", "trace must be str (papermill's -r passes text as it is), not 5"),
        ("limit = 'all'", "limit must be int | None, not 'all'"),
        ("verbose = 1", "verbose must be bool, not 1"),
    ],
)
def test_wrong_values_are_named(given, message):
    with pytest.raises(lrc.ParameterError) as error:
        run(given)
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)


def test_every_fault_is_named_at_once():
    with pytest.raises(lrc.ParameterError, match=r"segment_length must .*; policy must "):
        run("segment_length = 0; policy = 'fifo'")


def test_a_rule_without_a_parameter_is_the_authors_fault():
    with pytest.raises(lrc.LrcError, match="rule for 'polisy'"):
        exec(DECLARATION + "lrc.check_parameters(polisy=('lru',))", {"lrc": lrc})


def test_a_notebook_without_parameters_is_the_authors_fault():
    with pytest.raises(lrc.LrcError, match="found no parameters"):
        exec("lrc.check_parameters()", {"lrc": lrc})


def test_the_last_declaration_before_the_call_counts():
    """Jupyter runs cells in any order: what was injected before the latest declaration is gone."""
    cells = [DECLARATION, "# Parameters\nsegment_lenght = 4", "x = 1", DECLARATION, CALL]
    assert params._read_cells(cells, {})[1] == []
    cells = [DECLARATION, "# Parameters\nsegment_lenght = 4", CALL, "x = 1", "%magic", CALL]
    declared, given = params._read_cells(cells, {})
    assert given == ["segment_lenght"]
    assert declared["segment_length"].note == " (default 16): tokens in a window"


def notebook(path, *sources):
    book = nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_code_cell(source) for source in sources],
        metadata={
            "kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}
        },
    )
    book.cells[1].metadata["tags"] = ["parameters"]
    nbformat.write(book, path)


def papermill(path, *options):
    command = [sys.executable, "-m", "papermill", str(path), str(path.with_name("out.ipynb"))]
    return subprocess.run(
        [*command, "--no-progress-bar", *options], capture_output=True, text=True, cwd=path.parent
    )


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    path = tmp_path_factory.mktemp("notebook") / "study.ipynb"
    notebook(path, "import lrc", DECLARATION, CALL, "print(segment_lengths, cache_ratio)")
    return path


def test_papermill_run_with_good_parameters(study):
    run = papermill(study, "-p", "segment_lengths", "4,64", "-p", "cache_ratio", "4")
    assert run.returncode == 0, run.stderr
    cells = nbformat.read(study.with_name("out.ipynb"), 4).cells
    assert cells[-1].outputs[0].text == "(4, 64) 4.0\n"


def test_papermill_run_with_a_misspelt_parameter_fails_in_one_line(study):
    run = papermill(study, "-p", "segment_lenght", "4", "-p", "policy", "fifo")
    assert run.returncode != 0
    last = run.stderr.strip().splitlines()[-1]
    assert last.startswith(
        "ParameterError: there is no parameter 'segment_lenght' (did you mean 'segment_length'? "
        "this notebook takes trace, segment_length,"
    )
    assert last.endswith("policy must be one of lru, lfu, not 'fifo' (default 'lru')")
    # The cell shows that line and no traceback of our own code.
    errors = [
        output
        for cell in nbformat.read(study.with_name("out.ipynb"), 4).cells
        for output in cell.get("outputs", [])
        if output.output_type == "error"
    ]
    assert [output.traceback for output in errors] == [[last]]


def test_nbval_knows_the_declared_types(study, tmp_path):
    """nbval leaves no history in its kernel: the types come from the annotations."""
    wrong = DECLARATION.replace("int = 16", "int = 'sixteen'")
    path = tmp_path / "wrong.ipynb"
    notebook(path, "import lrc", wrong, CALL)
    command = [sys.executable, "-m", "pytest", "-c", "/dev/null", "--rootdir", str(tmp_path)]
    good, bad = (
        subprocess.run(
            [*command, "--nbval-lax", "--nbval-current-env", "-p", "no:cacheprovider", str(book)],
            capture_output=True,
            text=True,
        )
        for book in (study, path)
    )
    assert good.returncode == 0, good.stdout
    assert bad.returncode == 1
    assert "segment_length must be int, not 'sixteen'" in bad.stdout


class TestResolveTrace:
    def test_missing_file(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        with pytest.raises(lrc.ParameterError, match=r"trace: there is no file 'mine\.parquet' in"):
            lrc.resolve_trace("mine.parquet")

    def test_broken_file_is_blamed_on_the_parameter(self, tmp_path):
        (tmp_path / "mine.parquet").write_bytes(b"no parquet")
        with pytest.raises(lrc.ParameterError, match=r"trace: .*mine\.parquet"):
            lrc.resolve_trace(tmp_path / "mine.parquet")

    def test_saved_trace(self, tmp_path):
        trace = lrc.Trace([[[[0, 1]], [[1, 2]]]], 4)
        trace.save(tmp_path / "mine.parquet")
        assert (lrc.resolve_trace(tmp_path / "mine.parquet").experts == trace.experts).all()

    def test_toy_with_and_without_seed(self, monkeypatch):
        asked = []
        toys = types.ModuleType("lrc.toys")
        toys.load_trace = lambda name, seed=0: asked.append((name, seed))
        monkeypatch.setitem(sys.modules, "lrc.toys", toys)
        monkeypatch.setattr(lrc, "toys", toys, raising=False)
        lrc.resolve_trace("toy:baseline")
        lrc.resolve_trace("toy:nolb:2")
        assert asked == [("baseline", 0), ("nolb", 2)]
        with pytest.raises(lrc.ParameterError, match="the seed of 'toy:nolb:x'"):
            lrc.resolve_trace("toy:nolb:x")


class TestResolveCounts:
    def test_none_come_with_a_file(self):
        assert lrc.resolve_counts("", "mine.parquet") is None

    def test_saved_counts(self, tmp_path):
        trace = lrc.Trace([[[[0, 1]], [[1, 2]]]], 4, token_ids=[[5, 6]])
        lrc.token_counts(trace).save(tmp_path / "counts.parquet")
        counts = lrc.resolve_counts(tmp_path / "counts.parquet", "toy:baseline")
        assert counts.table["token_id"].tolist() == [5, 6, 6]

    def test_file_without_counts_is_blamed_on_the_parameter(self, tmp_path):
        lrc.Trace([[[[0, 1]], [[1, 2]]]], 4).save(tmp_path / "mine.parquet")
        for name in ("mine.parquet", "none.parquet"):
            with pytest.raises(lrc.ParameterError, match=rf"^counts: .*{name}"):
                lrc.resolve_counts(tmp_path / name)

    def test_those_of_a_toy_come_with_its_trace(self, monkeypatch):
        asked = []
        toys = types.ModuleType("lrc.toys")
        toys.load_counts = lambda name, seed=0: asked.append((name, seed))
        monkeypatch.setitem(sys.modules, "lrc.toys", toys)
        monkeypatch.setattr(lrc, "toys", toys, raising=False)
        lrc.resolve_counts("", "toy:nolb:2")
        lrc.resolve_counts("toy:baseline", "mine.parquet")
        assert asked == [("nolb", 2), ("baseline", 0)]
        with pytest.raises(lrc.ParameterError, match="counts: the seed of 'toy:nolb:x'"):
            lrc.resolve_counts("", "toy:nolb:x")
