"""What a page shows in a browser, asked by script."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
NEEDS_CHROMIUM = pytest.mark.skipif(
    CHROMIUM is None, reason="needs Chromium (Debian: apt-get install chromium)"
)
PROBE = """<body><iframe src="{page}" style="border:0;width:{width}px;height:900px"></iframe>
<pre id="said"></pre>
<script>
onload = () => {{
  const page = document.querySelector("iframe").contentDocument, said = {{}};
  const all = selector => [...page.querySelectorAll(selector)];
  said.ready = page.documentElement.dataset.ready;
  said.overflow = page.documentElement.scrollWidth - {width};
{questions}
  document.getElementById("said").textContent = JSON.stringify(said);
}};
</script></body>"""


def ask(page: Path, width: int, questions: str) -> dict:
    """What a script finds out about a page of so many pixels; fails unless it is ready and as wide."""
    probe = page.parent.parent / "probe.html"
    probe.write_text(PROBE.format(page=page.relative_to(probe.parent), width=width, questions=questions))
    options = ["--headless=new", "--disable-gpu", "--no-sandbox", "--allow-file-access-from-files"]
    options += [
        f"--user-data-dir={probe.parent}/profile",
        "--virtual-time-budget=5000",
        "--window-size=1400,1000",
    ]
    dumped = subprocess.run(
        [str(CHROMIUM), *options, "--dump-dom", probe.as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    found = re.search(r'<pre id="said">(\{.*?\})</pre>', dumped.stdout)
    assert found, dumped.stdout[-2000:] + dumped.stderr[-2000:]
    said = json.loads(found[1].replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&"))
    assert said["ready"] == "yes" and said["overflow"] <= 0
    return said
