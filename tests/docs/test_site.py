"""The site is built without a warning, and its pages fetch nothing from outside."""

import importlib.util
import os
import re
import subprocess
import sys

import pytest

from .pages import ROOT


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    for module in ("mkdocs", "material", "mkdocstrings", "typer"):
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"the site needs the package of {module}")
    target = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", target],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr
    return target


def test_what_is_generated_is_there(site):
    command_line = (site / "reference" / "cli.html").read_text()
    assert "strongroom plumbing tink-keyset" in command_line
    assert "--passphrase-fd" in command_line
    python = (site / "reference" / "python.html").read_text()
    assert 'id="strongroom.api.seal"' in python
    assert 'id="strongroom.loaders.transformers.from_pretrained"' in python
    assert "segments-swapped" in (site / "spec" / "test-vectors.html").read_text()
    assert 'id="sr-layout"' in (site / "spec" / "sealed-file.html").read_text()


def test_no_markup_is_left_over(site):
    for page in site.rglob("*.html"):
        text = page.read_text()
        assert "<!-- generated" not in text, page
        assert "--8&lt;--" not in text, page
        assert not re.search(r":(?:class|data|func|meth|mod):", text), page


def test_pages_fetch_nothing_from_outside(site):
    pages = list(site.rglob("*.html"))
    assert len(pages) > 30
    for page in pages:
        fetched = re.findall(
            r"<(?:script|link|img|iframe|source)\b[^>]*\b(?:src|href)=\"([^\"]+)", page.read_text()
        )
        assert fetched
        assert not [url for url in fetched if re.match(r"(?:https?:)?//", url)], page
