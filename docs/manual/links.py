"""Every link and picture of the built site leads somewhere inside it; nothing is fetched from elsewhere."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

FETCHED = {("script", "src"), ("img", "src"), ("link", "href"), ("source", "src"), ("iframe", "src")}


class _Page(HTMLParser):
    """Anchors of a page, and what it points to as (tag, attribute, address)."""

    def __init__(self) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.addresses: list[tuple[str, str, str]] = []
        self.canonical = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.anchors |= {given[name] or "" for name in ("id", "name") if given.get(name)}
        for name in ("href", "src"):
            if given.get(name):
                self.addresses.append((tag, name, given[name] or ""))


def broken(site: Path) -> list[str]:
    """What is wrong, as "page: address: reason"; empty for a site without a broken link."""
    pages = {path: _read(path) for path in sorted(site.rglob("*.html"))}
    wrong = []
    for path, page in pages.items():
        for tag, attribute, address in page.addresses:
            if reason := _reason(pages, site, path, (tag, attribute), address):
                wrong.append(f"{path.relative_to(site)}: {address}: {reason}")
    return wrong


def _reason(
    pages: dict[Path, _Page], site: Path, path: Path, where: tuple[str, str], address: str
) -> str | None:
    parts = urlsplit(address)
    if parts.scheme in ("http", "https") or parts.netloc:
        return "fetched from elsewhere" if where in FETCHED else None
    if parts.scheme or address.startswith(("mailto:", "data:")):
        return None
    base = site if parts.path.startswith("/") else path.parent
    target = (base / unquote(parts.path).lstrip("/")).resolve() if parts.path else path
    if target.is_dir():
        target /= "index.html"
    if not target.is_file():
        return "no such file"
    known = pages.get(target)
    if parts.fragment and known and unquote(parts.fragment) not in known.anchors | {"__toc", "__search"}:
        return "no such anchor"
    return None


def _read(path: Path) -> _Page:
    page = _Page()
    page.feed(path.read_text(encoding="utf-8"))
    return page
