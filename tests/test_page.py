"""The report: text of the data is never markup, its numbers are those of the tables, and in a browser it works."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import pytest

from saerl_lib.own import OwnConfig, plan_own_data
from saerl_lib.settings import Fields
from tests.real_files import rows, write_jsonl


class Reader(HTMLParser):
    """Tags with their attributes, and the text of every script."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "script":
            self.scripts.append("")

    def handle_data(self, data: str) -> None:
        if self.tags and self.tags[-1][0] == "script":
            self.scripts[-1] += data


EVIL = '</script><script>alert(1)</script><img src=x onerror="alert(2)"> <!-- &lt;b&gt; \u2028 {{ 7 * 7 }} \'"` </style>'
TRICK = r"$\href{javascript:alert(3)}{x}$ and $\htmlData{a=b}{c}$"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A plan of 122 rows; two are left over, and the prompts of some hold formulas, markup and a NUL."""
    records = rows(120) + rows(2, id="")
    for i, record in enumerate(records):
        record |= {"id": f"row-{i:03d}", "level": i % 5 + i / 100}
    records[7]["question"] = f"{TRICK} {EVIL}"
    for i in (8, 9):
        records[i] |= {"id": f"{EVIL[:40]}{i}", "question": f"{EVIL} {i}\0", "subject": EVIL, "level": 1}
    root = tmp_path_factory.mktemp("page")
    for i in range(10, 120):
        records[i]["question"] += " Let $x^{2}$ be it, \\(y_1\\) that; it costs $5 and not $6."
    source = write_jsonl(root / "<b>my<b>.jsonl", [*records, {"id": EVIL, "question": ""}])
    config = OwnConfig(fields=Fields(labels="level"), prompts_per_step=8, clusters=3, skip_bad_rows=True)
    return plan_own_data(source, root / "out", config).folder


def test_text_of_the_data_never_becomes_markup_and_no_request_is_allowed(folder: Path) -> None:
    page = (folder / "report.html").read_text(encoding="utf-8")
    reader = Reader(page)
    names = [name for name, _ in reader.tags]
    assert names.count("script") == 3 and not {"iframe", "a"} & set(names) and names.count("img") == 1 and "\0" not in page
    assert all(not key.startswith("on") for _, attributes in reader.tags for key in attributes)
    places = [a[key].partition(",")[0] for _, a in reader.tags for key in ("src", "href", "action") if key in a]
    assert places == ["data:", "data:image/png;base64"]
    policy = next(a["content"] for _, a in reader.tags if a.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'") and "http" not in policy and "script-src 'sha256-" in policy
    assert "script-src 'unsafe" not in policy and "innerHTML" not in page and "{{ 7" in page


def test_the_numbers_of_the_report_are_those_of_the_tables(folder: Path) -> None:
    page = (folder / "report.html").read_text(encoding="utf-8")
    values, scores = json.loads(Reader(page).scripts[0]), pd.read_parquet(folder / "scores.parquet")
    columns = ("x", "y", "id", "prompt", "answer", "rank", "label", "quality", "low", "high", "status")
    assert {len(values[name]) for name in columns} == {122}
    for name in ("id", "where", "cluster", "step", "slot", "position"):
        assert values[name] == scores[name].tolist(), name
    assert ["; ".join(values["parts"][i] for i in parts) for parts in values["reason"]] == scores["reason"].tolist()
    assert min(values["x"]) == 0 and max(values["x"]) == 9999 and EVIL[:60] in values["prompt"][8]
    cards = pd.read_csv(folder / "clusters.csv")
    assert page.count('<div class="card"') == len(cards) and cards["n"].sum() == 122
    assert "<b>123</b>rows read" in page and "1 of 123 rows; all are in left_out.csv." in page
    assert "<span class=option>--larger-is-easier</span>" in page, "no line breaks inside an option"
    record = json.loads((folder / "run.json").read_text())
    assert all(html.escape(c["title"]) in page for c in record["caveats"])
    assert record["left_out"] == {"left over": 2, "malformed": 1}


def test_questions_are_whole_while_there_is_room_and_cut_with_a_sign_of_it_when_there_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = [record | {"question": f"{record['question']} [asy]draw(A--B);[/asy]{' and so on' * 50}"} for record in rows(40)]
    source, held = write_jsonl(tmp_path / "my.jsonl", records), []
    for room in (10**6, 20_000):
        monkeypatch.setattr("saerl_lib.report.page.ROOM", (room, 0))
        out = plan_own_data(source, tmp_path / str(room), OwnConfig(prompts_per_step=8)).folder
        held.append(json.loads(Reader((out / "report.html").read_text(encoding="utf-8")).scripts[0]))
    whole, short = held
    assert whole["cut"] == [] and short["cut"] == list(range(40))
    assert whole["prompt"][0] == f"Add 3 and 11. [figure: 11 characters of Asymptote]{' and so on' * 50}"
    assert max(map(len, short["prompt"])) == 120 and short["prompt"][0].endswith("…") and short["answer"][7] == "7"


BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
BROWSER = next((found for name in BROWSERS if (found := shutil.which(name))), "")
OPTIONS = ("--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=4000", "--window-size=1100,900")
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
const tip = mapTip, outcome = {}, alone = data.x.findIndex((x) => x === 9999), from = place(alone);
send("pointermove", from);
outcome.hover = { shown: !tip.hidden, id: tip.querySelector("b").textContent };
send("wheel", from, { deltaY: -500 });
outcome.zoom = view.zoom;
byId("whole").click();
send("pointerdown", from); send("pointerup", from);
outcome.pinned = panel.textContent;
const card = document.querySelectorAll(".card")[1];
card.querySelector("button").click();
outcome.cluster = { number: Number(card.dataset.cluster), count: byId("count").textContent };
card.querySelector("button").click();
byId("find").value = data.id[25];
byId("find").dispatchEvent(new Event("input"));
outcome.found = [...body.rows].map((row) => row.cells[0].textContent);
outcome.formulas = [...body.rows[0].cells[1].querySelectorAll("annotation")].map((item) => item.textContent);
body.rows[0].click();
outcome.reasons = [...panel.querySelectorAll("li")].map((item) => item.textContent);
[...panel.querySelectorAll("button")].at(-1).click();
outcome.step = shown.map((i) => data.id[i]);
byId("find").value = data.prompt[30].split(" ").slice(0, 4).reverse().join(" ");
byId("find").dispatchEvent(new Event("input"));
outcome.words = shown.includes(30);
byId("find").value = "";
heads[3].querySelector("button").click();
outcome.sorted = [...body.rows].slice(0, 5).map((row) => parseFloat(row.cells[3].textContent));
const column = byId("sort");
for (const way of ["6 ↓", "6 ↑"]) {
  column.value = way;
  column.dispatchEvent(new Event("change"));
  outcome[way] = [data.step[shown[0]], data.step[shown.at(-1)]];
}
show(30, body.rows[1]);
panel.querySelector("button").click();
outcome.back = document.activeElement === body.rows[1];
outcome.columns = heads.filter((head) => getComputedStyle(head).display !== "none").map((head) => head.textContent);
const weave = carpet.getBoundingClientRect();
const thread = { clientX: weave.left + weave.width * (3.5 / T), clientY: weave.top + weave.height * (2.5 / B), bubbles: true };
carpet.dispatchEvent(new PointerEvent("pointermove", thread));
outcome.woven = woven.querySelector("b").textContent.split(" · ")[0];
outcome.faults = faults;
add(document.body, "pre", JSON.stringify(outcome)).id = "outcome";
</script>"""


