"""What newcomers meet first names only commands and files that exist."""

import re
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
TARGETS = set(re.findall(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.M)[0].split())
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


def _steps(path):
    for job in yaml.safe_load(path.read_text())["jobs"].values():
        yield from job["steps"]


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_workflows_call_make_targets_that_exist(path):
    called = [step["run"] for step in _steps(path) if step.get("run", "").startswith("make")]
    assert called
    for command in called:
        assert command.split()[-1] in TARGETS


def test_the_workflow_checks_what_a_contributor_is_asked_for():
    called = " ".join(step.get("run", "") for step in _steps(ROOT / ".github/workflows/check.yml"))
    ours = re.findall(r"^make (\S+)", (ROOT / ".ci" / "run").read_text(), re.M)
    assert ours
    for target in ours:
        assert f" {target}" in called


def test_documents_name_make_targets_that_exist():
    named = set()
    command = re.compile(r"(?:`|^|RUN )make (?:[A-Z]+=\S+ )?([a-z-]+)", re.M)
    for path in [*ROOT.glob("*.md"), *(ROOT / ".github").rglob("*.md"), ROOT / "Dockerfile"]:
        named |= set(command.findall(path.read_text()))
    assert named
    assert named <= TARGETS


def test_commit_hooks_run_what_is_pinned_here():
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())
    for hook in [hook for repo in config["repos"] for hook in repo["hooks"]]:
        assert hook["entry"].startswith(".venv/bin/python -m ")
        assert all((ROOT / word).exists() for word in hook["entry"].split() if "tests/" in word)


def test_the_citation_file_cites_what_the_readme_does():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    readme = (ROOT / "README.md").read_text()
    assert citation["preferred-citation"]["title"] in readme
    for author in citation["preferred-citation"]["authors"]:
        assert f"{author['family-names']}, {author['given-names']}" in readme
    version = re.search(r'^version = "(.*)"', (ROOT / "pyproject.toml").read_text(), re.M)[1]
    assert str(citation["version"]) == version
    assert f"## {version}" in (ROOT / "CHANGELOG.md").read_text()
