"""The documentation site: builds without a warning, and every page opens from disk without asking anyone."""

import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest

from tests.browsers import opened

ROOT = Path(__file__).resolve().parent.parent
ZENSICAL = Path(sys.executable).parent / "zensical"
FETCHED = {"script": "src", "img": "src", "iframe": "src", "source": "src", "object": "data", "link": "href"}
"""Attributes whose address a browser fetches by itself."""


class Addresses(HTMLParser):
    """A page's addresses, fetched by themselves or followed by a reader, and its anchors and classes."""

    def __init__(self) -> None:
        super().__init__()
        self.fetched: list[str] = []
        self.followed: list[str] = []
        self.anchors: set[str] = set()
        self.classes: set[str] = set()

    def handle_starttag(self, tag, attrs):
        values = {name: value or "" for name, value in attrs}
        self.anchors |= {values[name] for name in ("id", "name") if name in values}
        self.classes |= set(values.get("class", "").split())
        if address := values.get(FETCHED.get(tag, "")):
            self.fetched.append(address)
        if tag == "a" and values.get("href"):
            self.followed.append(values["href"])


def build(folder: Path) -> subprocess.CompletedProcess[str]:
    """Build a copy of the documents, as `make docs` does."""
    shutil.copy(ROOT / "zensical.toml", folder)
    if not (folder / "docs").exists():
        shutil.copytree(ROOT / "docs", folder / "docs")
    return subprocess.run(
        [ZENSICAL, "build", "--strict", "--clean"], cwd=folder, capture_output=True, text=True, check=False
    )


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    done = build(folder)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Warning" not in done.stdout + done.stderr
    return folder / "site"


@pytest.fixture(scope="module")
def parsed(site) -> dict[Path, Addresses]:
    found = {}
    for path in site.rglob("*.html"):
        found[path] = Addresses()
        found[path].feed(path.read_text(encoding="utf-8"))
    return found


def test_every_document_has_a_page(site):
    documents = {path.relative_to(ROOT / "docs") for path in (ROOT / "docs").rglob("*.md")}
    assert {path.with_suffix(".html") for path in documents} | {Path("404.html")} == {
        path.relative_to(site) for path in site.rglob("*.html")
    }
    assert not list(site.rglob("*.py*"))


def test_every_document_is_reached_from_the_first_page(site, parsed):
    reached, waiting = set(), [site / "index.html"]
    while waiting:
        page = waiting.pop()
        if page not in reached:
            reached.add(page)
            local = (link.partition("#")[0] for link in parsed[page].followed if "://" not in link)
            targets = ((page.parent / unquote(link)).resolve() for link in local if link)
            waiting += [target for target in targets if target in parsed]
    assert set(parsed) - reached == {site / "404.html"}


def test_a_browser_fetches_nothing_but_files_of_the_site(site, parsed):
    n_fetched = 0
    for page, addresses in parsed.items():
        base = site if page.name == "404.html" else page.parent
        for address in addresses.fetched:
            assert ":" not in address, f"{page.name}: {address}"
            assert not address.startswith("//"), f"{page.name}: {address}"
            assert (base / address.lstrip("/").partition("?")[0]).is_file(), f"{page.name}: {address}"
            n_fetched += 1
    assert n_fetched > len(parsed)


def test_no_stylesheet_fetches_a_font_or_a_picture(site):
    sheets = [path.read_text(encoding="utf-8") for path in site.rglob("*.css")]
    assert sheets
    for text in sheets:
        assert "@import" not in text
        assert "url(http" not in text
        assert "url(//" not in text


def test_no_page_uses_what_the_theme_would_fetch_a_script_for(parsed):
    for page, addresses in parsed.items():
        assert not addresses.classes & {"mermaid", "pyodide", "glightbox"}, page.name


def test_every_link_leads_to_a_page_and_a_heading_of_the_site(parsed):
    for page, addresses in parsed.items():
        for link in addresses.followed:
            if "://" in link or page.name == "404.html":
                continue
            name, _, anchor = link.partition("#")
            target = (page.parent / unquote(name)).resolve() if name else page
            assert target in parsed, f"{page.name}: {link}"
            assert not anchor or unquote(anchor) in parsed[target].anchors, f"{page.name}: {link}"


def test_a_link_that_leads_nowhere_stops_the_build(tmp_path):
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs/index.md").write_text("# A page\n\n[nowhere](nowhere.md)\n")
    done = build(tmp_path)
    assert done.returncode != 0
    assert "page does not exist" in done.stdout + done.stderr


def test_the_search_finds_pages_from_disk_in_a_real_browser_without_a_network(site):
    with opened(site / "index.html") as (page, heard):
        page.locator(".md-search__button").click()
        page.keyboard.type("importance sampling")
        page.get_by_text(re.compile(r"^[1-9]\d* results$")).wait_for(timeout=20_000)
        assert not [asked for asked in heard if not asked.startswith(site.as_uri())]
