"""``python -m ci.site FOLDER``: the sources in FOLDER/source, the site in FOLDER/html."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from sphinx.cmd.build import build_main

from ci.site.links import broken
from ci.site.pages import stage

ROOT = Path(__file__).resolve().parents[2]


def main(folder: Path) -> int:
    """0 if it was built without a warning, and no link in it is broken."""
    source, html = folder / "source", folder / "html"
    shutil.rmtree(folder, ignore_errors=True)
    stage(ROOT, source)
    settings = str(Path(__file__).parent)
    status = build_main(
        ["-q", "-W", "--keep-going", "-n", "-c", settings, "-b", "html", str(source), str(html)]
    )
    wrong = broken(html)
    for line in wrong:
        print(f"broken link: {line}", file=sys.stderr)
    if status or wrong:
        return 1
    print(f"{len(list(html.rglob('*.html')))} pages: {html / 'index.html'}")
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
