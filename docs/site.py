"""A hook of MkDocs: the API reference, and links that lead out of docs/.

A page for each folder of the library is made as the site is built: its docstring, and each of its
modules by mkdocstrings, which reads the source without importing it.
"""

from __future__ import annotations

import ast
import os
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
# A Markdown link, as its text and target; the target leads up and out.
_OUTSIDE = re.compile(r"\[([^\]]+)\]\((\.\./[^)#]+)(?:#[^)]*)?\)")


def api_pages(library: Path) -> dict[str, str]:
    """The Markdown of each folder's page, by its path below docs/, `api/braid.drifting.loss.md`."""
    pages = {}
    for folder in sorted({path.parent for path in library.rglob("*.py")}):
        name = ".".join(folder.relative_to(library.parent).parts)
        modules = sorted(path.stem for path in folder.glob("*.py") if path.stem[0] != "_")
        if modules:
            summary = _docstring(folder / "__init__.py")
            blocks = [f"::: {name}.{module}" for module in modules]
            pages[f"api/{name}.md"] = "\n\n".join([f"# {name}", summary, *blocks]) + "\n"
    return pages


def _docstring(path: Path) -> str:
    tree = ast.parse(path.read_text(encoding="utf-8")) if path.exists() else None
    return (tree and ast.get_docstring(tree)) or ""


def on_config(config: Any) -> Any:
    """Add the reference to the end of the navigation, and draw the fences called mermaid."""
    from pymdownx.superfences import fence_code_format

    config.nav.append({"API": list(api_pages(ROOT / "braid"))})
    fence = {"name": "mermaid", "class": "mermaid", "format": fence_code_format}
    config.mdx_configs["pymdownx.superfences"] = {"custom_fences": [fence]}
    return config


def on_files(files: Any, config: Any) -> Any:
    """Add the reference's pages to those of docs/."""
    from mkdocs.structure.files import File

    for path, content in api_pages(ROOT / "braid").items():
        files.append(File.generated(config, path, content=content))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Links to files of the repository, which the site does not have, become their paths."""
    here = (ROOT / "docs" / page.file.src_uri).parent

    def shown(link: re.Match[str]) -> str:
        path = Path(os.path.normpath(here / link[2]))
        inside = path.is_relative_to(ROOT / "docs")
        return link[0] if inside else f"{link[1]} (`{path.relative_to(ROOT)}`)"

    return _OUTSIDE.sub(shown, markdown)
