"""The report is complete, valid and self-contained, whatever the checks found."""

import json
import re
from collections import Counter
from html.parser import HTMLParser

import numpy as np
import pytest

from figures import style
from theory_checks import coverage, machine, page, report
from theory_checks.curves import RAMPS, drawing, ramp
from theory_checks.registry import Curve, Evidence
from theory_checks.runner import ControlResult, Result
from theory_checks.strips import Axis
from theory_checks.typeset import claimed
from theory_checks.writing import drawn_mathematics, mathematics, number

ABOUT = {
    "device": "gpu: NVIDIA <H100>",
    "dtype": "float64",
    "matmul_precision": "highest",
    "versions": {"python": "3.11.9", "jax": "0.10.0"},
    "settings": {"size": "small", "target": "a.npy & b", "singular_values": [2.5, 1.0]},
    "default_matmul": "relative error 3e-04 in float32, a control of every precise check",
    "seeds": [0, 1, 2],
}
VOID = {"meta", "br", "input"}


def _evidence(errors, tolerance=1e-6, **values):
    return Evidence(
        errors=np.asarray(errors),
        tolerance=tolerance,
        reason="rounding",
        quantity="relative Frobenius norm",
        predicted=values.get("predicted", {"σ": [1.0, 2.0]}),
        measured=values.get("measured", {"σ": [1.0, np.nan]}),
    )


def _curves():
    x = np.linspace(0, 5, 1000)
    many = np.exp(-np.outer(x, np.arange(1, 13)))
    yield Curve("many & decaying <lines>", x, many, 1.001 * many, ylog=True)
    yield Curve("one line", x, x**2, x**2, xlog=True, ylog=True)
    yield Curve("nothing to show on a log axis", x, 0 * x, np.nan * x, ylog=True)


@pytest.fixture(scope="module")
def results():
    broken = ControlResult("ε <large>", 0.3, True)
    blown_up = ControlResult("diverged", np.inf, True)
    missed = ControlResult("too weak", 1e-7, False)

    def result(name, outcome, **values):
        return Result(name, f"claim of {name}", "2.1, 3.4", outcome, seconds=1.26, **values)

    return [
        result(
            "good",
            "pass",
            controls=(broken, blown_up),
            evidence=_evidence([1e-9, 2e-9, 0.0]),
            curves=tuple(_curves()),
        ),
        result("exact", "pass", controls=(broken,), evidence=_evidence([0.0], tolerance=0.0)),
        result(
            "a-rather-long-name-of-a-check-that-fails",
            "fail",
            controls=(broken,),
            evidence=_evidence([1e-9, np.nan], predicted=1.0, measured=[1.0, np.inf]),
            detail="error inf > 1e-06",
        ),
        result("weak", "vacuous", controls=(missed,), evidence=_evidence([1e-9]), detail="passes"),
        result("<b>odd</b>", "error", detail="ValueError: [red]r <script>alert(1)</script>[/red]"),
    ]


class _Page(HTMLParser):
    """Collects ids, links and text, and refuses tags that do not nest."""

    def __init__(self, text):
        super().__init__()
        self.open, self.ids, self.targets, self.tags, self.text = [], Counter(), set(), set(), ""
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.handle_startendtag(tag, attrs)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.add(tag)
        for name, value in attrs:
            if name == "id":
                self.ids[value] += 1
            elif name in ("src", "href", "xlink:href", "srcset", "data"):
                self.targets.add((tag, value))
            self.targets |= {(tag, f"#{used}") for used in re.findall(r"url\(#(.*?)\)", value or "")}

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def _write(folder, results, about=ABOUT):
    html, data = report.write(folder, about, results)
    text = html.read_text(encoding="utf-8")

    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    return text, json.loads(data.read_text(encoding="utf-8"), parse_constant=refuse)


@pytest.fixture(scope="module")
def written(tmp_path_factory, results):
    return _write(tmp_path_factory.mktemp("report"), results)


def test_json_is_strict_and_holds_every_check(written, results):
    _, data = written
    assert data["complete"] is True
    assert data["device"] == ABOUT["device"]
    assert [entry["name"] for entry in data["checks"]] == [result.name for result in results]
    assert data["checks"][2]["error"] == "inf"
    verdict = data["verdict"]
    counts = ("checks", "passed", "failed", "vacuous", "errors", "controls", "controls_refuted")
    assert [verdict[count] for count in counts] == [5, 2, 1, 1, 1, 5, 4]
    assert verdict["ok"] is False


def test_page_is_well_formed_and_its_ids_are_unique_and_resolve(written):
    page = _Page(written[0])
    assert set(page.ids.values()) == {1}
    anchors = {value[1:] for _, value in page.targets if value.startswith("#")}
    assert anchors <= set(page.ids)


