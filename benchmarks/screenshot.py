"""Photograph an HTML page, as for the README's picture of an evaluation.

    hafrm demo --out demo
    python -m benchmarks.screenshot demo/evaluation/index.html docs/evaluation.png

Needs Chromium with its driver on the path, and selenium. The picture has 64 colours, which keeps it small.
"""

from __future__ import annotations

import argparse
import io
import shutil
from pathlib import Path

from PIL import Image
from selenium import webdriver


def photograph(page: Path, *, width: int, height: int, scheme: str) -> bytes:
    """Return a page's upper part as PNG.

    Args:
        page: The page's file.
        width: Width in CSS pixels.
        height: Height in CSS pixels.
        scheme: "light" or "dark".
    """
    options = webdriver.ChromeOptions()
    for flag in ("--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"):
        options.add_argument(flag)
    service = webdriver.ChromeService(shutil.which("chromedriver"))  # otherwise selenium downloads one
    browser = webdriver.Chrome(options=options, service=service)
    try:
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
        browser.get(page.resolve().as_uri())
        picture: bytes = browser.get_screenshot_as_png()
        return picture
    finally:
        browser.quit()


def main() -> None:
    """Photograph a page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("page", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--width", type=int, default=1280)
    parser.add_argument("--height", type=int, default=1000)
    parser.add_argument("--scheme", choices=("light", "dark"), default="light")
    args = parser.parse_args()
    png = photograph(args.page, width=args.width, height=args.height, scheme=args.scheme)
    Image.open(io.BytesIO(png)).convert("RGB").quantize(64).save(args.out, optimize=True)
    print(f"{args.out}: {args.out.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
