"""Notebooks 00, 03 and 04 in a real browser, on a store that `make figures` has filled: do they run and answer?

make test-browser
.venv-browser/bin/python tests/browser 03_collapse_analysis

Every control is moved twice. It must give another picture, within a second: of the wall clock, or, where the machine is
busy with other work, of the kernel's CPU. Screenshots go to build/browser.
"""

import sys
import time

from lab import NEEDED, ROOT, chromium, kernel_seconds, lab, program
from page import BARS, Page

SHOTS = ROOT / "build" / "browser"
NOTEBOOKS = ("00_quickstart", "03_collapse_analysis", "04_disp_purification")
COMMITTED = ("figures", "notebooks")
MOST = 1.0  # seconds
WIDE, NARROW = (1400, 1000), (900, 1000)


def written():
    """When each committed file was last written; Jupyter's own copies are none of them."""
    files = [file for folder in COMMITTED for file in (ROOT / folder).rglob("*") if file.is_file()]
    files = [file for file in files if file.parent.name != ".ipynb_checkpoints"]
    return {file: file.stat().st_mtime_ns for file in files}


class Tried:
    """What was seen of the notebooks."""

    def __init__(self):
        self.faults, self.moves = [], 0

    def check(self, holds, fault):
        if not holds:
            self.faults.append(fault)
            print(f"FAULT  {fault}", flush=True)

    def run(self, page, seconds=1200):
        """All cells, to the end, without errors, and nothing left but results."""
        begun = time.monotonic()
        page.start()
        page.until(lambda: page.idle, seconds, "is not done")
        print(f"{page.name}: all cells in {time.monotonic() - begun:.0f} s", flush=True)
        self.check(not page.errors(), f"{page.name} shows {page.errors()}")
        self.check(not page.all(BARS), f"{page.name} has {len(page.all(BARS))} bars left")

    def stop(self, page):
        """Stopped while it runs, a notebook is at rest soon, and says so."""
        page.start()
        page.until(lambda: page.prompts(r"\d") >= 3, 300, "has not come to its first work")
        page.stop()
        page.until(lambda: page.idle, 60, "does not stop")
        self.check("KeyboardInterrupt" in "".join(page.errors()), f"{page.name} does not say so")

    def move(self, page):
        """Every control, twice."""
        for name, control in page.controls().items():
            for _ in range(2):
                before = kernel_seconds()
                wall = page.move(control)
                cpu = kernel_seconds() - before
                if wall is None:
                    print(f"{page.name}, {name}: one choice", flush=True)
                    break
                self.moves += 1
                late = "" if wall <= MOST else f" (over {MOST:g} s by the clock, not of CPU)"
                print(f"{page.name}, {name}: {wall:.2f} s, CPU {cpu:.2f} s{late if cpu <= MOST else ''}", flush=True)
                self.check(min(wall, cpu) <= MOST, f"{page.name}, {name} takes {wall:.2f} s, CPU {cpu:.2f} s")
            shoot(page, name)

    def narrow(self, page):
        """In a narrow window every control is still in sight."""
        page.driver.set_window_size(*NARROW)
        time.sleep(1)
        self.check(not page.outside(), f"{page.name} has {len(page.outside())} controls out of sight")
        page.driver.execute_script("arguments[0].scrollIntoView()", next(iter(page.controls().values())))
        shoot(page, "narrow")
        page.driver.set_window_size(*WIDE)


def shoot(page, name):
    time.sleep(0.5)
    page.driver.save_screenshot(str(SHOTS / f"{page.name}-{name}.png"))


def main(chosen):
    for package in NEEDED:
        program(package)
    SHOTS.mkdir(parents=True, exist_ok=True)
    tried, before = Tried(), written()
    with lab(SHOTS / "lab.log") as address:
        for name in chosen or NOTEBOOKS:
            with chromium(*WIDE) as driver:
                page = Page(driver, address, name)
                if name == NOTEBOOKS[0]:
                    tried.stop(page)
                tried.run(page)
                shoot(page, "end")
                tried.move(page)
                tried.narrow(page)
    for kind in ("Warning", "rror: ", "progress"):
        lines = [line for line in (SHOTS / "lab.log").read_text().splitlines() if kind in line]
        tried.check(not lines, f"JupyterLab's log has {lines[:3]}")
    changed = [str(file.relative_to(ROOT)) for file, when in written().items() if before.get(file) != when]
    tried.check(not changed, f"{len(changed)} committed files were written: {changed[:3]}")
    print(f"{tried.moves} moves, {len(tried.faults)} faults; screenshots are in {SHOTS.relative_to(ROOT)}")
    return 1 if tried.faults else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
