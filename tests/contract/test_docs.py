"""The site builds without a warning and asks nothing of others; links hold, and generated pages are current."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from offramp_client.cli import app as client
from offramp_server.config import build_parser
from offramp_training.__main__ import app as training

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
TEXTS = sorted([*PAGES, *ROOT.glob("*.md")])
DECISIONS = sorted((DOCS / "adr").glob("0*.md"))


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built strictly from this tree."""
    root = tmp_path_factory.mktemp("site")
    shutil.copy(ROOT / "mkdocs.yml", root)
    shutil.copytree(DOCS, root / "docs")
    for package in ("client", "model_store", "proto"):
        (root / package).symlink_to(ROOT / package)
    command = [sys.executable, "-m", "zensical", "build", "--strict", "--config-file", str(root / "mkdocs.yml")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=root, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return root / "site"


def test_every_page_is_built(site: Path) -> None:
    for page in PAGES:
        built = page.relative_to(DOCS).with_suffix(".html")
        assert (site / (built.with_name("index.html") if built.name == "README.html" else built)).is_file()


def test_the_library_reference_is_filled_from_the_docstrings(site: Path) -> None:
    for page, names in {"client": ("offramp_client.Client.stream",), "model": ("offramp_model.latent.posterior",)}.items():
        html = (site / "reference" / f"{page}.html").read_text()
        assert all(f'id="{name}"' in html for name in names)
        assert ":::" not in html.replace("<code>:::</code>", "")


def test_a_reader_of_the_site_is_known_to_nobody_else(site: Path) -> None:
    fetched = re.compile(
        r"<(?:script|img|iframe|source)[^>]+src=[\"']?(?:https?:)?//|<link[^>]+rel=[\"']?(?:stylesheet|preconnect|icon)[^>]+//"
    )
    for page in site.rglob("*.html"):
        text = page.read_text()
        assert not fetched.search(text), page
        assert "mermaid" not in text, f"{page}: diagrams of this kind are drawn by a script from elsewhere"


def test_every_page_can_be_reached_from_the_navigation() -> None:
    def listed(entries: list[dict[str, object]]) -> Iterator[str]:
        for entry in entries:
            for target in entry.values():
                if isinstance(target, list):
                    yield from listed(target)
                else:
                    yield str(target)

    in_navigation = set(listed(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]))
    assert in_navigation == {page.relative_to(DOCS).as_posix() for page in PAGES if page not in DECISIONS}


def test_every_decision_is_in_the_list_of_decisions() -> None:
    text = (DOCS / "adr" / "README.md").read_text()
    for decision in DECISIONS:
        number, title = re.match(r"# (\d+)\. (.+)", decision.read_text()).groups()
        assert f"| {number} | [{title}]({decision.name}) |" in text


@pytest.mark.parametrize("text", TEXTS, ids=lambda text: text.relative_to(ROOT).as_posix())
def test_links_hold_in_a_plain_view_of_the_repository(text: Path) -> None:
    content = re.sub(r"^```.*?^```", "", text.read_text(), flags=re.DOTALL | re.MULTILINE)
    for target in re.findall(r"\]\(([^)\s]+)\)", content):
        if "://" in target or target.startswith("#"):
            continue
        file = (text.parent / target.partition("#")[0]).resolve()
        assert file.exists(), target
        assert text not in PAGES or file.is_relative_to(DOCS), (
            f"{target} is not part of the site: name the file in the text instead"
        )
    for named in re.findall(
        r"`((?:docs|examples|bench|docker|tests|training|server|client|model_store|proto)/[\w./-]+\.\w+)`", content
    ):
        assert (ROOT / named).exists(), named


def test_the_generated_pages_are_current() -> None:
    command = [sys.executable, str(DOCS / "reference" / "generate.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_page_of_the_command_line_names_the_options_as_the_commands_do() -> None:
    text = (DOCS / "reference" / "cli.md").read_text()
    for app, program in ((client, "offramp"), (training, "offramp-train")):
        for command in app.registered_commands:
            (section,) = re.findall(rf"^### {program} {command.name}\n(.*?)(?=^##|\Z)", text, flags=re.DOTALL | re.MULTILINE)
            shown = CliRunner().invoke(app, [str(command.name), "--help"]).output.split()
            options = re.findall(r"^\| `(--[\w-]+)", section, flags=re.MULTILINE)
            assert options
            assert set(options) <= set(shown)
    (section,) = re.findall(r"^## offramp-server\n(.*?)(?=^##|\Z)", text, flags=re.DOTALL | re.MULTILINE)
    flags = {flag for action in build_parser()._actions for flag in action.option_strings} - {"-h", "--help"}
    assert set(re.findall(r"^\| `(--[\w-]+)", section, flags=re.MULTILINE)) == flags
