"""The page: it loads nothing, holds everything, and fits."""

from __future__ import annotations

import base64
import io
import re
from pathlib import Path

import pytest
from PIL import Image

from report import page
from report.charts import charts, read_plots
from report.page import LIMIT, open_report, to_html
from report.pictures import ENDINGS, data_uris, pictures
from report.revisions import open_revisions
from tests.report.parsed import Page
from tests.report.repository import commit, picture, write_repository

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def own() -> str:
    """The report of this repository's committed figures."""
    return to_html(open_report(ROOT, open_revisions(ROOT, [])))


@pytest.fixture
def repo(tmp_path: Path) -> Path:
    write_repository(tmp_path)
    return tmp_path


def parsed(repo: Path, *names: str) -> Page:
    return Page(to_html(open_report(repo, open_revisions(repo, names))))


def test_the_report_of_this_repository_loads_nothing_and_fits(own: str) -> None:
    assert len(own.encode()) <= LIMIT == 15_000_000
    shown = Page(own)
    assert len(shown.loaded) > 50
    assert [each for each in shown.loaded if not each.startswith(("data:image/", "#"))] == []
    assert not {"script", "iframe", "object", "embed", "link", "base"} & set(shown.names)
    assert {link[1:] for link in shown.links} <= set(shown.ids)


def test_every_plot_and_picture_of_dvc_yaml_is_in_it(own: str) -> None:
    shown = Page(own)
    revisions = open_revisions(ROOT, [])
    plots = read_plots(ROOT)
    titles = [chart.title for plot in plots if plot.columns for chart in charts(plot, revisions)]
    assert len(titles) >= len([plot for plot in plots if plot.columns]) > 20
    labels = [drawing["aria-label"] for drawing in shown.drawings]
    assert [title for title in titles if not any(label.startswith(title) for label in labels)] == []
    assert not [label for label in labels if label.endswith("no data")]
    files = [path for path in (ROOT / "plots").rglob("*") if path.suffix in ENDINGS]
    assert len(shown.images) == len(files) > 30
    text = " ".join(shown.text)
    assert [path for path in files if str(path.relative_to(ROOT)) not in text] == []


def test_every_picture_says_what_it_shows_and_is_the_file(repo: Path) -> None:
    shown = parsed(repo)
    moving, still = shown.images
    assert moving["alt"] == "Animation: pictures, moving (workspace)"
    assert still["alt"] == "Picture: pictures, still (workspace)"
    with Image.open(io.BytesIO(base64.b64decode(moving["src"].partition(",")[2]))) as image:
        assert getattr(image, "n_frames", 1) == 3
    assert all(drawing["role"] == "img" and drawing["aria-label"] for drawing in shown.drawings)


def test_curves_of_a_folder_are_a_chart_a_column_with_a_line_a_file(repo: Path) -> None:
    labels = [drawing["aria-label"] for drawing in parsed(repo).drawings]
    assert "Loss <of> a model: loss, by step: a 2 to 1.5; b 4 to 3.5" in labels
    assert "Loss <of> a model: other, by step: a 3 to 3; b 1 to 2" in labels
    assert "By method, bars: ours 0.5; theirs 0.25" in labels
    assert "Stages of Radiance: train" in labels


def test_text_of_files_is_no_markup(repo: Path) -> None:
    text = " ".join(parsed(repo).text)
    assert "Card evaluate: keep: it is <better>" in text
    assert "<i>a|b" in text


def test_figures_of_a_folder_are_one_table_and_null_is_a_dash(repo: Path) -> None:
    words = [word.strip() for word in parsed(repo).text]
    start = words.index("metrics/train/")
    assert words[start : start + 8] == [
        *("metrics/train/", "psnr", "status", "a", "30.5", "ok", "b", "29.25"),
    ]
    assert words[words.index("lpips") + 1] == "–"
    assert "2 stages took 4 s by their own clocks." in words


def test_figures_that_only_an_older_revision_has_are_shown_as_other(repo: Path) -> None:
    old = repo / "metrics/former/a.json"
    old.parent.mkdir()
    old.write_text('{"psnr": 12.5}')
    commit(repo)
    old.unlink()
    shown = Page(to_html(open_report(repo, open_revisions(repo, ["HEAD", "workspace"]))))
    text = " ".join(shown.text)
    assert "Other" in text
    assert "former/a: psnr" in text


def test_revisions_differ_in_figures_curves_and_pictures(repo: Path) -> None:
    (repo / "metrics/train/a.json").write_text('{"psnr": 31.5, "status": "ok"}')
    (repo / "plots/loss/a.csv").write_text("step,loss,other\n0,2,\n1,0.5,3\n")
    (repo / "plots/pictures/still.png").write_bytes(picture(color="blue"))
    shown = parsed(repo, "HEAD")
    words = [word.strip() for word in shown.text]
    start = words.index("train/a: psnr")
    assert words[start + 1 : start + 4] == ["30.5", "31.5", "+1 (+3.3 %)"]
    labels = [drawing["aria-label"] for drawing in shown.drawings]
    assert any("a, HEAD 2 to 1.5; a, workspace 2 to 0.5; b 4 to 3.5" in la for la in labels)
    assert [image["alt"][-12:] for image in shown.images].count(" (workspace)") == 1
    assert len(shown.images) == 3


def test_pictures_shrink_until_they_fit(repo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    noise = Image.effect_noise((900, 600), 90).convert("RGB")
    noise.save(repo / "plots/pictures/noise.png")
    (full,) = [image for image in parsed(repo).images if "noise" in image["alt"]]
    monkeypatch.setattr(page, "LIMIT", 110_000)
    text = to_html(open_report(repo, open_revisions(repo, [])))
    (small,) = [image for image in Page(text).images if "noise" in image["alt"]]
    assert len(text.encode()) <= 110_000
    assert len(small["src"]) < len(full["src"])
    assert small["width"] == full["width"] == "900"  # on the page
    with pytest.raises(ValueError, match=r"pictures: 3 are too many for 0\.0 MB"):
        data_uris(pictures("plots/pictures", open_revisions(repo, [])), 100)


def test_a_broken_file_is_named(repo: Path) -> None:
    (repo / "plots/pictures/still.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"plots/pictures/still\.png: no picture"):
        parsed(repo)
    (repo / "plots/pictures/still.png").unlink()
    (repo / "metrics/evaluate.json").write_text("{")
    with pytest.raises(ValueError, match=r"workspace: metrics/evaluate\.json: expected a JSON"):
        parsed(repo)


def test_the_same_files_give_the_same_page(repo: Path) -> None:
    commit_free = re.compile(r"commit \w+")
    first = to_html(open_report(repo, open_revisions(repo, [])))
    commit_again = to_html(open_report(repo, open_revisions(repo, [])))
    assert first == commit_again
    (repo / "other").write_text("")
    commit(repo)
    third = to_html(open_report(repo, open_revisions(repo, [])))
    assert commit_free.sub("", third) == commit_free.sub("", first)