def test_page_needs_nothing_but_itself(written):
    text, _ = written
    page = _Page(text)
    assert not page.tags & {"script", "link", "img", "iframe", "object", "embed"}
    outside = {(tag, value) for tag, value in page.targets if not value.startswith("#")}
    assert outside == {("a", "https://arxiv.org/abs/2311.05061")}
    assert "@import" not in text
    assert "url(http" not in text


def test_page_has_a_row_for_each_statement_with_links_to_its_checks(tmp_path, results):
    from theory_checks.coverage import STATEMENTS, rows
    from theory_checks.registry import Check

    checks = [Check(name, "", "2.1, 2.2", lambda setting: None) for name in ("good", "weak", "other")]
    html, data = report.write(tmp_path, ABOUT, results, rows(checks, results))
    page = _Page(html.read_text("utf-8"))
    assert {f"statement-{number}" for number in STATEMENTS} <= set(page.ids)
    assert {value[1:] for _, value in page.targets if value.startswith("#")} <= set(page.ids)
    outside = {value for _, value in page.targets if not value.startswith("#")}
    assert all(value.startswith("https://arxiv.org/abs/") for value in outside)
    outcomes = {row["statement"]: row["outcome"] for row in json.loads(data.read_text())["coverage"]}
    assert (outcomes["2.1"], outcomes["2.3"], outcomes["6.5"]) == ("vacuous", "no check", "no check")
    assert "a rule for whoever writes a check" in page.text
    assert "not run: other" in page.text


def test_spread_over_seeds_is_shown(written):
    assert "Errors of 3 seeds: 0 to 2 · 10⁻⁹, median 10⁻⁹" in _Page(written[0]).text.replace("\xa0", " ")


def test_page_shows_and_escapes_every_text(written, results):
    page = _Page(written[0])
    for result in results:
        assert result.name in page.text
        assert result.claim in page.text
        assert result.detail in page.text
        for control in result.controls:
            assert control.broken in page.text
        for curve in result.curves:
            assert curve.title in page.text
    assert "many & decaying <lines> (10 of 12)" in page.text
    for shown in ("docs/theory.md 2.1, 3.4", "a.npy & b", "NVIDIA <H100>", "jax 0.10.0", "∞"):
        assert shown in page.text


def test_same_results_give_the_same_page(tmp_path, written, results):
    assert _write(tmp_path, results) == written


def test_curves_stay_small(written):
    assert len(written[0]) < 150_000


@pytest.mark.parametrize("count", [0, 2])
def test_incomplete_run_says_so(tmp_path, results, count, capsys):
    about = ABOUT | {"incomplete": f"interrupted after {count} of 5 checks"}
    found = results[1 : 1 + count]
    text, data = _write(tmp_path, found, about)
    assert data["complete"] is False
    assert data["verdict"]["ok"] is False
    passed = sum(result.passed for result in found)
    start = f"Incomplete, {about['incomplete']}: {passed} of {count} checks hold so far"
    assert start in _Page(text).text
    report.print_verdict(about, found, ())
    assert start in " ".join(capsys.readouterr().out.split())


def test_nothing_temporary_is_left(tmp_path, results):
    paths = report.write(tmp_path, ABOUT, results[1:])
    assert set(paths) == set(tmp_path.iterdir())


@pytest.mark.parametrize("fails", ["page", "json.dumps", "Path.write_text"])
def test_failure_keeps_the_report_that_was_there(tmp_path, results, monkeypatch, fails):
    paths = report.write(tmp_path, ABOUT, results[1:])
    before = [path.read_bytes() for path in paths]

    def fail(*_, **__):
        raise OSError("disk full")

    monkeypatch.setattr(f"theory_checks.report.{fails}", fail)
    with pytest.raises(OSError, match="disk full"):
        report.write(tmp_path, ABOUT, results[1:3])
    assert [path.read_bytes() for path in paths] == before
    assert set(paths) == set(tmp_path.iterdir())


@pytest.fixture
def plain(monkeypatch):
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("COLUMNS", "80")


@pytest.mark.usefixtures("plain")
def test_table_is_readable_without_colour_in_80_columns(results, capsys):
    report.print_table(results)
    lines = capsys.readouterr().out.splitlines()
    assert not any("\x1b" in line for line in lines)
    assert max(map(len, lines)) <= 80
    assert lines[0].split() == ["check", "outcome", "error", "tolerance", "controls", "seconds"]
    assert lines[1].split() == ["good", "pass", "2.0e-09", "1.0e-06", "2/2", "1.3"]
    assert [line.strip() for line in lines[3:5]] == [
        "a-rather-long-name-of-a-check-  FAIL         inf    1.0e-06       1/1      1.3",
        "that-fails",
    ]
    rest = " ".join(" ".join(lines).split())
    assert "VACUOUS weak: passes" in rest
    assert "ERROR <b>odd</b>: ValueError: [red]r <script>alert(1)</script>[/red]" in rest


