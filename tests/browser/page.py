"""A notebook in the browser: its cells run, its controls moved, its picture timed."""

import re
import time

from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import Select

PICTURE = ".jp-Notebook .widget-image"
CONTROLS = ".jp-Notebook :is(.widget-hslider, .widget-dropdown, .widget-checkbox)"
BARS = ".jp-Notebook :is(.widget-hprogress, .jp-OutputArea-output .jupyter-widgets-error)"
# By the page's own clock: from the key or the choice to the new picture, decoded.
WATCH = """
const [image] = arguments;
window.moved = window.drawn = null;
for (const kind of ["keydown", "change"])
  document.addEventListener(kind, () => { window.moved ??= performance.now(); }, {capture: true, once: true});
new MutationObserver((_, observer) => image.decode().then(() => {
  window.drawn = performance.now(); observer.disconnect(); })).observe(image, {attributes: true});
"""
BYTES = """
const [image, done] = arguments, reader = new FileReader();
reader.onload = () => done(reader.result);
fetch(image.src).then(found => found.blob()).then(content => reader.readAsDataURL(content));
"""


class Page:
    """One notebook, opened in a JupyterLab."""

    def __init__(self, driver, address, name):
        self.driver, self.name = driver, name
        start, token = address.split("?")
        driver.get(f"{start.partition('/lab')[0]}/lab/tree/notebooks/{name}.ipynb?{token}&reset")
        self.until(lambda: self.all(".jp-Notebook .jp-CodeCell") and self.idle, 120, "is not ready")

    def all(self, selector):
        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    def until(self, holds, seconds, otherwise):
        """Raises TimeoutError."""
        end = time.monotonic() + seconds
        while not holds():
            if time.monotonic() > end:
                raise TimeoutError(f"{self.name} {otherwise} after {seconds} s")
            time.sleep(0.1)

    @property
    def idle(self):
        status = "".join(bar.get_attribute("textContent") for bar in self.all("#jp-main-statusbar"))
        return "| Idle" in status and not self.waiting

    def prompts(self, pattern):
        """How many cells have a prompt like that: "*" those that run or are to run, a digit those that were run."""
        script = "return [...document.querySelectorAll('.jp-InputPrompt')].map(each => each.textContent)"
        return sum(bool(re.search(pattern, prompt)) for prompt in self.driver.execute_script(script))

    @property
    def waiting(self):
        return self.prompts(r"\*")

    def choose(self, menu, command):
        """A command of a menu of the bar."""
        next(item for item in self.all(".lm-MenuBar-item") if item.text == menu).click()
        selector = f'.lm-Menu-item[data-command="{command}"]'
        self.until(lambda: self.all(selector), 20, f"has no {command}")
        self.all(selector)[0].click()

    def start(self):
        self.choose("Run", "runmenu:run-all")
        self.until(lambda: self.waiting, 30, "does not start")

    def stop(self):
        self.choose("Kernel", "kernelmenu:interrupt")

    def errors(self):
        """What is shown on red: errors, and what was written to stderr."""
        shown = self.all('.jp-Notebook [data-mime-type="application/vnd.jupyter.stderr"]')
        return [output.get_attribute("textContent") for output in shown]

    def controls(self):
        """The controls of the notebook by what stands beside them."""
        labels = [control.find_element(By.TAG_NAME, "label").text for control in self.all(CONTROLS)]
        return dict(zip(labels, self.all(CONTROLS), strict=True))

    def picture(self):
        return self.driver.execute_async_script(BYTES, self.all(PICTURE)[0])

    def move(self, control):
        """Seconds until another picture is there; None where there is one choice only."""
        self.driver.execute_script("arguments[0].scrollIntoView({block: 'start'})", control)
        before, kind = self.picture(), control.get_attribute("class")
        self.driver.execute_script(WATCH, self.all(PICTURE)[0])
        if "dropdown" in kind:
            menu = Select(control.find_element(By.TAG_NAME, "select"))
            others = [option.text for option in menu.options if not option.is_selected()]
            if not others:
                return None
            menu.select_by_visible_text(others[0])
        elif "checkbox" in kind:
            control.find_element(By.TAG_NAME, "input").send_keys(Keys.SPACE)
        else:
            control.find_element(By.CSS_SELECTOR, ".noUi-handle").send_keys(Keys.ARROW_RIGHT)
        self.until(lambda: self.driver.execute_script("return window.drawn"), 60, "shows the same picture")
        assert self.picture() != before, f"{self.name} shows the same picture"
        return self.driver.execute_script("return window.drawn - window.moved") / 1000

    def outside(self):
        """Controls that are, in part, beside the notebook's window."""
        script = """return [...document.querySelectorAll(arguments[0])].filter(each =>
            each.getBoundingClientRect().right > each.closest('.jp-Notebook').getBoundingClientRect().right + 1)"""
        return self.driver.execute_script(script, CONTROLS)
