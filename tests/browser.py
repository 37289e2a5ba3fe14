"""Headless Chromium, driven through chromedriver by its own protocol (W3C WebDriver), for tests of pages."""

import base64
import json
import re
import shutil
import subprocess
import urllib.error
import urllib.request

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
ARGUMENTS = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    "--disable-dev-shm-usage",
]
KEYS = {
    "Escape": "\ue00c", "End": "\ue010", "Home": "\ue011",
    "Left": "\ue012", "Up": "\ue013", "Right": "\ue014", "Down": "\ue015", "Tab": "\ue004",
}  # fmt: skip


class Browser:
    """One browser with one page, in a new profile in ``folder``."""

    def __init__(self, folder):
        self.process = subprocess.Popen(
            [DRIVER, "--port=0"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        for line in self.process.stdout:
            if found := re.search(r"successfully on port (\d+)", line):
                break
        self.address = f"http://127.0.0.1:{found[1]}"
        self.opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        options = {"binary": CHROMIUM, "args": [*ARGUMENTS, f"--user-data-dir={folder}"]}
        wanted = {
            "goog:chromeOptions": options,
            "goog:loggingPrefs": {"performance": "ALL", "browser": "ALL"},
        }
        made = self._send("POST", "/session", {"capabilities": {"alwaysMatch": wanted}})
        self.session = f"/session/{made['sessionId']}"

    def _send(self, method, path, body=None):
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.address + path, data, method=method)
        try:
            with self.opener.open(request, timeout=60) as answer:
                return json.load(answer)["value"]
        except urllib.error.HTTPError as error:
            raise RuntimeError(error.read().decode()) from error

    def close(self):
        self._send("DELETE", self.session)
        self.process.terminate()
        self.process.wait(10)

    def open(self, path, width=1400, height=1000, scheme="dark"):
        """Load a file at a size, and forget what was logged before."""
        mobile = width < 600
        self.tell(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=mobile,
        )
        self.tell("Emulation.setTouchEmulationEnabled", enabled=mobile, maxTouchPoints=1)  # no hovering
        media = [
            {"name": "prefers-color-scheme", "value": scheme},
            {"name": "prefers-reduced-motion", "value": "reduce"},
        ]
        self.tell("Emulation.setEmulatedMedia", features=media)
        for kind in ("performance", "browser"):
            self.log(kind)
        self._send("POST", f"{self.session}/url", {"url": path.resolve().as_uri()})

    def tell(self, command, **parameters):
        """Send a command of Chrome's own protocol."""
        return self._send("POST", f"{self.session}/goog/cdp/execute", {"cmd": command, "params": parameters})

    def run(self, script, *arguments):
        """Run JavaScript in the page, and return its value."""
        return self._send("POST", f"{self.session}/execute/sync", {"script": script, "args": list(arguments)})

    def text(self, selector):
        """The visible text of the first element that matches."""
        return self.run("return document.querySelector(arguments[0]).innerText", selector)

    def log(self, kind):
        return self._send("POST", f"{self.session}/se/log", {"type": kind})

    def requests(self):
        """Addresses that were asked for since the page was opened, but for those that its policy stopped."""
        messages = [json.loads(entry["message"])["message"] for entry in self.log("performance")]
        by = {"Network.requestWillBeSent": {}, "Network.loadingFailed": {}}
        for message in messages:
            if message["method"] in by:
                by[message["method"]][message["params"]["requestId"]] = message["params"]
        asked, failed = by.values()
        stopped = {key for key, told in failed.items() if told.get("blockedReason") == "csp"}
        return [told["request"]["url"] for key, told in asked.items() if key not in stopped]

    def press(self, *keys):
        """Press keys, one after the other: names of ``KEYS``, or letters."""
        actions = [
            {"type": kind, "value": KEYS.get(key, key)} for key in keys for kind in ("keyDown", "keyUp")
        ]
        self._act({"type": "key", "id": "keys", "actions": actions})

    def point(self, x, y, click=False):
        """Move the mouse to a place in the window, and click there."""
        self._point("mouse", x, y, click)

    def tap(self, x, y):
        """Touch a place in the window."""
        self._point("touch", x, y, True)

    def _point(self, kind, x, y, press):
        actions = [{"type": "pointerMove", "x": round(x), "y": round(y), "duration": 0}]
        actions += [{"type": done, "button": 0} for done in ("pointerDown", "pointerUp")] * press
        self._act({"type": "pointer", "id": kind, "parameters": {"pointerType": kind}, "actions": actions})

    def _act(self, source):
        self._send("POST", f"{self.session}/actions", {"actions": [source]})

    def picture(self, path, whole=True):
        """Write a screenshot as PNG, of the whole page or the window."""
        options = {"format": "png", "captureBeyondViewport": whole}
        if whole:
            width, height = self.run(
                "const d = document.documentElement; return [d.clientWidth, d.scrollHeight]"
            )
            options["clip"] = {"x": 0, "y": 0, "width": width, "height": height, "scale": 1}
        path.write_bytes(base64.b64decode(self.tell("Page.captureScreenshot", **options)["data"]))
