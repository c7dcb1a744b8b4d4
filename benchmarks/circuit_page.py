"""How fast the circuit's page is, and what it looks like: `python -m benchmarks.circuit_page`.

Opens pages of 100, 1,000 and 5,000 nodes in a headless Chromium without a GPU, prints when the first
paint came and how long frames take while zooming and dragging, and writes screenshots, light and dark,
at the widths of a phone and of a desk. Every frame of a gesture gets one event and is drawn whole; the
browser's limit of 60 frames a second is off, so that a frame takes what it takes; beside that stands the
processor time of all of the browser's processes per frame, which other work on the machine does not change.
`--page FILE` adds exported pages.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from playwright.sync_api import Browser, Page, sync_playwright

from tests.browser import found_chromium  # noqa: TID251  tools of the tests, which use the same pages
from tests.synthetic_circuits import synthetic_circuit, whole  # noqa: TID251
from trephine.pages.circuit_json import circuit_json
from trephine.pages.circuit_page import circuit_html

SIZES = ((100, 600, 14), (1000, 8000, 32), (5000, 50_000, 60))
"""Nodes, edges, tokens."""
FRAMES = 90
DESK, PHONE = (1440, 900), (420, 900)
_FLAGS = ("--no-sandbox", "--disable-gpu-vsync", "--disable-frame-rate-limit", "--enable-precise-memory-info")
_GESTURE = """
([kind, frames]) => new Promise(done => {
  const surface = document.getElementById("over"), box = surface.getBoundingClientRect(), took = [];
  const x = box.left + box.width * .6, y = box.top + box.height * .5;
  const drag = (target, name, dx, dy) => target.dispatchEvent(new MouseEvent(name, {
    bubbles: true, cancelable: true, view: window, clientX: x + dx, clientY: y + dy }));
  const wheel = deltaY => surface.dispatchEvent(new WheelEvent("wheel", {
    bubbles: true, cancelable: true, view: window, clientX: x, clientY: y, deltaY }));
  let frame = 0, before = 0;
  if (kind === "drag") drag(surface, "mousedown", 0, 0);
  const next = now => {
    if (before) took.push(now - before);
    before = now;
    if (frame++ >= frames) {
      if (kind === "drag") drag(window, "mouseup", 0, 0);
      return done(took);
    }
    const swing = Math.sin(frame / 9);
    if (kind === "zoom") wheel(swing > 0 ? -40 : 30);
    else drag(window, "mousemove", 180 * swing, 60 * swing);
    requestAnimationFrame(next);
  };
  requestAnimationFrame(next);
})
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Speed:
    """What one page took, in milliseconds."""

    name: str
    nodes: int
    edges: int
    kilobytes: float
    paint: float
    """From the start of loading to the first paint that has content."""
    edges_ready: float
    """Until the edges at rest are drawn too."""
    frames: dict[str, list[float]]
    processor: float
    """Of a frame, all processes of the browser together, mean over the four gestures."""

    def cells(self) -> tuple[str, ...]:
        """What the table shows."""
        middle = [f"{statistics.median(times):.1f} / {_high(times):.1f}" for times in self.frames.values()]
        size = (self.name, f"{self.nodes:,}", f"{self.edges:,}", f"{self.kilobytes:,.0f}")
        return (*size, f"{self.paint:.0f}", f"{self.edges_ready:.0f}", *middle, f"{self.processor:.1f}")


HEADINGS = (
    *("page", "nodes", "edges", "kB", "paint", "edges"),
    *("zoom", "drag", "zoom, all edges", "drag, all edges", "processor"),
)


def _high(times: Sequence[float]) -> float:
    return statistics.quantiles(times, n=20)[-1]


