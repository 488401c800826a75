"""Run the notebooks and build the book; `make book` and `make notebooks` call this.

The committed notebooks are only read: a run writes its copies to `_build/executed`, and the book is
built from a copy of its sources, with those notebooks among them, in `_build/src`.
"""

import argparse
import base64
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import papermill
from nbclient.exceptions import DeadKernelError
from papermill.exceptions import PapermillExecutionError, strip_color

from lrc import public_traces

ROOT = Path(__file__).resolve().parent.parent
BUILD = ROOT / "_build"
# What a page of the book can depend on, besides the notebook itself.
SOURCES = ("lrc", "constraints.txt")
# Of the metadata that a run leaves, what a reader of the notebook needs, the same on any machine.
METADATA = {
    "kernelspec": {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"},
    "language_info": {"name": "python", "pygments_lexer": "ipython3"},
}


class BuildError(Exception):
    """The book cannot be built; the message is one line."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["book", "notebooks"])
    what = parser.parse_args().what
    try:
        if what == "book":
            book()
        else:
            rewrite_notebooks()
    except BuildError as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def book() -> None:
    """Run every notebook that has changed, or whose code has, and build the pages."""
    executed = BUILD / "executed"
    executed.mkdir(parents=True, exist_ok=True)
    code = _code_digest()
    for source in notebooks():
        target, key = executed / source.name, executed / f"{source.stem}.key"
        if _lacks_traces(source):
            key.unlink(missing_ok=True)
            shutil.copyfile(source, target)
            continue
        digest = hashlib.sha256(code + _cells(source)).hexdigest()
        if target.exists() and key.exists() and key.read_text() == digest:
            print(f"notebooks/{source.name}  unchanged", flush=True)
            continue
        key.unlink(missing_ok=True)
        _write(run(source), target)
        key.write_text(digest)
    stage(executed, interactive_parts(code))
    build_pages()


def rewrite_notebooks() -> None:
    """Run every notebook and put the new outputs in place of the committed ones."""
    for source in notebooks():
        if not _lacks_traces(source):
            _write(run(source), source)


def notebooks() -> list[Path]:
    return sorted((ROOT / "notebooks").glob("*.ipynb"))


def _lacks_traces(source: Path) -> bool:
    """Whether a notebook needs public traces that are not here; says so. None is ever fetched."""
    missing = public_traces.missing_for(source)
    if missing:
        print(
            f"notebooks/{source.name}  not run, committed outputs used: it needs public traces "
            f"that are not on this machine ({', '.join(missing)})",
            flush=True,
        )
    return bool(missing)


def run(source: Path) -> nbformat.NotebookNode:
    """Run one notebook with its default parameters, without a trace of when and where."""
    print(f"notebooks/{source.name}", end="  ", flush=True)
    start = time.monotonic()
    folder = BUILD / "run"
    folder.mkdir(parents=True, exist_ok=True)
    failed = folder / source.name
    try:
        notebook = papermill.execute_notebook(
            source,
            failed,
            kernel_name="python3",
            cwd=folder,
            progress_bar=False,
            request_save_on_cell_execute=False,
            record_timing=False,
        )
    except PapermillExecutionError as error:
        message = " ".join(f"{error.ename}: {error.evalue}".split())
        print("failed")
        raise BuildError(
            f"notebooks/{source.name}, cell [{error.exec_count}]: {message} "
            f"(traceback in {failed.relative_to(ROOT)})"
        ) from None
    except DeadKernelError:
        print("failed")
        raise BuildError(f"notebooks/{source.name}: its kernel died (out of memory?)") from None
    failed.unlink()
    print(f"{time.monotonic() - start:.1f} s", flush=True)
    return clean(notebook)


def clean(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Drop what differs from run to run and from machine to machine."""
    for name in ("papermill", "widgets"):
        notebook.metadata.pop(name, None)
    notebook.metadata.update(METADATA)
    for cell in notebook.cells:
        for name in ("papermill", "execution"):
            cell.metadata.pop(name, None)
        if not cell.metadata.get("tags", True):
            del cell.metadata["tags"]
    return notebook


def interactive_parts(code: bytes) -> dict[Path, Path]:
    """Write what the interactive pages show, unless its code has not changed: files by place."""
    folder = BUILD / "interactive"
    folder.mkdir(parents=True, exist_ok=True)
    script = Path(__file__).with_name("interactive.py")
    digest = hashlib.sha256(code + script.read_bytes()).hexdigest()
    listed = folder / "listed.json"
    if listed.exists():
        known = json.loads(listed.read_text())
        if known["digest"] == digest:
            return {Path(place): folder / name for place, name in known["files"].items()}
    print("interactive pages", end="  ", flush=True)
    start = time.monotonic()
    import interactive  # loads the package, which is for nothing where nothing changed

    written = interactive.write(folder)
    files = {str(place): path.name for place, path in written.items()}
    listed.write_text(json.dumps({"digest": digest, "files": files}))
    print(f"{time.monotonic() - start:.1f} s", flush=True)
    return written


def stage(executed: Path, made: dict[Path, Path]) -> None:
    """Bring the book's sources in `_build/src` up to date; what did not change keeps its date.

    `executed` holds the notebooks; `made` are files that were made for the book, by their place.
    """
    source = BUILD / "src"
    wanted = {Path(name): ROOT / name for name in ("_config.yml", "_toc.yml")} | made
    for path in sorted((ROOT / "book").rglob("*")):
        if path.is_file() and path.suffix not in (".py", ".pyc"):
            wanted[path.relative_to(ROOT)] = path
    for name in [path.name for path in notebooks()]:
        described = BUILD / "run" / name
        notebook = nbformat.read(executed / name, 4)
        wanted.update(_figures(notebook))
        _write(_with_alt_texts(notebook), described)
        wanted[Path("notebooks") / name] = described
    for name, path in wanted.items():
        target = source / name
        if not target.exists() or target.read_bytes() != path.read_bytes():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
    for path in source.rglob("*"):
        if path.is_file() and path.relative_to(source) not in wanted:
            path.unlink()


def build_pages() -> None:
    print("pages", end="  ", flush=True)
    start = time.monotonic()
    command = [sys.executable, "-c", "from jupyter_book.cli.main import main; main()"]
    options = ["--path-output", str(ROOT), "-W", "--keep-going", "-n", "-q"]
    done = subprocess.run(
        [*command, "build", str(BUILD / "src"), *options],
        cwd=BUILD,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    if done.returncode:
        # Sphinx remembers the pages it has read, and would not warn of them a second time.
        shutil.rmtree(BUILD / ".doctrees", ignore_errors=True)
        print("failed\n" + strip_color(done.stdout))
        raise BuildError("the book has warnings or errors, see above")
    check_offline(BUILD / "html")
    print(f"{time.monotonic() - start:.1f} s\nThe book is in _build/html/index.html", flush=True)


def check_offline(pages: Path) -> None:
    """Refuse pages that would ask another server for a part of theirs."""
    part = re.compile(
        r"<(?:script|img|iframe|source|link)\b[^>]*(?:src|href)=.(?:https?:)?//[^>]*>"
    )
    for page in sorted(pages.rglob("*.html")):
        if found := part.search(page.read_text(encoding="utf-8")):
            print("failed")
            raise BuildError(f"{page.relative_to(ROOT)} needs the network: {found.group()[:200]}")


def _figures(notebook: nbformat.NotebookNode) -> dict[Path, Path]:
    """Write a notebook's named figures to files, so that chapters can show them: their places."""
    written = {}
    for cell in notebook.cells:
        name = cell.metadata.get("mystnb", {}).get("figure", {}).get("name")
        pictures = [output.get("data", {}).get("image/png") for output in cell.get("outputs", [])]
        if name and any(pictures):
            path = BUILD / "run" / f"{name}.png"
            path.write_bytes(base64.b64decode(next(filter(None, pictures))))
            written[Path("book/figures") / path.name] = path
    return written


def _with_alt_texts(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Hand the charts' own descriptions to the page: myst-nb reads them from the cell only."""
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            alt = output.get("metadata", {}).get("image/png", {}).get("alt")
            options = cell.metadata.get("mystnb", {})
            if alt and "alt" not in options.get("image", {}):
                cell.metadata["mystnb"] = {
                    **options,
                    "image": {"alt": alt, **options.get("image", {})},
                }
    return notebook


def _code_digest() -> bytes:
    """Digest what all notebooks depend on: the package, its data, its settings."""
    digest = hashlib.sha256()
    for name in SOURCES:
        path = ROOT / name
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            if file.is_file() and "__pycache__" not in file.parts:
                digest.update(f"{file.relative_to(ROOT)}\0".encode() + file.read_bytes())
    for name, value in sorted(os.environ.items()):
        if name.startswith("LRC_"):
            digest.update(f"{name}={value}\0".encode())
    return digest.digest()


def _cells(path: Path) -> bytes:
    """Return what the author wrote into a notebook; its outputs do not matter."""
    notebook = nbformat.read(path, 4)
    return repr([(cell.cell_type, cell.source, cell.metadata) for cell in notebook.cells]).encode()


def _write(notebook: nbformat.NotebookNode, path: Path) -> None:
    part = path.with_name(path.name + ".part")
    nbformat.write(notebook, part)
    os.replace(part, path)


if __name__ == "__main__":
    sys.exit(main())
