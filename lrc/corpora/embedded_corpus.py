"""A corpus that needs no network and ships no text.

It is read from the Python packages that this project installs anyway (source, headers,
documentation, translations, licences), plus mathematics generated from a seed. The same pinned
packages give the same text everywhere, but for a few Python sources that newer versions of Python
print differently.
"""

from __future__ import annotations

import ast
import hashlib
import re
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import TypeGuard

import numpy as np

from lrc.corpora.packing import CorpusError

DOMAINS = (
    "python",
    "cpp",
    "javascript",
    "documentation",
    "readme",
    "licence",
    "translation",
    "mathematics",
)
"""Domains of the embedded corpus."""

_DOMAIN_CHARACTERS = 3_000_000  # Per domain and split: more than any toy run reads.
_DOCUMENT_CHARACTERS = 60_000  # A single huge file must not dominate its domain.
_HELD_OUT_PERCENT = {"licence": 15, "javascript": 12}  # Small domains need a larger share.
_HELD_OUT_PERCENT_DEFAULT = 8

_Documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef

Wanted = Callable[[str], bool]  # Says of a document's key whether its text is wanted.


def embedded(split: str = "train", domains: Iterable[str] = DOMAINS) -> dict[str, list[str]]:
    """Return the documents of the embedded corpus.

    Parameters
    ----------
    split : {"train", "held-out"}
        Whole files are held out by a hash of their name; catalogues of translations, where a
        file is a language, are held out by piece. Licences repeat each other's clauses, so
        held-out licences are new documents but not new text.
    domains : iterable of str
        Any of `DOMAINS`.

    Returns
    -------
    dict of str to list of str
        Documents by domain, in an order that depends only on the installed packages.

    Raises
    ------
    CorpusError
        If a domain or split is unknown.
    """
    domains = tuple(domains)
    for domain in domains:
        check_domain(domain, split)
    return {domain: list(read_domain(domain, split)) for domain in domains}


def check_domain(domain: str, split: str) -> None:
    """Refuse a domain or split that the embedded corpus has not."""
    if split not in ("train", "held-out"):
        raise CorpusError(f"split {split!r} is unknown: use 'train' or 'held-out'")
    if domain not in DOMAINS:
        raise CorpusError(
            f"the embedded corpus has no domain {domain!r}: choose from {', '.join(DOMAINS)}"
        )


def read_domain(domain: str, split: str) -> Iterator[str]:
    """Yield the documents of one domain."""
    if domain == "mathematics":
        yield from _mathematics(seed=1 if split == "train" else 2)
        return
    held_out_percent = _HELD_OUT_PERCENT.get(domain, _HELD_OUT_PERCENT_DEFAULT)

    def wanted(key: str) -> bool:
        return (_hash(key) % 100 < held_out_percent) == (split == "held-out")

    characters = 0
    for text in _SOURCES[domain](wanted):
        yield text[:_DOCUMENT_CHARACTERS]
        characters += min(len(text), _DOCUMENT_CHARACTERS)
        if characters > _DOMAIN_CHARACTERS:
            return


def _hash(key: str) -> int:
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big")


@lru_cache(maxsize=1)
def _distributions() -> tuple[metadata.Distribution, ...]:
    """Return those packages of a fixed list that are installed.

    The list, in ``data/corpus_packages.txt``, leaves out what differs from platform to platform;
    a package installed later does not change the corpus.
    """
    listed = set((Path(__file__).parents[1] / "data" / "corpus_packages.txt").read_text().split())
    found = {}
    for distribution in metadata.distributions():
        name = (distribution.metadata["Name"] or "").lower()
        if name in listed:
            found.setdefault(name, distribution)
    return tuple(found[name] for name in sorted(found))


