"""The repository keeps its promises: notebooks that can be compared, pins, pages, no surprises."""

import ast
import re
import subprocess
import tokenize
from pathlib import Path
from statistics import median

import nbformat
import pytest
import yaml

import lrc

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
# Paths into one person's machine.
PLACES = re.compile(r"(?<![\w.:/-])/(?:home|Users|root|work)/\w+")
TAGS = {
    "parameters",
    "hide-input",
    "hide-cell",
    "hide-output",
    "remove-input",
    "remove-cell",
    "nbval-ignore-output",
}


def tracked(*patterns: str) -> list[Path]:
    """Files that are, or are about to be, committed."""
    command = ["git", "ls-files", "-co", "--exclude-standard", "-z", "--", *patterns]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("not a git checkout")
    return [ROOT / name for name in listed.stdout.split("\0") if (ROOT / name).is_file()]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
class TestNotebook:
    @pytest.fixture
    def book(self, path):
        book = nbformat.read(path, 4)
        nbformat.validate(book)
        return book

    @pytest.fixture
    def code(self, book):
        return [cell for cell in book.cells if cell.cell_type == "code"]

    @pytest.fixture
    def outputs(self, code):
        return [output for cell in code for output in cell.outputs]

    def test_was_run_once_from_top_to_bottom(self, code):
        assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))

    def test_has_neither_errors_nor_warnings(self, outputs):
        assert not [output.evalue for output in outputs if output.output_type == "error"]
        assert not [output.text for output in outputs if output.get("name") == "stderr"]

    def test_metadata_are_the_same_on_every_machine(self, book):
        assert set(book.metadata) <= {"kernelspec", "language_info", "mystnb", "lrc"}
        assert book.metadata.kernelspec.name == "python3"
        assert set(book.metadata.language_info) == {"name", "pygments_lexer"}
        for cell in book.cells:
            assert set(cell.metadata) <= {"tags", "mystnb"}, "run `make notebooks`"
            assert set(cell.metadata.get("tags", [])) <= TAGS

    def test_parameters(self, code):
        """One cell of `name: type = default  # help` lines, checked right below."""
        tagged = [n for n, cell in enumerate(code) if "parameters" in cell.metadata.get("tags", [])]
        assert len(tagged) == 1
        source = code[tagged[0]].source
        assert all(
            isinstance(line, ast.AnnAssign) and line.value for line in ast.parse(source).body
        )
        helps = [line.partition("  # ")[2] for line in source.splitlines()]
        assert all(helps), "a parameter lacks its help"
        assert not any("=" in told for told in helps), "papermill cannot read a help with '='"
        assert "lrc.check_parameters(" in code[tagged[0] + 1].source

    def test_names_the_public_traces_that_it_needs(self, book, code):
        """A notebook that takes them by default is marked, and ends politely without them."""
        parameters = next(c.source for c in code if "parameters" in c.metadata.get("tags", []))
        needed = book.metadata.get("lrc", {}).get("public_traces", [])
        assert set(needed) <= set(lrc.public_traces.names())
        asked = any("public_traces.require(" in cell.source for cell in code)
        assert bool(needed) == asked == ("download: bool = False" in parameters)

    def test_needs_no_network_to_be_read(self, outputs):
        for output in outputs:
            data = output.get("data", {})
            assert "application/vnd.jupyter.widget-view+json" not in data
            for kind in ("text/html", "application/javascript"):
                assert not re.search(
                    r"(src|href)\s*=\s*.(https?:)?//|import\s*\(?.http", data.get(kind, "")
                )

    def test_shows_nobodys_folders(self, path):
        assert not PLACES.findall(path.read_text(encoding="utf-8"))

    def test_is_short(self, code):
        lines = [len(cell.source.splitlines()) for cell in code]
        assert len(code) <= 15
        assert median(lines) <= 6
        assert max(lines) <= 20
        defined = sum(
            isinstance(node, ast.FunctionDef | ast.ClassDef)
            for cell in code
            for node in ast.walk(ast.parse(cell.source))
        )
        assert defined <= 2

    def test_asks_and_answers(self, book):
        first, *_ = book.cells
        prose = [cell.source for cell in book.cells if cell.cell_type == "markdown"]
        assert first.cell_type == "markdown"
        assert re.match(r"\([a-z0-9-]+\)=\n# \S", first.source), "needs a target and a title"
        assert "?" in first.source, "a notebook answers one question; ask it at the top"
        assert any("## What this shows" in text for text in prose)

    def test_outputs_guard_numbers(self, code):
        for cell in code:
            assert not cell.source.rstrip().endswith(";"), "nbval does not understand a last ;"
            if "nbval-ignore-output" in cell.metadata.get("tags", []):
                assert cell.source.startswith("# "), "say why this output cannot be compared"
            for output in cell.outputs:
                text = output.get("data", {}).get("text/plain", output.get("text", ""))
                assert not re.search(r"\d\.\d{7,}", text), "round to 4 decimals"
                if "image/png" in output.get("data", {}):
                    assert not text.startswith("<"), "draw with lrc.charts: its text is the table"

    def test_figures_can_be_cited_and_heard(self, code):
        for cell in code:
            pictures = [o for o in cell.outputs if "image/png" in o.get("data", {})]
            if pictures:
                options = cell.metadata.get("mystnb", {})
                assert options.get("figure", {}).get("caption"), "give the figure a caption"
                assert options.get("figure", {}).get("name"), "give the figure a name"
                assert len(pictures) == 1, "one figure a cell"
                told = options.get("image", {}).get("alt")
                assert told or pictures[0].metadata["image/png"].get("alt")


