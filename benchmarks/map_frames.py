"""Frames a second of the page's map in a browser: N points, made up, that move and are zoomed without pause.

    python benchmarks/map_frames.py [N ...]

Needs Playwright and chromium, and a workspace with embeddings for the page around the map; its answers for the map
are replaced by made-up ones. Measured on two cores without a GPU that other programs used too (load 6 to 11), Chromium
156 headless at 1440 x 900, drawing by the processor: see docs/page.md.
"""

import re
import shutil
import subprocess
import sys

import numpy as np

FRAMES = """async (seconds) => {
    const canvas = document.querySelector('.map-canvas');
    const box = canvas.getBoundingClientRect();
    const [x, y] = [box.left + box.width / 2, box.top + box.height / 2];
    const times = [];
    const end = performance.now() + 1000 * seconds;
    let before = performance.now();
    for (let i = 0; before < end; i++) {
        canvas.dispatchEvent(new WheelEvent('wheel', {deltaY: i % 40 < 20 ? -6 : 6, clientX: x, clientY: y}));
        await new Promise(resolve => requestAnimationFrame(resolve));  // after the map has been drawn
        const now = performance.now();
        times.push(now - before);
        before = now;
    }
    times.sort((a, b) => a - b);
    return [times[times.length >> 1], times[Math.floor(times.length * 0.95)]];
}"""


def made_up(count: int) -> dict:
    """An answer of /api/map: ten clouds."""
    random = np.random.default_rng(0)
    labels = random.integers(0, 10, count)
    points = random.normal(random.uniform(15_000, 50_000, (10, 2))[labels], 4_000).clip(0, 65_535).astype(int)
    return {"version": "0", "method": "nothing", "points": points.tolist(), "labels": labels.tolist(),
            "label_names": [f"cloud {number}" for number in range(10)], "agreement": [50] * count}


def answer_with(page, answer: dict):
    """Answer /api/map with this."""
    page.route("**/api/map*", lambda route: route.fulfill(json=answer))


def main():
    """Print a line for each N."""
    from playwright.sync_api import sync_playwright

    counts = list(map(int, sys.argv[1:])) or [10_000, 50_000, 100_000, 500_000]
    command = [sys.executable, "-m", "mocoembed", "serve", "--port", "0", "--no-browser"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        address = re.search(r"http://\S+/", server.stdout.readline()).group()
        with sync_playwright() as driver:
            browser = driver.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
            for count in counts:
                page = browser.new_page(viewport={"width": 1440, "height": 900})
                answer_with(page, made_up(count))
                page.goto(f"{address}?view=map")
                page.wait_for_selector(".legend li", timeout=60_000)
                page.wait_for_timeout(500)
                median, slow = page.evaluate(FRAMES, 3)
                print(f"{count:8d} points: {median:6.1f} ms a frame in the median, {slow:6.1f} at the 95th percentile",
                      flush=True)
                page.close()
            browser.close()
    finally:
        server.terminate()
        server.wait()


if __name__ == "__main__":
    main()
