"""The page of a run: what `python -m benchmarks report` writes."""

import re
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from benchmarks.commands.reporting import make_page
from benchmarks.files import FileError, Report, write_report
from benchmarks.options import ReportOptions
from benchmarks.page import write_page
from benchmarks.page.canvas import canvas, drawing, place, scale
from benchmarks.page.families import families
from benchmarks.page.styles import styles
from benchmarks.results import Case, Failure, Latency, Measurement, Point
from benchmarks.scenario import Scenario
from benchmarks.subject import Role, Subject
from benchmarks.summary import summarize

ROOT = Path(__file__).resolve().parents[2]

VOID = {"meta", "br", "link", "img", "input", "hr"}

HOSTILE = "<script>alert('$x_1$ & \"y\"')</script>"

ENVIRONMENT = {
    "python": "3.12.1",
    "implementation": "CPython",
    "system": "Linux 6.1",
    "machine": "x86_64",
    "processor": "A Processor",
    "processors": 2,
    "load_average": [0.1, 0.2, 0.3],
    "versions": {"statemgr": "0.1.0", "redis": "8.1.0"},
    "file_system": "ext4",
    "server": "Valkey 9.1.2",
    "seconds": 61.0,
    "started": "2026-11-22T21:03:11+00:00",
}
OPTIONS = {"rounds": 3, "peers": True, "scale": {"seconds": 0.5}}

SUBJECTS = {
    subject.name: subject
    for subject in (
        Subject(name="store", role=Role.OURS, summary="a store of ours"),
        Subject(name="store/fast", role=Role.OURS, summary="a variant of it"),
        Subject(
            name="rival",
            role=Role.PEER,
            summary="what one would use",
            against=("store",),
            lacks=("keeps no promise", "forgets <everything>"),
        ),
        Subject(name="floor", role=Role.FLOOR, summary="the least", against=("store",)),
    )
}
SPEEDS = {"store": 1000.0, "store/fast": 5000.0, "rival": 1010.0, "floor": 50_000.0}

SCENARIOS = {
    "change": Scenario(
        name="change",
        summary="one field changed",
        runs_on=lambda subject: True,
        cases=lambda scale: [],
        measure=lambda subject, case: [],
        notes=lambda rows: [f"change: {len(rows)} rows"],
    )
}


def measured(
    case: Case, subject: str, rate: float, noise: tuple[float, ...] = (0.9, 1.0, 1.1), **facts
) -> list[Measurement]:
    """Return what some rounds would have found; of two with the same noise the ratio is exact."""
    facts = {"latency": Latency(1 / rate, 3 / rate, 30 / rate, 100), **facts}
    return [
        Measurement(case, subject, number, (Point(int(rate * factor * 100), 100.0, 50.0, **facts),))
        for number, factor in enumerate(noise, start=1)
    ]


def everyone(case: Case, **facts) -> list[Measurement]:
    """Measure a case on all of `SUBJECTS`; `rival` is as fast as `store`, but for noise."""
    noises = {"rival": (1.1, 1.0, 0.9)}
    return [
        one
        for name, speed in SPEEDS.items()
        for one in measured(case, name, speed, noises.get(name, (0.9, 1.0, 1.1)), **facts)
    ]


def report_of(measurements: list[Measurement], subjects=SUBJECTS, **fields) -> Report:
    """Return the report of a run."""
    whole = {
        "environment": ENVIRONMENT,
        "options": OPTIONS,
        "complete": True,
        "measurements": measurements,
        "failures": [],
        "rows": summarize(measurements, subjects),
    }
    return Report(**whole | fields)


def cases_along(axis: str, values: tuple[int, ...]) -> list[Case]:
    """Return cases that differ in one axis."""
    return [replace(Case(f"by-{axis}", 8, 100, 0.5), **{axis: value}) for value in values]


