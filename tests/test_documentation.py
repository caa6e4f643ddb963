"""The pages a reader sees: links lead somewhere, commands exist, the example runs."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from convsmith import cli

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *ROOT.glob("examples/**/*.md")])
README = (ROOT / "README.md").read_text()


def name_of(page: Path) -> str:
    """The page's path in the checkout."""
    return page.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_to_files(page: Path) -> None:
    targets = re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text())
    local = [target for target in targets if "://" not in target]
    assert [target for target in local if not (page.parent / target).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_commands_and_their_options_exist(
    page: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every line or code span that begins with ``convsmith``."""
    commands = re.findall(r"(?:^    |`)convsmith ([a-z][^`#\n]*)", page.read_text(), re.MULTILINE)
    for command in commands:
        words = command.split()
        name = words[:2] if words[0] == "cache" and len(words) > 1 else words[:1]
        monkeypatch.setenv("COLUMNS", "200")
        monkeypatch.setattr(sys, "argv", ["convsmith", *name, "--help"])
        assert cli.main() == 0, f"convsmith {command}"
        help_text = capsys.readouterr().out
        options = [word for word in words if word.startswith("-")]
        assert [option for option in options if option not in help_text] == [], command


@pytest.mark.gpu
def test_the_example_of_the_readme_runs() -> None:
    examples = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len(examples) == 1
    exec(examples[0], {})


def test_the_readme_names_targets_that_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"\bmake ([a-z-]+)", README))
    assert targets >= {"demo", "test"}
    assert [name for name in targets if not re.search(rf"^{name}:", makefile, re.MULTILINE)] == []
