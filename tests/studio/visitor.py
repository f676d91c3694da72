"""A person at the page: a real browser, driven by selenium."""

import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.request import urlopen

from selenium import webdriver
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
OPTIONS = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    "--window-size=1440,1000",
)
PATIENCE = 30
"""Seconds until something that should appear is given up."""


def browser(profile: Path) -> webdriver.Chrome:
    """A browser without a window."""
    options = webdriver.ChromeOptions()
    options.binary_location = str(CHROMIUM)
    for option in (*OPTIONS, f"--user-data-dir={profile}"):
        options.add_argument(option)
    return webdriver.Chrome(options, webdriver.ChromeService(str(DRIVER)))


class Visitor:
    """One tab."""

    def __init__(self, driver: webdriver.Chrome, url: str) -> None:
        """Open the page."""
        driver.switch_to.new_window("tab")
        self.driver, self.tab = driver, driver.current_window_handle
        driver.get(url)
        self.until(lambda: self.all("#edit"), "the page")

    def here(self) -> None:
        """Look at this tab."""
        self.driver.switch_to.window(self.tab)

    def leave(self) -> None:
        """Close it."""
        self.here()
        self.driver.close()
        self.driver.switch_to.window(self.driver.window_handles[0])

    def until(self, true: Callable[[], Any], what: str) -> Any:
        """Wait for something; what it is."""
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            if value := true():
                return value
            time.sleep(0.05)
        raise AssertionError(f"{what} did not come")

    def all(self, css: str) -> list[WebElement]:
        """What a selector finds."""
        return self.driver.find_elements(By.CSS_SELECTOR, css)

    def one(self, css: str) -> WebElement:
        """The first of what a selector finds, once it is there."""
        found: list[WebElement] = self.until(lambda: self.all(css), css)
        return found[0]

    def click(self, css: str) -> None:
        """Click on the first."""
        element = self.one(css)
        self.driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", element)
        element.click()

    def write(self, css: str, text: str) -> None:
        """Replace a text."""
        field = self.one(css)
        field.send_keys(Keys.CONTROL, "a")
        field.send_keys(text)

    def value(self, css: str) -> str:
        """What a field holds."""
        return str(self.one(css).get_property("value"))

    def upload(self, photo: Path) -> None:
        """Give the page a photo."""
        self.one("#photo input[type=file]").send_keys(str(photo))

    def prompts(self, source: str, *targets: str) -> None:
        """Say what the photo shows, and what the results should show."""
        self.write("#source textarea, #source input", source)
        self.write("#targets textarea", "\n".join(targets))

    def told(self, words: str) -> None:
        """Wait for words on the page."""
        body = self.one("body")
        self.until(lambda: words in body.text, words)

    def edited(self, act: Callable[[], Any]) -> str:
        """Do something that edits, and wait for the result: its command."""
        before = self.first_picture()
        act()
        self.until(lambda: self.first_picture() not in ("", before), "the result")
        return self.value("#command textarea")

    def first_picture(self) -> str:
        """The address of the last edit in the history."""
        images = self.all("#history .grid-container img")
        return str(images[0].get_attribute("src")) if images else ""

    def files(self) -> dict[str, bytes]:
        """What can be downloaded, by name."""
        links = [str(x.get_attribute("href")) for x in self.all("#files a[download]")]
        return {link.rpartition("/")[2].replace("%20", " "): content(link) for link in links}

    def drag(
        self,
        css: str,
        start: tuple[float, float],
        end: tuple[float, float],
        milliseconds: int = 250,
    ) -> None:
        """Drag over an element, from and to shares of its width and height; either move takes so
        long."""
        element = self.one(css)
        self.driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", element)
        width, height = element.rect["width"], element.rect["height"]

        def offset(at: tuple[float, float]) -> tuple[int, int]:
            return round(width * (at[0] - 0.5)), round(height * (at[1] - 0.5))

        actions = ActionChains(self.driver, milliseconds)
        actions.move_to_element_with_offset(element, *offset(start)).click_and_hold()
        actions.move_to_element_with_offset(element, *offset(end)).release().perform()


def content(address: str) -> bytes:
    """What lies at an address."""
    with urlopen(address, timeout=PATIENCE) as answer:
        return bytes(answer.read())
