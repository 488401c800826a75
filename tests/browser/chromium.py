"""Find Chromium for the browser tests; as root, install Debian's where there is none.

Run as a program by `make test-browser`, before the tests.
"""

import os
import shutil
import subprocess
import sys

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
NEEDED = (
    "The browser tests need Chromium: install it (Debian: apt-get install chromium), "
    "or say where it is: make test-browser CHROMIUM=/path/to/chromium"
)


def find() -> str | None:
    """Return the path of Chromium, as CHROMIUM says or from the PATH."""
    return os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)


def install() -> None:
    """Install Debian's package, where we may."""
    if not shutil.which("apt-get") or os.geteuid():
        return
    print("Installing Chromium (a minute the first time)", flush=True)
    quiet = {"env": os.environ | {"DEBIAN_FRONTEND": "noninteractive"}, "check": False}
    subprocess.run(["apt-get", "update", "-qq"], **quiet)
    subprocess.run(["apt-get", "install", "-y", "-qq", "chromium"], **quiet)


if __name__ == "__main__":
    if not find():
        install()
    if not find():
        sys.exit(NEEDED)
