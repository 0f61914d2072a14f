"""The site of the documents: every page, every module, no link that leads nowhere."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

from docs.figures import ROOT
from docs.site import api_pages, on_page_markdown


def test_the_reference_has_every_module_once() -> None:
    blocks = re.findall(r"^::: (\S+)$", "\n".join(api_pages(ROOT / "braid").values()), re.M)
    library = (ROOT / "braid").rglob("*.py")
    modules = [path.relative_to(ROOT).with_suffix("") for path in library if path.stem[0] != "_"]
    assert sorted(blocks) == sorted(".".join(module.parts) for module in modules)


def test_a_folder_s_page_starts_with_its_docstring(tmp_path: Path) -> None:
    (tmp_path / "library/part").mkdir(parents=True)
    (tmp_path / "library/part/__init__.py").write_text('"""What it holds."""\n')
    (tmp_path / "library/part/one.py").write_text("")
    assert api_pages(tmp_path / "library") == {
        "api/library.part.md": "# library.part\n\nWhat it holds.\n\n::: library.part.one\n"
    }


def test_links_out_of_the_documents_become_paths() -> None:
    page = SimpleNamespace(file=SimpleNamespace(src_uri="params.md"))
    text = "[the file](../params.yaml), [loss](../braid/drifting/loss/drift.py#L3), [next](a.md)"
    assert on_page_markdown(text, page) == (
        "the file (`params.yaml`), loss (`braid/drifting/loss/drift.py`), [next](a.md)"
    )


def test_the_site_is_built_without_a_warning(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    for page in (ROOT / "docs").glob("*.md"):
        name = "index" if page.stem == "README" else page.stem
        assert (tmp_path / f"{name}.html").is_file()
    reference = (tmp_path / "api/braid.drifting.loss.html").read_text()
    assert 'id="braid.drifting.loss.drift.' in reference
