"""report.html: what a run was, what came of it and where its time went, in one file that needs nothing else.

    files.py     what a run directory holds      figures.py  its figures
    sections.py  what is said of it              page.py, page.html  how that looks

`distmeta report` writes it at any time, for a run that is unfinished too: a section whose data are not there is named
with its reason. That of a search is in distmeta.search.report.
"""

from __future__ import annotations

from pathlib import Path

from distmeta.runs import checkpoint as checkpoints
from distmeta.runs.report import plots, sections
from distmeta.runs.report.files import read_run
from distmeta.runs.report.page import Page, render

__all__ = ["write", "write_page"]


def write(run_dir: str | Path) -> Path:
    """report.html and figures/*.png of a run, from its files alone; the path of the page. Raises InputError."""
    run = read_run(run_dir)
    with plots.style():
        page = Page(f"{run.config.run.name}: {run.config.algorithm}", sections.state(run), sections.sections(run))
        return write_page(page, run.path)


def write_page(page: Page, directory: Path) -> Path:
    """The page as report.html, and its figures as PNG files. Called within `plots.style()`."""
    (directory / "figures").mkdir(exist_ok=True)
    for picture in page.pictures:
        plots.save(directory / "figures" / f"{picture.name}.png", picture.figure)
    checkpoints.write_text(directory / "report.html", render(page))
    return directory / "report.html"