def synthetic_pages(folder: Path) -> Iterator[Path]:
    """Write the synthetic pages, with pins and supernodes."""
    for nodes, edges, tokens in SIZES:
        circuit = synthetic_circuit(nodes=nodes, edges=edges, tokens=tokens)
        kept = whole(circuit)
        documented = circuit_json(circuit, kept, slug="synthetic")["nodes"]
        ids = [node["node_id"] for node in documented if node["feature_type"].startswith("cross")]
        view = {
            "pinnedIds": ids[-2:],
            "supernodes": [["says Mary", *ids[-9:-5]], ["who was in the store", *ids[len(ids) // 2 :][:4]]],
        }
        path = folder / f"{nodes}.html"
        path.write_text(circuit_html(circuit, kept, name="circuits/synthetic", view=view), "utf-8")
        yield path


def measure(browser: Browser, path: Path) -> Speed:
    """Open a page, wait for its edges, zoom and drag it with few edges at rest and with all."""
    page = _opened(browser, path, DESK, "light")
    paint = page.evaluate("performance.getEntriesByName('first-contentful-paint')[0].startTime")
    ready = page.evaluate("performance.now()")
    frames, used = {}, 0.0
    for kind in ("zoom", "drag"):
        frames[kind], spent = _gesture(page, kind)
        used += spent
    while page.evaluate("trephine.edgesAtRest.which") != "all":
        page.get_by_role("button", name="Edges: ").click()
    _settle(page)
    for kind in ("zoom", "drag"):
        frames[f"all {kind}"], spent = _gesture(page, kind)
        used += spent
    speed = Speed(
        name=path.stem if path.stem != "circuit" else path.parent.name,
        nodes=page.evaluate("trephine.nodes"),
        edges=page.evaluate("trephine.edges"),
        kilobytes=path.stat().st_size / 1024,
        paint=paint,
        edges_ready=ready,
        frames=frames,
        processor=1000 * used / (4 * FRAMES),
    )
    page.close()
    return speed


def pictures(browser: Browser, path: Path, name: str, folder: Path) -> Iterator[Path]:
    """Write four pictures at rest, and one with a node selected."""
    for scheme in ("light", "dark"):
        for size in (DESK, PHONE):
            page = _opened(browser, path, size, scheme)
            shot = folder / f"{name}-{size[0]}-{scheme}.png"
            page.screenshot(path=shot, full_page=size == PHONE)
            yield shot
            if size == DESK:
                page.get_by_role("application").focus()
                for key in ("Home", "i"):
                    page.keyboard.press(key)
                _settle(page)
                shot = folder / f"{name}-{size[0]}-{scheme}-selected.png"
                page.screenshot(path=shot)
                yield shot
            page.close()


def _gesture(page: Page, kind: str) -> tuple[list[float], float]:
    """Frames of a gesture, in milliseconds, and the processor time that they took, in seconds."""
    _settle(page)
    before = _processor_seconds()
    frames: list[float] = page.evaluate(_GESTURE, [kind, FRAMES])
    return frames, _processor_seconds() - before


def _processor_seconds() -> float:
    """Of all processes that this one started: the browser's."""
    total = 0.0
    for process in psutil.Process().children(recursive=True):
        try:
            times = process.cpu_times()
        except psutil.NoSuchProcess:
            continue
        total += times.user + times.system
    return total


def _opened(browser: Browser, path: Path, size: tuple[int, int], scheme: Any) -> Page:
    page = browser.new_page(viewport={"width": size[0], "height": size[1]}, color_scheme=scheme)
    page.goto(path.resolve().as_uri())
    _settle(page)
    return page


def _settle(page: Page) -> None:
    """Wait for the edges at rest. The page's policy forbids eval, so the browser cannot wait by itself."""
    while not page.evaluate("window.trephine?.drawing.edgesReady"):
        page.wait_for_timeout(15)


def main() -> None:
    """Print the table and write the pictures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("out/circuit-page"))
    parser.add_argument("--page", type=Path, action="append", default=[], help="an exported page; repeatable")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    chromium = found_chromium()
    if chromium is None:
        parser.error("there is no Chromium: install it or set TREPHINE_CHROMIUM")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=list(_FLAGS))
        paths = [*synthetic_pages(given.out), *given.page]
        print(f"Chromium {browser.version}, no GPU, {DESK[0]} x {DESK[1]}; ms, frames as median / 95 %")
        speeds = [measure(browser, path) for path in paths]
        rows = [HEADINGS, *(speed.cells() for speed in speeds)]
        widths = [max(len(row[column]) for row in rows) for column in range(len(HEADINGS))]
        for row in rows:
            print("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)))
        for path, speed in zip(paths, speeds, strict=True):
            for shot in pictures(browser, path, speed.name, given.out):
                print(shot)
        browser.close()


if __name__ == "__main__":
    main()
