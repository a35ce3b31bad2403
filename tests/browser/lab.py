"""JupyterLab as `make lab` starts it, and a Chromium that looks at it."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager, suppress
from pathlib import Path

from selenium import webdriver

ROOT = Path(__file__).resolve().parents[2]
NEEDED = {"chromium": ("chromium", "chromium-browser"), "chromium-driver": ("chromedriver",)}  # packages of Debian
ARGUMENTS = "--no-browser --ServerApp.port=0 --ServerApp.port_retries=0"
# The notebooks are not saved, and nobody is asked about news. A person's own settings are left alone.
SETTINGS = {
    "docmanager-extension/plugin": {"autosave": False},
    "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
}


def program(package):
    """The program of a package. Ends with a sentence where it is not there."""
    for name in NEEDED[package]:
        if path := shutil.which(name):
            return path
    sys.exit(f"There is no {NEEDED[package][0]}: install it (on Debian, apt-get install {' '.join(NEEDED)}).")


@contextmanager
def lab(log):
    """The address of a JupyterLab on this checkout, its token in it."""
    with tempfile.TemporaryDirectory() as folder:
        for name, settings in SETTINGS.items():
            file = Path(folder, "@jupyterlab", f"{name}.jupyterlab-settings")
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps(settings))
        folders = {"JUPYTERLAB_SETTINGS_DIR": folder, "JUPYTERLAB_WORKSPACES_DIR": folder}
        command = ["make", "lab", f"LAB={ARGUMENTS}{' --allow-root' if os.geteuid() == 0 else ''}"]
        with log.open("w") as said:
            options = {"cwd": ROOT, "env": os.environ | folders, "stdout": said, "stderr": said}
            server = subprocess.Popen(command, start_new_session=True, **options)
        try:
            yield _address(server, log)
        finally:
            os.killpg(server.pid, signal.SIGTERM)  # it stops its kernels
            server.wait(60)


def _address(server, log):
    for _ in range(1200):
        if told := re.search(r"http://(?:localhost|127\.0\.0\.1):\d+/lab\S*\?token=\w+", log.read_text()):
            return told[0]
        if server.poll() is not None:
            break
        time.sleep(0.1)
    raise RuntimeError(f"JupyterLab has not started: {log.read_text()}")


@contextmanager
def chromium(width=1400, height=1000):
    """A Chromium that shows no window, of that many pixels."""
    options = webdriver.ChromeOptions()
    options.binary_location = program("chromium")
    for argument in ("headless=new", "no-sandbox", "disable-dev-shm-usage", f"window-size={width},{height}"):
        options.add_argument(f"--{argument}")
    driver = webdriver.Chrome(options, webdriver.ChromeService(program("chromium-driver")))
    try:
        yield driver
    finally:
        driver.quit()


def kernel_seconds():
    """CPU seconds of the kernels at work in this checkout's notebooks."""
    ticks = 0
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has ended
            if (process / "cwd").resolve() == ROOT / "notebooks" and b"ipykernel" in (process / "cmdline").read_bytes():
                ticks += sum(map(int, (process / "stat").read_text().rpartition(")")[2].split()[11:13]))
    return ticks / os.sysconf("SC_CLK_TCK")
