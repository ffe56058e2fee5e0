"""What the pages say is there, is there."""

import re
from pathlib import Path

import pytest

from pipeline.cli import app

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]


def test_the_readme_has_a_line_for_every_command_and_no_other():
    names = (command.callback.__name__ for command in app.registered_commands if not command.hidden)
    commands = {name.replace("_", "-") for name in names}
    commands |= {group.name for group in app.registered_groups}
    assert set(re.findall(r"^\| `clinseg ([\w-]+)", README, re.MULTILINE)) == commands


def test_the_readmes_tree_is_the_real_tree():
    told = set(re.findall(r"^([\w.]+)/  ", README, re.MULTILINE))
    left_out = {".git", ".venv", "demo"} | {p.name for p in ROOT.glob(".*_cache")} | {".hypothesis"}
    real = {p.name for p in ROOT.iterdir() if p.is_dir()} - left_out
    assert told == {name for name in real if not name.endswith(".egg-info")}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), target


def test_the_architecture_names_every_room():
    page = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    rooms = {path.stem for path in (ROOT / "pipeline").iterdir() if not path.name.startswith("__")}
    assert {room for room in rooms - {"py"} if not re.search(rf"\b{room}\b", page)} == set()


def test_every_exit_code_is_told():
    from pipeline.errors import ExitCode

    sentence = README[README.index("A command ends with") :].split("\n\n")[0]
    assert {int(number) for number in re.findall(r"\b\d+\b", sentence)} == set(ExitCode)