class Page(HTMLParser):
    """A page read back; an element that is not closed, or closed twice, is an error."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.text = text
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.drawn: list[str] = []
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        if self._open[-1:] != ["style"]:
            self.words.append(data)
        if self._open[-1:] == ["text"]:
            self.drawn.append(data)

    @property
    def said(self) -> str:
        """What a reader reads, in one line."""
        return re.sub(" ([,.])", r"\1", " ".join(" ".join(self.words).split()))

    @property
    def plots(self) -> list[str]:
        """What the plots say they are."""
        return [facts["aria-label"] for tag, facts in self.elements if facts.get("role") == "img"]


def written(report: Report, path: Path, subjects=SUBJECTS) -> Page:
    """Write a page, and read it back."""
    write_page(report, subjects, SCENARIOS, path)
    return Page(path.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def whole():
    """A report with every axis, a single setting, bytes per token, and failures."""
    cases = [
        *cases_along("tasks", (1, 16, 64)),
        *cases_along("size", (0, 100, 1_000_000)),
        *cases_along("tokens", (1_000, 100_000)),
        *(Case("by-processes", 8 * many, 100, 0.5, 0, many) for many in (1, 2, 4)),
    ]
    change = everyone(Case("change", 1, 200, 0.5), collector_seconds=7.0)
    kept = [
        one
        for tokens in (10, 1_000)
        for one in everyone(
            Case("footprint", 1, tokens, 0.5), extra={"bytes_per_token": 640}, latency=None
        )
    ]
    failures = [Failure(Case("hot", 8, 1, 0.5), "rival", number, "gave up") for number in (1, 2)]
    along = [one for case in cases for one in everyone(case)]
    return report_of([*along, *change, *kept], failures=failures)


@pytest.fixture(scope="module")
def page(whole, tmp_path_factory):
    """The page of that report."""
    return written(whole, tmp_path_factory.mktemp("page") / "report.html")


def test_it_is_one_file(page):
    """Nothing is fetched and nothing runs: whatever is referred to is in the page itself."""
    tags = {tag for tag, _ in page.elements}
    assert tags.isdisjoint({"script", "link", "img", "iframe", "object", "embed", "base", "image"})
    identifiers = Counter(facts["id"] for _, facts in page.elements if "id" in facts)
    assert set(identifiers.values()) == {1}
    for _, facts in page.elements:
        assert not any(name == "src" or name.startswith("on") for name in facts)
        if target := facts.get("href") or facts.get("xlink:href"):
            assert target.removeprefix("#") in identifiers
    assert not re.search(r"https?:|url\(|@import|@font-face", page.text)


@pytest.mark.parametrize("axis", ["tasks", "size", "tokens", "processes"])
def test_each_axis_has_plots_of_throughput_and_latency(page, axis):
    """They are in a part of their own, which the head of the page leads to."""
    assert f"by-{axis}" in {facts.get("id") for _, facts in page.elements}
    assert f"#by-{axis}" in {facts.get("href") for _, facts in page.elements}
    about = [label for label in page.plots if f"by {axis}: by-{axis}" in label]
    assert [label.partition(" by ")[0] for label in about] == [
        "operations per second",
        "latency p50, p99 and max",
    ]


def test_what_moves_along_with_an_axis_is_told(page):
    """With the processes the tasks grow: the plot is by processes, and says so."""
    assert "store: 8 to 32 tasks, 100 tokens" in page.said


def test_a_single_setting_has_plots_too(page):
    """Throughput and latency."""
    assert [label for label in page.plots if ": change" in label] == [
        "operations per second: change, store: 200 tokens; the table below has the figures",
        "latency p50, p99 and max: change, store: 200 tokens; the table below has the figures",
    ]


def test_a_footprint_has_bars_of_the_bytes_per_token(page):
    """Of the largest number of tokens, for it hardly moves; the table has the others."""
    [label] = [label for label in page.plots if ": footprint" in label]
    assert label.startswith("bytes per token, 1,000 tokens: footprint, store")
    assert re.search(r"10 store 1\.00k .*? 640 ", page.said)


def test_each_plot_has_its_figures_in_a_table(page):
    """They are written as the printed table writes them."""
    tags = Counter(tag for tag, _ in page.elements)
    figures = sum(facts.get("aria-label", "").startswith("figures: ") for _, facts in page.elements)
    assert tags["figure"] == figures == 7  # four axes, two settings, and how ours stand
    assert "1.00k 0.90..1.10k 1.00ms 3.00ms 30.0ms" in page.said


def test_what_noise_may_have_done_is_marked(page):
    """Rounds that do not agree on who is faster leave it open, in figures and in the plot."""
    assert "~0.99x (0.81..1.21) rival" in page.said
    assert "not told from noise in 14." in page.said  # store beside rival, in each case
    assert "faster in 14," in page.said  # store/fast beside it
    [ratios] = re.findall(r'<svg [^>]*aria-label="ratios of store;.*?</svg>', page.text)
    marks = Counter(re.findall(r"fill:var\(--(ours-1|ours-2|paper)\)", ratios))
    assert marks.keys() == {"ours-2", "paper"}


def test_one_round_tells_nothing(tmp_path):
    """However far apart the two are."""
    case = Case("change", 1, 100, 0.5)
    single = [
        one
        for name, speed in (("store", 9000.0), ("rival", 10.0))
        for one in measured(case, name, speed, (1.0,))
    ]
    assert "not told from noise in 1." in written(report_of(single), tmp_path / "page.html").said
    other = Case("read", 1, 100, 0.5)
    several = [
        one
        for name, speed in (("store", 9000.0), ("rival", 10.0))
        for one in measured(other, name, speed, (1.0, 1.1))
    ]
    said = written(report_of([*single, *several]), tmp_path / "both.html").said
    assert "not told from noise in 1 (in 1 there was one round only)." in said


def test_the_head_tells_where_it_was_measured(page):
    """When, on what, with which versions, and how long."""
    for fact in (
        "2026-11-22 21:03 UTC in 61 s",
        "2 x A Processor",
        "Linux 6.1 x86_64",
        "CPython 3.12.1",
        "statemgr 0.1.0, redis 8.1.0",
        "Valkey 9.1.2",
        "ext4",
        "3 of 0.5 s each",
        "with peers and all variants",
    ):
        assert fact in page.said


def test_what_others_lack_is_named(page):
    """Beside their ratios, for these compare what is not quite the same."""
    assert "rival keeps no promise; forgets <everything>" in page.said


def test_failures_are_told_once_for_each_reason(page):
    """The head leads to them."""
    assert "2x: hot, 8 tasks, 1 token: rival" not in page.said
    assert "2x: hot, 8 tasks, 1 token, rival: gave up" in page.said
    assert "#failures" in {facts.get("href") for _, facts in page.elements}


def test_the_share_of_the_garbage_collector_is_told(page):
    """The most of each subject, and where."""
    assert "store 0.0% 7.0% change" in page.said


def test_what_a_scenario_is_and_adds_is_told(page):
    """Its summary and its notes; one that is not known any more goes without."""
    assert "change one field changed change: 4 rows" in page.said


def test_a_run_without_a_measurement_makes_no_page(tmp_path):
    """It was stopped too soon."""
    file, page = tmp_path / "report.json", tmp_path / "page.html"
    write_report(report_of([], complete=False), file)
    with pytest.raises(FileError, match="nothing was measured"):
        make_page(ReportOptions(file, page))
    assert not page.exists()


def test_the_same_report_gives_the_same_bytes(whole, page, tmp_path):
    """A page under version control changes only when its figures do."""
    assert written(whole, tmp_path / "again.html").text == page.text


def test_strings_of_the_report_stay_text(tmp_path):
    """Names and reasons may hold anything: none becomes an element."""
    subjects = {
        HOSTILE: Subject(name=HOSTILE, role=Role.OURS, summary=HOSTILE),
        "\x00": Subject(
            name="\x00", role=Role.PEER, summary="", against=(HOSTILE,), lacks=(HOSTILE,)
        ),
    }
    case = Case(HOSTILE, 1, 100, 0.5)
    measurements = [
        one
        for name in subjects
        for one in measured(case, name, 100.0, part=HOSTILE, extra={HOSTILE: 1})
    ]
    report = report_of(
        measurements,
        subjects,
        environment={"server": HOSTILE, "versions": {HOSTILE: HOSTILE}},
        failures=[Failure(case, HOSTILE, 1, HOSTILE)],
    )
    page = written(report, tmp_path / "page.html", subjects)
    assert "script" not in {tag for tag, _ in page.elements}
    assert page.said.count(HOSTILE) >= 8
    assert HOSTILE in page.drawn


def test_a_run_that_was_stopped_before_anything_is_a_page(tmp_path):
    """It says so, and what was to be measured where."""
    page = written(report_of([], complete=False, environment={}, options={}), tmp_path / "p.html")
    assert "The run was stopped before its end" in page.said
    assert "no measurement came to its end" in page.said
    assert page.plots == []


def test_without_peers_ours_are_compared_with_floors(tmp_path):
    """As in a run without options."""
    measurements = [
        one for one in everyone(Case("change", 1, 100, 0.5)) if one.subject in ("store", "floor")
    ]
    page = written(report_of(measurements), tmp_path / "page.html")
    assert "beside the fastest floor: 1. Ours are faster in 0, slower in 1," in page.said


def test_subjects_of_another_version_are_shown(tmp_path):
    """Nothing is known of them but their figures."""
    page = written(report_of(everyone(Case("change", 1, 100, 0.5))), tmp_path / "page.html", {})
    assert "store ours not known to the version that made this page" in page.said
    assert any(label.startswith("ratios of store;") for label in page.plots)


def test_another_checkout_is_left_out(tmp_path):
    """What `--base` measured belongs to `compare`."""
    case = Case("change", 1, 100, 0.5)
    base = [replace(one, base=True) for one in measured(case, "store", 77_700.0)]
    failures = [Failure(case, "store", 1, "gave up", base=True)]
    page = written(report_of([*everyone(case), *base], failures=failures), tmp_path / "page.html")
    assert "77.7k" not in page.said
    assert "gave up" not in page.said


@pytest.mark.parametrize(
    ("values", "ticks"),
    [((10.0, 90.0), ["0", "25", "50", "75"]), ((10.0, 2000.0), ["10", "30", "100", "300", "1k"])],
)
def test_an_axis_is_logarithmic_beyond_a_decade(values, ticks):
    """Else it begins at zero, so that lengths can be compared."""
    with drawing():
        axes = place(canvas(300, 200), 0, 0, 0, 0)
        scale(
            axes.yaxis,
            values,
            lambda value: f"{value / 1000:.1f}k" if value >= 1000 else f"{value:.2f}",
        )
        low, high = axes.get_ylim()
        shown = [
            text.get_text()
            for text, place_ in zip(axes.get_yticklabels(), axes.get_yticks(), strict=True)
            if low <= place_ <= high
        ]
    assert shown == ticks


def test_no_two_of_a_role_look_alike_in_a_plot():
    """However many there are of a backend, and though peers are shared between backends."""
    ours = [
        Subject(name=f"{name}/{number}", role=Role.OURS, summary="")
        for name in "ab"
        for number in range(6)
    ]
    peers = [
        Subject(
            name=f"peer {number}", role=Role.PEER, summary="", against=tuple("ab"[number % 2 :])
        )
        for number in range(6)
    ]
    subjects = {subject.name: subject for subject in (*ours, *peers)}
    groups = families(subjects)
    chosen = styles(subjects, groups)
    for family in groups:
        looks = [
            (chosen[name].colour, chosen[name].marker, chosen[name].line) for name in family.members
        ]
        assert len(set(looks)) == len(looks)


def test_colours_stand_out_in_light_and_in_dark():
    """Text by 4.5 to 1 and lines by 3 to 1, as WCAG 2.2 asks, on both backgrounds of the page."""

    def luminance(colour: str) -> float:
        parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
        linear = [x / 12.92 if x <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4 for x in parts]
        return sum(weight * x for weight, x in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    css = (ROOT / "benchmarks/page/page.css").read_text(encoding="utf-8")
    schemes = [
        dict(re.findall(r"--([\w-]+): (#\w{6})", text))
        for text in re.findall(r":root {(.*?)}", css, re.DOTALL)
    ]
    assert len(schemes) == 2
    for scheme in schemes:
        needed = {"ink": 4.5, "muted": 4.5, "link": 4.5}
        needed |= {name: 3.0 for name in scheme if name[-1].isdigit()}
        for name, ratio in needed.items():
            for back in (scheme["paper"], scheme["back"]):
                dim, bright = sorted((luminance(scheme[name]), luminance(back)))
                assert (bright + 0.05) / (dim + 0.05) >= ratio, (name, back)


def test_a_missing_package_is_named_with_what_brings_it(tmp_path):
    """Nothing of the kind is loaded before a page is asked for."""
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from benchmarks.files import Report\n"
        "from benchmarks.page import ReportError, write_page\n"
        "assert not {'matplotlib', 'jinja2', 'numpy'} & sys.modules.keys()\n"
        "sys.modules['matplotlib'] = None\n"
        "try:\n"
        "    write_page(Report({}, {}, True, [], [], []), {}, {}, Path(sys.argv[1]))\n"
        "except ReportError as error:\n"
        "    print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "page.html")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert "matplotlib: pip install '.[plots]'" in done.stdout