def _files(packages: tuple[str, ...], suffixes: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    """Yield (name, text) of installed files, in an order that mixes the packages.

    Of files with the same text only the first counts: the others could fall into the other split.
    """
    names = {package.lower() for package in packages}
    entries = []
    for distribution in _distributions():
        if names and distribution.metadata["Name"].lower() not in names:
            continue
        for file in distribution.files or ():
            if file.suffix in suffixes:
                entries.append((str(file), Path(str(distribution.locate_file(file)))))
    seen = set()
    for key, path in sorted(set(entries), key=lambda entry: _hash(entry[0])):
        text = _text(path)
        digest = hashlib.sha256("".join(text.split()).encode()).digest()
        if digest not in seen:
            seen.add(digest)
            yield key, text


def _text(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except (OSError, UnicodeDecodeError):
        return ""


def _python(wanted: Wanted) -> Iterator[str]:
    packages = ("networkx", "matplotlib", "sphinx", "datasets", "accelerate")
    for tree in _modules(packages, wanted):
        for node in ast.walk(tree):
            # Documentation strings are another domain.
            if _has_docstring(node):
                node.body = node.body[1:] or [ast.Pass()]
        yield ast.unparse(tree)


def _documentation(wanted: Wanted) -> Iterator[str]:
    for tree in _modules(("numpy", "scipy", "pandas"), wanted):
        strings = [ast.get_docstring(node) for node in ast.walk(tree) if _has_docstring(node)]
        text = "\n\n".join(string for string in strings if string and len(string) > 200)
        if text:
            yield text


def _modules(packages: tuple[str, ...], wanted: Wanted) -> Iterator[ast.Module]:
    for key, source in _files(packages, (".py",)):
        if "test" in key or not wanted(key):
            continue
        if 500 < len(source) < 400_000:
            try:
                yield ast.parse(source)
            except SyntaxError:
                continue


def _has_docstring(node: ast.AST) -> TypeGuard[_Documented]:
    return isinstance(node, _Documented) and ast.get_docstring(node, clean=False) is not None


def _cpp(wanted: Wanted) -> Iterator[str]:
    seen = set()
    for key, source in _files(("pyarrow", "pybind11", "numpy", "scipy"), (".h", ".hpp", ".c")):
        # Most headers open with the same licence, which is another domain.
        text = re.sub(r"\A\s*(?:/\*.*?\*/|(?://[^\n]*\n)+)", "", source, flags=re.S).strip()
        if len(text) > 500 and text not in seen:
            seen.add(text)
            if wanted(key):
                yield text


def _javascript(wanted: Wanted) -> Iterator[str]:
    for key, text in _files((), (".js",)):
        longest = max(map(len, text.splitlines()), default=0)
        if len(text) > 500 and longest < 1_000 and wanted(key):  # Minified: very long lines.
            yield text


def _readme(wanted: Wanted) -> Iterator[str]:
    for distribution in _distributions():
        text = distribution.metadata.get_payload()  # type: ignore[attr-defined]  # an email message
        wanted_name = wanted(distribution.metadata["Name"].lower())
        if isinstance(text, str) and len(text) > 300 and wanted_name:
            yield text


def _licence(wanted: Wanted) -> Iterator[str]:
    pattern = re.compile(r"(licen[cs]e|copying|notice)", re.I)
    seen = set()
    entries = []
    for distribution in _distributions():
        for file in distribution.files or ():
            if pattern.search(file.name) and file.suffix not in (".py", ".pyc", ".h", ".json"):
                entries.append((str(file), Path(str(distribution.locate_file(file)))))
    for key, path in sorted(entries, key=lambda entry: _hash(entry[0])):
        text = _text(path)
        words = " ".join(text.split())
        if len(words) > 300 and words not in seen:
            seen.add(words)
            if wanted(key):
                yield text


def _translation(wanted: Wanted) -> Iterator[str]:
    string = re.compile(r'^msgstr(?:\[\d\])? ((?:"(?:[^"\\]|\\.)*"\s*)+)', re.M)
    pieces = []
    for key, catalogue in _files((), (".po",)):
        messages = []
        for match in string.finditer(catalogue):
            text = "".join(re.findall(r'"((?:[^"\\]|\\.)*)"', match[1]))
            if text and not text.startswith("Project-Id-Version"):
                messages.append(text.replace('\\"', '"').replace("\\n", "\n"))
        for start in range(0, len(messages), 40):
            text = "\n".join(messages[start : start + 40])
            if len(text) > 300:
                pieces.append((f"{key}#{start}", text))
    for key, text in sorted(pieces, key=lambda piece: _hash(piece[0])):
        if wanted(key):
            yield text


def _mathematics(seed: int) -> Iterator[str]:
    """Yield worked exercises, 20 a document, all answers right."""
    random = np.random.default_rng(seed)
    characters = 0
    while characters < _DOMAIN_CHARACTERS:
        kinds = random.integers(len(_EXERCISES), size=20)
        document = "\n".join(_EXERCISES[kind](random) for kind in kinds)
        characters += len(document)
        yield document


def _product(random: np.random.Generator) -> str:
    a, b = (int(x) for x in random.integers(11, 100, 2))
    tens, ones = b // 10 * 10, b % 10
    return (
        f"Compute {a} * {b}. {a} * {b} = {a} * {tens} + {a} * {ones} "
        f"= {a * tens} + {a * ones} = {a * b}."
    )


def _linear(random: np.random.Generator) -> str:
    a, x, b = (
        int(random.integers(2, 13)),
        int(random.integers(-20, 21)),
        int(random.integers(1, 50)),
    )
    return f"Solve {a}x + {b} = {a * x + b}. Subtract {b}: {a}x = {a * x}. Divide by {a}: x = {x}."


def _divisor(random: np.random.Generator) -> str:
    a, b = (int(x) for x in random.integers(12, 400, 2))
    text, p, q = f"Find gcd({a}, {b}). ", a, b
    while q:
        text += f"{p} = {p // q} * {q} + {p % q}; "
        p, q = q, p % q
    return text + f"so gcd({a}, {b}) = {p}."


def _derivative(random: np.random.Generator) -> str:
    c = [int(x) for x in random.integers(1, 10, 4)]
    return (
        f"Let f(x) = {c[3]}x^3 + {c[2]}x^2 + {c[1]}x + {c[0]}. "
        f"Then f'(x) = {3 * c[3]}x^2 + {2 * c[2]}x + {c[1]} and f'(1) = "
        f"{3 * c[3] + 2 * c[2] + c[1]}."
    )


def _series(random: np.random.Generator) -> str:
    first, step, count = (int(x) for x in random.integers(1, 12, 3))
    count += 2
    terms = [first + step * i for i in range(count)]
    return f"Sum the series {' + '.join(map(str, terms))}. The sum is {sum(terms)}."


_EXERCISES = (_product, _linear, _divisor, _derivative, _series)

_SOURCES: dict[str, Callable[[Wanted], Iterator[str]]] = {
    "python": _python,
    "cpp": _cpp,
    "javascript": _javascript,
    "documentation": _documentation,
    "readme": _readme,
    "licence": _licence,
    "translation": _translation,
}
