"""Queries of a page in a browser, by script."""

import json
import shutil
import subprocess
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
NEEDS_CHROMIUM = pytest.mark.skipif(
    CHROMIUM is None, reason="needs Chromium (Debian: apt-get install chromium)"
)
PROBE = """<body><iframe src="/page" style="border:0;width:{width}px;height:900px"></iframe>
<script>
onload = async () => {{
  const said = {{}};
  try {{
    const page = document.querySelector("iframe").contentDocument;
    const all = selector => [...page.querySelectorAll(selector)];
    said.ready = page.documentElement.dataset.ready;
    said.overflow = page.documentElement.scrollWidth - {width};
    {questions}
  }} catch (error) {{ said.error = String(error.stack); }}
  await fetch("/said", {{ method: "POST", body: JSON.stringify(said) }});
}};
</script></body>"""


class Server(ThreadingHTTPServer):
    """Serves a page and the script that queries it, and receives the answers."""

    def __init__(self, page: Path, probe: str):
        super().__init__(("127.0.0.1", 0), Handler)
        self.contents = {"/page": page.read_bytes(), "/": probe.encode()}
        self.asked: list[str] = []
        self.said: dict = {}
        self.answered = threading.Event()


class Handler(BaseHTTPRequestHandler):
    server: Server

    def log_message(self, *arguments: object) -> None:
        pass

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        content = self.server.contents.get(self.path)
        self.send_response(404 if content is None else 200)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.end_headers()
        self.wfile.write(content or b"")

    def do_POST(self) -> None:
        self.server.said = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.send_response(204)
        self.end_headers()
        self.server.answered.set()


def ask(page: Path, width: int, questions: str) -> dict:
    """Answers of a script, which may await, about a page of a width in pixels.

    Fails unless the page is ready, is as wide, loads nothing and has no errors.
    """
    server = Server(page, PROBE.format(width=width, questions=questions))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    options = ["--headless=new", "--disable-gpu", "--no-sandbox", "--remote-debugging-port=0"]
    options += ["--autoplay-policy=no-user-gesture-required", "--window-size=1400,1000"]
    options += [f"--user-data-dir={page.parent.parent}/profile", "--enable-logging=stderr"]
    log = page.parent.parent / "browser.log"
    with log.open("wb") as output:
        browser = subprocess.Popen(
            [str(CHROMIUM), *options, f"http://127.0.0.1:{server.server_port}/"], stdout=output, stderr=output
        )
        try:
            assert server.answered.wait(120), log.read_text(errors="replace")[-2000:]
        finally:
            browser.terminate()
            browser.wait()
            server.shutdown()
            server.server_close()
    said = server.said
    assert "error" not in said, said["error"]
    assert said["ready"] == "yes" and said["overflow"] <= 0
    assert set(server.asked) <= {"/", "/page", "/favicon.ico"}
    messages = [line for line in log.read_text(errors="replace").splitlines() if ":CONSOLE" in line]
    assert not messages, messages
    return said