def browse(page: str, root: Path) -> str:
    """The document that the browser makes of a page."""
    (root / "page.html").write_text(page, encoding="utf-8")
    command = [BROWSER, *OPTIONS, f"--user-data-dir={root / 'profile'}", "--dump-dom", (root / "page.html").as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=180).stdout


@pytest.mark.skipif(not BROWSER, reason="no Chromium on PATH: the report's page is not opened")
def test_in_a_browser_the_page_runs_and_hover_zoom_cards_and_search_work(folder: Path, tmp_path: Path) -> None:
    page = (folder / "report.html").read_text(encoding="utf-8")
    names = [name for name, _ in Reader(browse(page, tmp_path)).tags]
    assert names.count("tr") > 50 and names.count("math") > 50 and names.count("img") == 1 and "a" not in names
    page = re.sub("script-src [^;]*;", "script-src 'unsafe-inline';", page, count=1)  # for the scripts of this test
    page = page.replace("<body>", f"<body>{BEFORE}", 1)
    shown = browse(page[: page.rindex("</body>")] + ACTIONS + "</body></html>", tmp_path)
    outcome = json.loads(html.unescape(re.findall(r'<pre id="outcome">(.*?)</pre>', shown, re.DOTALL)[0]))
    scores = pd.read_parquet(folder / "scores.parquet").set_index("id")
    name = outcome["hover"]["id"].split(" · ")[0]
    assert outcome["faults"] == [] and outcome["zoom"] > 2
    assert outcome["hover"] == {"shown": True, "id": f"{name} · cluster {scores.loc[name, 'cluster']}"}
    assert name in outcome["pinned"] and all(part in outcome["pinned"] for part in scores.loc[name, "reason"].split("; "))
    size = int((scores["cluster"] == outcome["cluster"]["number"]).sum())
    assert outcome["cluster"]["count"].startswith(f"{size} of 122 rows") and outcome["found"] == ["row-025"]
    assert outcome["formulas"] == ["x^{2}", "y_1"]  # and no formula between two prices
    assert outcome["reasons"] == scores.loc["row-025", "reason"].split("; ")
    assert outcome["step"] == scores.query(f"step == {scores.loc['row-025', 'step']}").sort_values("slot").index.tolist()
    assert outcome["words"], "words in any order"
    assert outcome["sorted"] == sorted(outcome["sorted"]) and outcome["back"]
    assert outcome["6 ↓"] == [scores["step"].max(), -1] and outcome["6 ↑"] == [0, -1], "rows without a step stay last"
    assert outcome["columns"] == ["id", "question", "cluster", "difficulty", "label", "step", "company", "why"]
    assert [outcome["woven"]] == scores.index[(scores["step"] == 3) & (scores["slot"] == 2)].tolist()
