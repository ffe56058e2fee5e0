"""A real browser: Chromium without a window and without a network, spoken to through a pipe."""

import fcntl
import json
import os
import shutil
import subprocess
import sys
import time
from base64 import b64decode

import pytest

# Chromium listens on descriptor 3 and answers on 4.
_EXEC = (
    "import os, sys; os.dup2(int(sys.argv[1]), 3); os.dup2(int(sys.argv[2]), 4); "
    "os.execvp(sys.argv[3], sys.argv[3:])"
)
# WebGL2 by a software renderer; every host name unknown, and no proxy that could know one.
_FLAGS = [
    "--headless=new",
    "--remote-debugging-pipe",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-dev-shm-usage",
    "--no-proxy-server",
    "--use-gl=angle",
    "--use-angle=swiftshader",
    "--enable-unsafe-swiftshader",
]
_NO_HOST = "--host-resolver-rules=MAP * ~NOTFOUND"
_PATIENCE_S = 60


class Browser:
    """One tab. What pages request, log and fail at is kept in `requests`, `messages` and `errors`."""

    def __init__(self, program, profile, flags=()):
        listens, self._out = (_high(fd) for fd in os.pipe())
        self._in, answers = (_high(fd) for fd in os.pipe())
        # The sandbox needs a user other than root, and namespaces that containers seldom have.
        command = [program, *_FLAGS, _NO_HOST, "--no-sandbox", f"--user-data-dir={profile}", *flags]
        self._process = subprocess.Popen(
            [sys.executable, "-c", _EXEC, str(listens), str(answers), *command],
            pass_fds=(listens, answers),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(listens)
        os.close(answers)
        self._buffer, self._number, self._session = b"", 0, None
        self.requests, self.messages, self.errors, self._contexts = [], [], [], {}
        target = self._call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self._call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in "Page", "Runtime", "Network", "Log":
            self._call(f"{domain}.enable")

    def open(self, url, width=1280, height=900, scheme="light", before=""):
        """Goes to a page, runs a script `before` its own, and waits until it is loaded."""
        for told in self.requests, self.messages, self.errors:
            told.clear()
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self._call("Emulation.setDeviceMetricsOverride", **size)
        feature = {"name": "prefers-color-scheme", "value": scheme}
        self._call("Emulation.setEmulatedMedia", features=[feature])
        script = self._call("Page.addScriptToEvaluateOnNewDocument", source=before)["identifier"]
        self._call("Page.navigate", url=url)
        self.wait_for(f"location.href === {json.dumps(url)} && document.readyState === 'complete'")
        self._call("Page.removeScriptToEvaluateOnNewDocument", identifier=script)

    def run(self, script, **where):
        """The value of an expression in the page; promises are waited for."""
        where = {"awaitPromise": True, "returnByValue": True, **where}
        answer = self._call("Runtime.evaluate", expression=script, **where)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def sandbox(self):
        """Where scripts of a frame run that has no origin: `run(script, **sandbox())`."""
        end = time.monotonic() + _PATIENCE_S
        while not (found := [number for number, origin in self._contexts.items() if origin == "://"]):
            assert time.monotonic() < end, f"no such frame among {self._contexts}; {self.errors}"
            self.run("0")  # hears what has happened
            time.sleep(0.05)
        return {"contextId": found[-1]}

    def wait_for(self, script, **where):
        """Waits until an expression is true."""
        end = time.monotonic() + _PATIENCE_S
        while not self.run(f"Boolean({script})", **where):
            assert time.monotonic() < end, f"never true: {script}; {self.errors} {self.messages}"
            time.sleep(0.05)

    def press(self, key):
        """Presses and lets go of a key such as `Enter` or `Tab`."""
        text = {"Enter": "\r", " ": " "}.get(key, "")
        for kind in "keyDown", "keyUp":
            self._call(
                "Input.dispatchKeyEvent", type=kind, key=key, code=key, text=text * (kind == "keyDown")
            )

    def screenshot(self, **options):
        """PNG of what is shown."""
        return b64decode(self._call("Page.captureScreenshot", format="png", **options)["data"])

    def close(self):
        """Ends the browser."""
        self._process.kill()
        self._process.wait()
        os.close(self._out)
        os.close(self._in)

    def _call(self, method, **arguments):
        self._number += 1
        message = {"id": self._number, "method": method, "params": arguments}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._read()
            if answer.get("id") == self._number:
                assert "error" not in answer, answer
                return answer["result"]
            self._note(answer)

    def _read(self):
        while b"\0" not in self._buffer:
            chunk = os.read(self._in, 2**20)
            assert chunk, "the browser has ended"
            self._buffer += chunk
        line, _, self._buffer = self._buffer.partition(b"\0")
        return json.loads(line)

    def _note(self, event):
        content = event.get("params", {})
        match event["method"]:
            case "Network.requestWillBeSent":
                self.requests.append(content["request"]["url"][:200])
            case "Runtime.consoleAPICalled":
                said = " ".join(str(part.get("value", part.get("description"))) for part in content["args"])
                (self.errors if content["type"] in ("error", "assert") else self.messages).append(said)
            case "Runtime.executionContextCreated":
                self._contexts[content["context"]["id"]] = content["context"]["origin"]
            case "Runtime.executionContextDestroyed":
                self._contexts.pop(content["executionContextId"], None)
            case "Runtime.executionContextsCleared":
                self._contexts.clear()
            case "Runtime.exceptionThrown":
                self.errors.append(str(content["exceptionDetails"]))
            case "Log.entryAdded" if content["entry"]["level"] in ("error", "warning"):
                self.errors.append(content["entry"]["text"])


def _high(descriptor):
    """The same pipe under a number that is neither 3 nor 4."""
    copy = fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, 10)
    os.close(descriptor)
    return copy


def _start(tmp_path_factory, *flags):
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("needs a Chromium (`apt-get install chromium`); none is on the path")
    return Browser(program, tmp_path_factory.mktemp("chromium"), flags)


@pytest.fixture(scope="session")
def browser(tmp_path_factory):
    """Chromium with WebGL2; tests that need it are skipped where it is absent."""
    browser = _start(tmp_path_factory)
    yield browser
    browser.close()


@pytest.fixture(scope="module")
def local_browser(tmp_path_factory):
    """The same, for pages that this machine serves itself; every other host stays unknown."""
    flags = f"{_NO_HOST}, EXCLUDE 127.0.0.1", "--disable-features=IsolateSandboxedIframes"
    browser = _start(tmp_path_factory, *flags)
    yield browser
    browser.close()
