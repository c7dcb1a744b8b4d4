"""Looking at a circuit's page from outside: its state, its places on the screen, and what the JSON says."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from playwright.sync_api import Locator, Page

Opened = tuple[Page, dict[str, Any]]
Open = Callable[..., Opened]


def state(page: Page, name: str) -> Any:
    return page.evaluate(f"window.trephine.{name}")


def spot(page: Page, node: str) -> tuple[float, float]:
    at = page.evaluate("id => window.trephine.spot(id)", node)
    return at["x"], at["y"]


def graph(page: Page) -> Locator:
    return page.get_by_role("application")


def settled(page: Page, name: str) -> Any:
    """A number of the state once it no longer changes. The page forbids eval, so it is asked from outside."""
    before, now = None, state(page, name)
    while before != now:
        page.wait_for_timeout(60)
        before, now = now, state(page, name)
    return now


def press(page: Page, *keys: str) -> None:
    graph(page).focus()
    for key in keys:
        page.keyboard.press(key)


def links(document: dict[str, Any], node: str, end: str) -> dict[str, float]:
    """Weights of a node's links in the document by the id at the other end."""
    other = "source" if end == "target" else "target"
    return {one[other]: one["weight"] for one in document["links"] if one[end] == node}


def features(document: dict[str, Any]) -> list[str]:
    return [one["node_id"] for one in document["nodes"] if one["feature_type"].startswith("cross")]


def busiest(document: dict[str, Any]) -> str:
    """The feature with most links in and out."""
    return max(
        features(document),
        key=lambda node: len(links(document, node, "target")) + len(links(document, node, "source")),
    )


def grouped(document: dict[str, Any]) -> dict[str, Any]:
    names = sorted(features(document), key=lambda node: -len(links(document, node, "source")))
    return {
        "supernodes": [["one concept", *names[:3], "no_such_node"]],
        "pinnedIds": [names[4]],
        "clerps": [[names[4], "my name"]],
    }
