"""The report over a folder of results: claims.json, REPORT.md, report.html in a single file, and forest.png.

It reads files only, so that it shows what is stored and nothing else. `gathering` reads them, `model` holds what was
read, `markdown` and `page` write it.
"""

from __future__ import annotations

from pathlib import Path

from bnrepro.claims.conclusion import CLAIMS, as_json
from bnrepro.plots import style
from bnrepro.report.forest_plot import forest_plot
from bnrepro.report.gathering import LeftOut
from bnrepro.report.gathering import gather as gather
from bnrepro.report.markdown import markdown
from bnrepro.report.page import page as page
from bnrepro.runs import record
from bnrepro.system.reading import printable

MARKDOWN, HTML, FOREST = "REPORT.md", "report.html", "forest"


def write(out: Path, left_out: LeftOut | None = None) -> list[Path]:
    """Write claims.json, REPORT.md, report.html and, where there are effects, forest.png into ``out``, replacing
    existing files, and return the paths of the first three.

    Args:
        out: the folder of the results.
        left_out: told what is wrong with results that cannot be read, which are left out; None: that is raised.

    Raises:
        UserError: there is nothing, or something is damaged.
    """
    report = gather(out, left_out)
    record.write_whole(out / CLAIMS, as_json(report.claims))
    record.write_whole(out / MARKDOWN, printable(markdown(report, out)))
    record.write_whole(out / HTML, page(report, out))
    if (figure := forest_plot(report.claims)) is not None:
        style.save(figure, out / FOREST, formats=["png"])
    return [out / CLAIMS, out / MARKDOWN, out / HTML]
