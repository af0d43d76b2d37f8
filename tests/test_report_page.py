"""The report of one's own data in a real browser: hover, zoom, drag, cluster cards, search.

Skipped where Chromium is not installed.
"""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from saerl_lib.own import Fields, OwnConfig, plan_own_data

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
BROWSER = next((found for name in BROWSERS if (found := shutil.which(name))), None)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no Chromium on PATH: the report's page is not opened")
OPTIONS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--virtual-time-budget=4000", "--window-size=1100,900",
)  # fmt: skip
BEFORE = """<script>
const faults = [];
addEventListener("error", (event) => faults.push(event.message));
addEventListener("securitypolicyviolation", (event) => faults.push(event.violatedDirective));
</script>"""
ACTIONS = """<script>
// Events that a script makes have no pointer behind them, which capture would ask for.
canvas.setPointerCapture = () => {};
const send = (kind, [px, py], more = {}) => {
  const box = canvas.getBoundingClientRect();
  const where = { clientX: box.left + px, clientY: box.top + py, pointerId: 1, bubbles: true };
  canvas.dispatchEvent(new (kind === "wheel" ? WheelEvent : PointerEvent)(kind, { ...where, ...more, cancelable: true }));
};
const outcome = {}, at = (i) => place(i, scale());
const alone = data.x.findIndex((x) => x === 9999), from = at(alone);
send("pointermove", from);
outcome.hover = { shown: !tip.hidden, id: tip.querySelector("b").textContent, text: tip.textContent };
send("wheel", from, { deltaY: -500 });
outcome.zoom = { factor: view.zoom, moved: Math.hypot(at(alone)[0] - from[0], at(alone)[1] - from[1]) };
const middle = [canvas.clientWidth / 2, canvas.clientHeight / 2], before = view.x;
send("pointerdown", middle); send("pointermove", [middle[0] + 30, middle[1]]); send("pointerup", [middle[0] + 30, middle[1]]);
outcome.dragged = view.x - before;
byId("whole").click();
outcome.whole = [view.zoom, view.x, view.y];
send("pointerdown", from); send("pointerup", from);
outcome.pinned = byId("panel").textContent;
send("pointerleave", from);
outcome.left = tip.hidden;
const card = document.querySelectorAll(".card")[1];
card.querySelector("button").click();
outcome.cluster = { number: Number(card.dataset.cluster), count: byId("count").textContent };
outcome.cluster.pressed = card.querySelector("button").ariaPressed;
card.querySelector("button").click();
byId("find").value = data.id[5];
byId("find").dispatchEvent(new Event("input"));
outcome.found = [...byId("rows").tBodies[0].rows].map((row) => row.cells[0].textContent);
byId("rows").tBodies[0].rows[0].click();
outcome.reasons = [...byId("panel").querySelectorAll("li")].map((item) => item.textContent);
byId("colour").value = "step";
byId("colour").dispatchEvent(new Event("change"));
draw();
const pixels = pen.getImageData(0, 0, canvas.width, canvas.height).data;
outcome.drawn = pixels.filter((value, i) => i % 4 === 3 && value > 0).length;
outcome.faults = faults;
const record = document.createElement("pre");
record.id = "outcome";
record.textContent = JSON.stringify(outcome);
document.body.append(record);
</script>"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("page")
    rows = [
        {"id": f"row-{i:03d}", "question": f"What is {i} {'plus' if i % 2 else 'times the square of'} {i * i % 17}?",
         "answer": str(i), "level": i % 5 + i / 100}
        for i in range(120)
    ]  # fmt: skip
    source = root / "mine.jsonl"
    source.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    return plan_own_data(str(source), root / "out", OwnConfig(fields=Fields(labels="level"), prompts_per_step=16)).folder


@pytest.fixture(scope="module")
def outcome(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What happened in the browser: the page with a script of events at its end, as the browser gives it back."""
    page = (folder / "report.html").read_text(encoding="utf-8")
    root = tmp_path_factory.mktemp("browser")
    file = root / "page.html"
    file.write_text(page.replace("<body>", f"<body>{BEFORE}", 1).replace("</body>", f"{ACTIONS}</body>", 1), encoding="utf-8")
    command = [str(BROWSER), *OPTIONS, f"--user-data-dir={root / 'profile'}", "--dump-dom", file.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=180)
    found = re.search(r'<pre id="outcome">(.*?)</pre>', done.stdout, re.DOTALL)
    assert found, f"the script did not end; the browser said: {done.stderr[-800:]}"
    return json.loads(html.unescape(found.group(1)))


def test_no_script_fails_and_no_request_is_made(outcome: dict[str, Any]) -> None:
    assert outcome["faults"] == [] and outcome["drawn"] > 500


def test_a_point_under_the_pointer_shows_its_row(outcome: dict[str, Any], folder: Path) -> None:
    scores = pd.read_csv(folder / "scores.csv", dtype={"id": str}).set_index("id")
    name = outcome["hover"]["id"].split(" · ")[0]
    assert outcome["hover"]["shown"] and outcome["hover"]["id"] == f"{name} · cluster {scores.loc[name, 'cluster']}"
    assert "What is" in outcome["hover"]["text"] and outcome["left"]
    assert name in outcome["pinned"] and all(part in outcome["pinned"] for part in scores.loc[name, "reason"].split("; "))


def test_the_map_zooms_about_the_pointer_and_is_dragged(outcome: dict[str, Any]) -> None:
    assert outcome["zoom"]["factor"] > 2 and outcome["zoom"]["moved"] < 1
    assert outcome["dragged"] == pytest.approx(30) and outcome["whole"] == [1, 0, 0]


def test_cards_and_search_choose_rows(outcome: dict[str, Any], folder: Path) -> None:
    scores = pd.read_csv(folder / "scores.csv", dtype={"id": str})
    size = int((scores["cluster"] == outcome["cluster"]["number"]).sum())
    assert outcome["cluster"]["count"].startswith(f"{size} of 120 rows") and outcome["cluster"]["pressed"] == "true"
    assert outcome["found"] == ["row-005"]
    assert outcome["reasons"] == scores.set_index("id").loc["row-005", "reason"].split("; ")