def test_every_page_is_in_the_table_of_contents():
    from sphinx_external_toc.parsing import parse_toc_yaml

    entries = [
        str(item)
        for part in parse_toc_yaml(ROOT / "_toc.yml").values()
        for tree in part.subtrees
        for item in tree.items
    ]
    pages = [path for path in (ROOT / "book").glob("*.md") if path.stem != "intro"] + NOTEBOOKS
    for page in pages:
        name = page.relative_to(ROOT).with_suffix("")
        assert any(name.match(entry) for entry in entries), f"{name} is not in _toc.yml"


def test_every_public_name_is_in_the_api_reference():
    reference = (ROOT / "book" / "api.md").read_text(encoding="utf-8")
    listed = set(re.findall(r":: (?:lrc\.)?(\w+)$", reference, re.MULTILINE))
    assert set(lrc.__all__) <= listed, "name it in book/api.md"


def test_public_names_exist_and_are_explained():
    for name in lrc.__all__:
        assert getattr(lrc, name).__doc__, name
    for name in lrc._LAZY_MODULES:
        assert getattr(lrc, name).__name__ == f"lrc.{name}"
    assert set(lrc.__all__) | set(lrc._LAZY_MODULES) <= set(dir(lrc))


def test_the_figures_of_a_page_are_under_the_pages_control():
    config = yaml.safe_load((ROOT / "_config.yml").read_text(encoding="utf-8"))
    assert config["execute"]["execute_notebooks"] == "off"
    mathjax = ROOT / "book" / "_static" / config["sphinx"]["config"]["mathjax_path"]
    assert mathjax.is_file()
    assert (mathjax.parent / "LICENSE").is_file()


def pins(name: str) -> dict[str, str]:
    lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
    lines = [line for line in lines if line and not line.startswith(("#", "-"))]
    return {re.sub(r"[-_.]+", "-", p.lower()): v for p, v in (line.split("==") for line in lines)}


def test_requirements_are_pinned_once():
    direct, all_of_them = pins("requirements.txt"), pins("constraints.txt")
    assert direct.items() <= all_of_them.items()
    assert not [name for name in all_of_them if name.startswith(("nvidia", "lrc"))]
    assert not [name for name, version in all_of_them.items() if "+" in version]


def test_requirements_hold_what_the_package_declares():
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    declared = {re.match(r"[\w-]+", line).group().lower() for line in project["dependencies"]}
    assert declared <= set(pins("requirements.txt"))


def calls(tree: ast.AST):
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield (
                ast.unparse(node.func),
                {word.arg: ast.unparse(word.value) for word in node.keywords},
            )


@pytest.mark.parametrize("path", sorted((ROOT / "lrc").rglob("*.py")), ids=lambda p: p.stem)
def test_no_file_that_is_read_can_run_code(path):
    with tokenize.open(path) as source:
        tree = ast.parse(source.read())
    imported = {
        alias.name.split(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in (
            [*node.names, ast.alias(node.module or "")] if hasattr(node, "module") else node.names
        )
    }
    assert not imported & {"pickle", "cPickle", "dill", "cloudpickle", "shelve", "marshal"}
    for function, options in calls(tree):
        assert not function.endswith("read_pickle"), function
        if function == "torch.load":
            assert options.get("weights_only") == "True"
        if function.endswith("np.load"):
            assert options.get("allow_pickle", "False") == "False"


def test_no_file_names_a_machine():
    for path in tracked():
        if "mathjax" not in path.parts:
            found = PLACES.search(path.read_bytes().decode("utf-8", errors="ignore"))
            assert not found, f"{path.relative_to(ROOT)}: {found.group()}"


def test_shipped_data_stay_small():
    sizes = {path: path.stat().st_size for path in tracked("lrc/data")}
    assert sum(sizes.values()) < 30e6
    assert max(sizes.values(), default=0) < 10e6