@pytest.mark.usefixtures("plain")
def test_verdict_is_one_sentence_and_names_the_report(tmp_path, results, capsys):
    path = tmp_path / ("long" * 30) / "report.html"
    report.print_verdict(ABOUT | {"device": "cpu: cpu"}, results[:2], [path])
    lines = capsys.readouterr().out.strip().splitlines()
    expected = "2 of 2 checks hold, 3 of 3 controls refuted on cpu (float64), in 2.5 s"
    assert lines == [expected, f"report: {path}"]


@pytest.mark.usefixtures("plain")
def test_progress_is_a_line_a_check_where_there_is_no_terminal(results, capsys):
    assert list(report.track(iter(results), results)) == results
    captured = capsys.readouterr()
    assert captured.out == ""
    lines = captured.err.splitlines()
    assert len(lines) == len(results)
    assert lines[0].split() == ["[1/5]", "pass", "good", "1.3", "s"]


def test_progress_in_a_terminal_names_the_check_and_what_failed(results, capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    assert list(report.track(iter(results), results)) == results
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "good" in captured.err
    assert "passes" in captured.err


def test_progress_in_a_terminal_says_how_long_the_rest_takes(results, capsys, monkeypatch):
    """At 40 s a check, longer than rich remembers by default: two of five done leave two minutes."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    now = [0.0]

    class Clocked(report.Progress):
        def __init__(self, *columns, **options):
            super().__init__(*columns, get_time=lambda: now[0], **options)

        def update(self, *task, **changes):
            super().update(*task, refresh=True, **changes)

    monkeypatch.setattr(report, "Progress", Clocked)

    def finish():
        for result in results:
            now[0] += 40
            yield result

    list(report.track(finish(), results))
    shown = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", capsys.readouterr().err)
    assert re.search(r"check 3 of 5: a-rather-long-\S+ .* left, about 0:02:00", shown), shown


def test_a_terminal_hears_that_the_report_is_drawn(tmp_path, results, capsys, monkeypatch):
    _write(tmp_path, results)
    assert capsys.readouterr().err == ""
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    _write(tmp_path, results)
    assert "drawing the report" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (1e-9, "10⁻⁹"),
        (-3.25e12, "−3.25\N{NO-BREAK SPACE}·\N{NO-BREAK SPACE}10¹²"),
        (0, "0"),
        (100, "100"),
        ("-inf", "−∞"),
        ("<x-y>", "<x-y>"),
        (True, "True"),
        (None, "–"),
        (float("inf"), "∞"),
    ],
)
def test_numbers_are_written_as_on_paper(value, shown):
    assert number(value) == shown


@pytest.mark.parametrize(
    ("predicted", "measured", "pairs"),
    [
        (1.0, 2.0, [("", 1.0, 2.0)]),
        (1.0, [2.0, 3.0], [("seed 0", 1.0, 2.0), ("seed 1", 1.0, 3.0)]),
        ({"σ_i": [1, 2, 3]}, {"σ_i": [4, 5, 6]}, [("σ_1", 1, 4), ("σ_2", 2, 5), ("σ_3", 3, 6)]),
        ({"a": [1, 2, 3]}, {"a": 4}, [("a, no. 1", 1, 4), ("a, no. 2", 2, 4), ("a, no. 3", 3, 4)]),
        ({"a": [1]}, {"a": [2, 3], "b": 4}, [("a, seed 0", 1, 2), ("a, seed 1", None, 3), ("b", None, 4)]),
    ],
)
def test_headline_numbers_are_lined_up(predicted, measured, pairs):
    assert list(page.pairs("", predicted, measured, seeds=2)) == pairs


def test_a_one_sided_claim_below_zero_is_drawn_on_the_side_that_holds():
    entry = {"tolerance": 1.0, "error": -5.0, "control": [{"error": 10.0}]}
    axis = Axis([entry])
    assert axis.place(-5.0) == axis.place(0.0) < axis.place(1.0) < axis.place(10.0)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("σ*_1 of a target", "<i>σ</i>*<sub>1</sub> of a target"),
        ("ε^{L−2} <large>", "<i>ε</i><sup><i>L</i>−2</sup> &lt;large&gt;"),
        ("‖W X‖_F² = r²/d", "‖<i>W</i> <i>X</i>‖<sub><i>F</i></sub>² = <i>r</i>²/<i>d</i>"),
        ("L σ_1^{2−2/L} ε^−(L−2)",
         "<i>L</i> <i>σ</i><sub>1</sub><sup>2−2/<i>L</i></sup> <i>ε</i><sup>−(<i>L</i>−2)</sup>"),
        ("W_{l+1}ᵀW_{l+1}", "<i>W</i><sub><i>l</i>+1</sub>ᵀ<i>W</i><sub><i>l</i>+1</sub>"),
        ("my_checks.py, errors_by_seed, it's a-b", "my_checks.py, errors_by_seed, it&#39;s a-b"),
    ],
)
def test_formulas_in_plain_text_are_set_and_names_of_files_are_not(text, shown):
    assert str(mathematics(text)) == shown


def test_formulas_in_a_drawing_are_set_by_pieces_that_come_back_to_the_line():
    shown = str(drawn_mathematics("‖W‖_F / σ*_1^{2/L} of <t_i"))
    shifts = [int(shift) for shift in re.findall(r'dy="(-?\d+)"', shown)]
    assert np.cumsum(shifts).tolist() == [3, 0, 3, -4, 0, 3]
    assert re.sub(r"<[^>]*>", "", shown) == "‖W‖F / σ*12/L of &lt;ti"
    assert not set("_^{}") & set(shown)


@pytest.mark.parametrize(("number", "card", "name"), [(0, "#ffffff", "light"), (1, "#1c222b", "dark")])
def test_lines_stand_out_from_the_page_and_differ_in_grey(number, card, name, written):
    colours = RAMPS[number]
    assert f"--card: {card}" in written[0]
    for count in range(1, 11):
        drawn = ramp(colours, count)
        assert min(style.contrast(colour, card) for colour in drawn) >= 3
        assert np.all(np.diff([style.luminance(colour) for colour in drawn]) > 0)
    assert f"--{name}: #" in written[0]


def test_checks_that_do_not_pass_come_first_and_are_named_below_the_heading(written, results):
    text = written[0]
    places = [text.index(f'<section id="{page.anchor(result.name)}"') for result in results]
    assert sorted(range(5), key=places.__getitem__) == [2, 3, 4, 0, 1]
    heading = text[text.index("<h1") : text.index("<dl")]
    assert [result.name in heading for result in results[:4]] == [False, False, True, True]


def test_lines_keep_the_points_they_need_and_break_where_there_is_no_value():
    x = np.linspace(0, 1, 301)
    bent = drawing(Curve("bent", x, x, np.abs(x - 0.5)))
    (line,) = bent.measured
    assert line.path.count("L") == 2
    assert line.points == ()
    broken = drawing(Curve("broken", x, x, np.where(x < 0.5, x, np.nan))).measured[0]
    assert broken.path.count("M") == 1
    logs = drawing(Curve("logs", x, x, 10.0 ** (-12 * x), ylog=True))
    assert {tick.label for tick in logs.yticks} >= {"10⁻¹⁰", "10⁻⁵"}


@pytest.mark.parametrize("number", coverage.STATEMENTS)
def test_every_statement_is_set_without_a_command_left_over(number):
    html = str(claimed(number))
    assert "\\" not in html
    assert "$" not in html
    assert "Proof." not in html
    page = _Page(f"<div>{html}</div>")
    assert len(page.text) > 40


def test_what_a_statement_says_stands_with_the_checks_that_cite_it(tmp_path, results):
    html, _ = report.write(tmp_path, ABOUT, results[:2], coverage.rows(()))
    text = html.read_text("utf-8")
    section = text[text.index('<section id="check-good"') : text.index('<section id="check-exact"')]
    assert "what 2.1 says" in section
    assert "<math" in section


def test_the_page_can_be_filtered_and_collapsed_without_script(written):
    text = written[0]
    assert text.count('<input type="radio" name="show"') == 3
    assert "body:has(#show-failing:checked) .holds-row" in text
    assert text.count('class="bad-row"') == 2 * 3
    assert text.count("<details open><summary><h2>") == 5


def test_a_run_says_when_where_and_how_it_was_made(tmp_path, results):
    about = ABOUT | {"run": {"date": "2026-01-02 03:04 UTC", "command": "theory-checks run --seeds 1"}}
    shown = _Page(_write(tmp_path, results, about)[0]).text
    assert "2026-01-02 03:04 UTC" in shown
    assert "theory-checks run --seeds 1" in shown
    assert set(machine.circumstances()) == {"date", "command"}
    assert re.search(r", \d+ cores?$", machine.processor())
    assert re.fullmatch(r"([0-9a-f]{10}( \+ changes)?)?", machine.commit())
