"""Clicks through the example in a headless Chromium: one basket and one log-in in four languages.

    python3 tests/clients/example.py --binary PATH
"""

import argparse
import re
import subprocess
import sys
import tempfile

import kit
from browser import Browser

PAGES = {"php": "PHP", "django": "Django", "flask": "Flask", "express": "Express"}


def click_through(browser, url):
    def visit(page):
        browser.click(f'nav a[href="/{page}/"]')

    def submit(action, field=None, text=""):
        form = f'form[action="?do={action}"]'
        if field:
            browser.write(f"{form} input[name={field}]", text)
        browser.click(f"{form} button")

    def check(items, user):
        for page, language in PAGES.items():
            visit(page)
            assert browser.text("h1") == f"Basket in {language}"
            found = browser.texts("#basket li"), browser.text("#user")
            assert found == (items, user), f"{language}: {found}, not {(items, user)}"

    browser.open(url)
    assert browser.text("h1") == "Basket in PHP", "/ does not lead to the first page"
    check([], "nobody")
    assert browser.cookies() == {}, "reading has made a session"
    items = []
    for page, language in PAGES.items():
        visit(page)
        submit("add", "item", f"tea & <b>{page}</b>")
        items.append(f"tea & <b>{page}</b> ({language})")
        check(items, "nobody")
    for page in PAGES:
        # Each page logs in, and the next one logs out.
        name = f"Zoë of {page}"
        visit(page)
        token = browser.cookies()
        submit("login", "name", name)
        assert browser.cookies() != token, "the log-in does not rotate"
        check(items, name)
        visit(list(PAGES)[(list(PAGES).index(page) + 1) % len(PAGES)])
        submit("logout")
        check([], "nobody")
        submit("add", "item", "milk")
        items = ["milk (Express)"]
    assert list(browser.cookies()) == ["__Host-id"], browser.cookies()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--binary", required=True, help="the program")
    options = parser.parse_args()
    start = [kit.CLIENTS / "example/start", "--free-ports", "--binary", options.binary]
    with subprocess.Popen(start, stdout=subprocess.PIPE, text=True) as example:
        try:
            line = example.stdout.readline()
            url = re.match(r"http://localhost:\d+/", line)
            assert url, f"the example did not start: {line}"
            with tempfile.TemporaryDirectory() as directory, Browser.start(directory) as browser:
                click_through(browser, url[0])
        finally:
            example.terminate()
    print("the example was clicked through in Chromium")
    return 0


if __name__ == "__main__":
    sys.exit(main())
