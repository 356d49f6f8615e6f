"""Take the picture of the README from a running UI.

batch-platform demo && batch-platform ui
python -m batch_platform_tests.make_pictures [http://127.0.0.1:3000]
"""

import sys
from contextlib import suppress
from pathlib import Path

from playwright.sync_api import Error, sync_playwright

PICTURES = Path(__file__).parents[1] / ".pictures"
CHROMIUM = "/usr/bin/chromium"
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
]
SETTLED_MS = 5_000


def main(address: str) -> None:
    """The asset graph, large enough to be read."""
    PICTURES.mkdir(exist_ok=True)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        page = browser.new_page(viewport={"width": 2100, "height": 900})
        page.goto(f"{address}/asset-groups/")
        with suppress(Error):  # the greeting of a first visit does not always come
            page.get_by_text("Skip").first.click(timeout=SETTLED_MS)
        page.get_by_text("Hide navigation").click()
        page.wait_for_timeout(SETTLED_MS)
        page.screenshot(path=str(PICTURES / "asset_graph.png"), clip={"x": 400, "y": 190, "width": 1520, "height": 570})
        browser.close()


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:3000")
