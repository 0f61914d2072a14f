"""Figures of the documents come from committed files, and are those."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from docs.figures import ROOT, filled, pages, render, stale


@pytest.fixture
def root(tmp_path: Path) -> Path:
    figures = {"frechet": {"refined": 0.0504}, "status": "ok", "lpips": None, "seconds": 90}
    (tmp_path / "a.json").write_text(json.dumps(figures))
    (tmp_path / "b.csv").write_text("scene,variant,psnr\nx,one,30.125\ny,one,31.5\ny,two,\n")
    return tmp_path


@pytest.mark.parametrize(
    ("reference", "expected"),
    [
        ("a.json frechet.refined .2f", "0.05"),
        ("a.json status s", "ok"),
        ("a.json lpips .3f", "–"),
        ("a.json seconds /60:.1f", "1.5"),
        ("a.json frechet.refined *100:.1f", "5.0"),
        ("b.csv variant=one psnr .2f", "30.12"),
        ("b.csv scene=y&variant=one psnr .1f", "31.5"),
        ("b.csv scene=y&variant=two psnr .1f", "–"),
    ],
)
def test_a_reference_gives_its_figure(reference: str, expected: str, root: Path) -> None:
    assert filled(f"<{{{reference}}}>", root) == f"<{expected}>"


@pytest.mark.parametrize(
    ("reference", "fault"),
    [
        ("c.json x .1f", "no such file"),
        ("a.json frechet.real .1f", "no key frechet.real"),
        ("b.csv variant=three psnr .1f", "no row with variant=three"),
    ],
)
def test_a_reference_to_nothing_is_named(reference: str, fault: str, root: Path) -> None:
    with pytest.raises(ValueError, match=fault):
        filled(f"{{{reference}}}", root)


def test_a_table_of_a_whole_file_has_its_rows(root: Path) -> None:
    spec = "csv: b.csv\nrows: all\ncolumns: [[variant, who, s], [psnr, dB, .1f]]\n"
    rendered = render(f"<!-- table\n{spec}-->\n<!-- /table -->", root)
    assert "| who | dB |\n| --- | --- |\n| one | 30.1 |\n| one | 31.5 |\n| two | – |\n" in rendered


def test_a_page_is_rendered_in_place(root: Path) -> None:
    page = (
        "It is <!-- = {a.json seconds .0f} s -->old<!-- /= -->.\n"
        "<!-- table\nheader: [what, dB]\nrows:\n"
        '- [one, "{b.csv scene=x psnr .1f}"]\n-->\nold\n<!-- /table -->\n'
    )
    rendered = render(page, root)
    assert "-->90 s<!-- /= -->." in rendered
    assert "-->\n| what | dB |\n| --- | --- |\n| one | 30.1 |\n<!-- /table -->" in rendered
    assert "old" not in rendered
    assert render(rendered, root) == rendered
    (root / "page.md").write_text(page)
    assert stale([root / "page.md"], root) == [root / "page.md"]


def test_a_table_of_a_csv(root: Path) -> None:
    spec = "csv: b.csv\nrows: {scene: {y: why}}\ncolumns: [[psnr, dB, .1f], [variant, '', s]]"
    rendered = render(f"<!-- table\n{spec}\n-->\n<!-- /table -->", root)
    assert "|  | dB |  |\n| --- | --- | --- |\n| why | 31.5 | one |\n" in rendered


def test_recipes_are_listed_by_what_their_heads_say(root: Path) -> None:
    (root / "recipes").mkdir()
    head = "# A scene,\n# of bricks.\n#\n# command:   make exp\n# hardware:  a core\n"
    text = f"{head}# cost:      3 s\n# expected:  30 dB,\n#            not run\n\nseed: 1\n"
    (root / "recipes/ga_one.yaml").write_text(text)
    (root / "recipes/other.yaml").write_text(text)
    rendered = render("<!-- recipes ga_* -->\n<!-- /recipes -->", root)
    row = "| `RECIPE=ga_one` | A scene, of bricks. | a core; 3 s | 30 dB, not run |\n"
    assert rendered.splitlines()[3] + "\n" == row
    assert len(rendered.splitlines()) == 5


def test_a_file_is_shown_as_a_block(root: Path) -> None:
    rendered = render("<!-- file b.csv -->\nold\n<!-- /file -->", root)
    assert rendered.startswith("<!-- file b.csv -->\n```\nscene,variant,psnr\n")
    assert rendered.endswith("y,two,\n```\n<!-- /file -->")


def test_uneven_rows_are_refused(root: Path) -> None:
    with pytest.raises(ValueError, match="expected 2 cells"):
        render("<!-- table\nheader: [a, b]\nrows:\n- [one]\n-->\n<!-- /table -->", root)


@pytest.mark.parametrize("page", pages(ROOT), ids=lambda page: page.name)
def test_figures_of_a_page_are_those_of_the_files(page: Path) -> None:
    assert stale([page], ROOT) == [], "run `make figures`"
