"""A headless Chromium, driven over WebDriver (W3C)."""

import contextlib
import json
import time
import urllib.request

import kit

ELEMENT = "element-6066-11e4-a52e-4f735466cecf"
PATIENCE = 20


class Browser:
    def __init__(self, session):
        self.session = session

    @classmethod
    @contextlib.contextmanager
    def start(cls, directory):
        """Starts chromedriver and one browser, whose profile is in the directory."""
        [port] = kit.free_ports(1)
        with open(f"{directory}/chromedriver.log", "wb") as log, kit.process(
            ["chromedriver", f"--port={port}"], port, stdout=log, stderr=log
        ):
            arguments = ["--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={directory}/profile"]
            wanted = {"capabilities": {"alwaysMatch": {"goog:chromeOptions": {"args": arguments}}}}
            session = call("POST", f"http://127.0.0.1:{port}/session", wanted)["sessionId"]
            browser = cls(f"http://127.0.0.1:{port}/session/{session}")
            try:
                yield browser
            finally:
                call("DELETE", browser.session)

    def open(self, url):
        call("POST", f"{self.session}/url", {"url": url})

    def elements(self, css):
        found = call("POST", f"{self.session}/elements", {"using": "css selector", "value": css})
        return [f"{self.session}/element/{one[ELEMENT]}" for one in found]

    def text(self, css):
        [element] = self.elements(css)
        return call("GET", f"{element}/text")

    def texts(self, css):
        return [call("GET", f"{element}/text") for element in self.elements(css)]

    def write(self, css, text):
        [element] = self.elements(css)
        call("POST", f"{element}/value", {"text": text})

    def click(self, css):
        """Clicks what loads another page, and waits for it."""
        call("POST", f"{self.session}/execute/sync", {"script": "window.isOld = true", "args": []})
        [element] = self.elements(css)
        call("POST", f"{element}/click", {})
        deadline = time.monotonic() + PATIENCE
        script = "return !window.isOld && document.readyState === 'complete'"
        while not call("POST", f"{self.session}/execute/sync", {"script": script, "args": []}):
            assert time.monotonic() < deadline, f"a click on {css} loads no page"
            time.sleep(0.02)

    def cookies(self):
        return {cookie["name"]: cookie["value"] for cookie in call("GET", f"{self.session}/cookie")}


def call(method, url, body=None):
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"}, method=method)
    with urllib.request.urlopen(request, timeout=kit.PATIENCE) as response:
        return json.load(response)["value"]
