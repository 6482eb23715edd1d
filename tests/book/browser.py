"""The browser that the page tests drive: found on the machine, never downloaded. Run it to hear what is missing."""

import os
import shutil
import sys

_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
_MISSING = "The page tests need a browser: install Chromium (on Debian: apt-get install chromium), or set BROWSER to one."

# Without these flags Chromium looks for updates at its maker's hosts.
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


def find_browser() -> str:
    """Path of a Chromium, or one sentence that says what to install."""
    found = [path for name in (os.environ.get("BROWSER", ""), *_NAMES) if name and (path := shutil.which(name))]
    if not found:
        raise FileNotFoundError(_MISSING)
    return found[0]


if __name__ == "__main__":
    try:
        find_browser()
    except FileNotFoundError as error:
        sys.exit(str(error))
