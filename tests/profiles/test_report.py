"""Reports: the same profile gives the same bytes, pages stand alone, and nothing is left out in silence."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest

from edge.profiles.columns import COLUMNS, NAME, told_once
from edge.profiles.comparison import better, compare_named, so_far
from edge.profiles.machine_record import MachineRecord, Place
from edge.profiles.record import PROFILE, Profile, Row, read_profile
from edge.profiles.report import facts, write_report
from edge.runtime.errors import OutputError, ProfileError
from tests.profiles.rows import accuracy, profile, row

ROWS = (
    row("int8-asym", "openvino", 0.007, 135, 91),
    row("int8-asym", "onnx", 0.0068, 135, 115),
    row("int4-asym-g64", "openvino", 0.29, 85.8, 105),
    row("int4-asym-g64", "onnx", 0.288, 85.8, 124, setting="kv f16"),
    row("fp32", "onnx", 0.0, 538, 30),
)


def test_profile_reads_again() -> None:
    written = profile(*ROWS)
    assert Profile.from_json(written.to_json()) == written


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data.update(schema_version=99), "schema version 99"),
        (lambda data: data.pop("text"), "the profile has no 'text'"),
        (lambda data: data.update(more=1), "the profile has an unknown 'more'"),
        (lambda data: data["rows"][0].update(weight_bytes="many"), "weight_bytes of a row is 'many'"),
        (lambda data: data["rows"][0].pop("load_s"), "has no 'load_s'"),
        (lambda data: data["rows"][0].update(accuracy={}), "accuracy of format None"),
        (lambda data: data.update(rows=[1]), "a row is 1, expected an object"),
        (lambda data: data.update(rows=1), "rows are 1, expected a list"),
        (lambda data: data.update(rows={}), "rows are {}, expected a list"),
        (lambda data: data.update(versions=[1]), r"versions is \[1\], expected an object"),
        (lambda data: data.update(versions={"a": 1}), "a of versions is 1, expected str"),
        (lambda data: data.update(machine={}), "the machine has no 'cores'"),
        (lambda data: data.update(notes=[5]), "notes of the profile is 5, expected str"),
        (lambda data: data.update(failures=[{"name": "a", "error": None}]), "error of a failure is None, expected str"),
        (lambda data: data.update(num_windows=True), "num_windows of the profile is True, expected int"),
        (lambda data: data.update(num_windows=10**30), "num_windows of the profile is 1000.*, expected int"),
        (lambda data: data.update(source="a" * 10**5) or data.update(text=5), "text of the profile is 5, expected str"),
        (lambda data: data["rows"][0]["accuracy"].update(kld="0"), "kld of a record of an accuracy is '0'"),
        (lambda data: data["rows"][0]["accuracy"].update(per_window_kld=5), "per_window_kld .* is 5, expected a list"),
        (lambda data: data["rows"][0]["accuracy"].update(quarters=[{}]), "quarters of a record of an accuracy has"),
        (lambda data: data["rows"][0]["accuracy"].update(quarters=5), "quarters of .* is 5, expected a list"),
        (lambda data: data["rows"][0].update(divergence={"lengths": 1}), "a record of a divergence has"),
        (
            lambda data: data["rows"][0].update(places=[1]),
            r"places of a row are \[1\], expected export, accuracy, speed",
        ),
        (
            lambda data: data["rows"][0].update(places={"lunch": {}}),
            "places of a row are {'lunch': {}}, expected export",
        ),
        (lambda data: data["rows"][0].update(places={"speed": {"node": "a"}}), "the place of speed has no 'machine'"),
        (
            lambda data: data["rows"][0].update(places={"speed": {"node": "a", "machine": {"cores": 2}}}),
            "the machine of the place of speed has no 'memory_bytes'",
        ),
        (lambda data: data["rows"][0]["accuracy"].update(windows=7), "not have one figure for each of its windows"),
        (lambda data: data["rows"][0].update(recipe="\x1b[2J"), "expected text without control characters"),
        (lambda data: data["rows"][0].update(divergence=5), "a record of a divergence is 5"),
    ],
)
def test_what_is_no_profile(change: object, message: str, tmp_path: Path) -> None:
    data = json.loads(profile(*ROWS).to_json())
    assert callable(change)
    change(data)
    (tmp_path / PROFILE).write_text(json.dumps(data))
    with pytest.raises(ProfileError, match=message):
        read_profile(tmp_path)


@pytest.mark.parametrize("text", ["", "[]", "{}", "3", "\ufeff{"])
def test_no_json_at_all(text: str, tmp_path: Path) -> None:
    (tmp_path / PROFILE).write_text(text)
    with pytest.raises(ProfileError, match=r"not valid JSON|is not a profile"):
        read_profile(tmp_path)


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("report")
    write_report(profile(*ROWS), out)
    return out


@pytest.mark.slow
def test_same_profile_same_bytes(report: Path, tmp_path: Path) -> None:
    plots = {f"pareto_{x}.{kind}" for x in ("bytes", "speed") for kind in ("svg", "png")}
    again = write_report(Profile.from_json(profile(*ROWS).to_json()), tmp_path)
    assert (
        {path.name for path in again}
        == {path.name for path in report.iterdir()}
        == plots | {"profile.md", "profile.html"}
    )
    for path in again:
        assert path.read_bytes() == (report / path.name).read_bytes(), path.name


def test_plots_are_whole(report: Path) -> None:
    for name in ("pareto_bytes", "pareto_speed"):
        root = ElementTree.parse(report / f"{name}.svg").getroot()
        texts = {"".join(element.itertext()) for element in root.iter("{http://www.w3.org/2000/svg}text")}
        assert {"int8-asym", "int4-asym-g64", "int4-asym-g64, kv f16", "fp32", "Pareto front"} <= texts
        assert (report / f"{name}.png").read_bytes().startswith(b"\x89PNG")


class _Page(HTMLParser):
    """Tags that are open, links, and the texts of table cells."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.links: list[str] = []
        self.cells: list[str] = []
        self.ids: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.links += [value or "" for name, value in attributes if name in ("src", "href", "xlink:href", "action")]
        if tag not in ("meta", "br"):
            self.open.append(tag)
        if tag == "td":
            self.cells.append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attributes)
        self.open.remove(tag)

    def handle_data(self, data: str) -> None:
        if "td" in self.open:
            self.cells[-1] += data


def test_page_stands_alone(report: Path) -> None:
    text = (report / "profile.html").read_text()
    page = _Page()
    page.feed(text)
    assert page.open == []
    assert all(link.startswith("#") for link in page.links), "to places in the page itself"
    assert "http" not in text
    assert "//" not in re.sub(r"<!--.*?-->", "", text)
    assert text.count("<svg") == 2
    figures = [column for column in COLUMNS if column.group != NAME and column not in told_once(ROWS)]
    assert sorted(page.cells) == sorted(column.text(r) for r in ROWS for column in figures)
    assert "The same in every row: bits per weight 5.10; " in text
    for one in ROWS:
        assert f'<span class="recipe">{one.recipe}</span>' in text
    assert "model &lt;&amp;&gt; | .gguf" in text
    for wanted in ("prefers-color-scheme: dark", "currentColor", "Left out: something.", "fp16/onnx: no memory"):
        assert wanted in text


def test_what_a_reader_has_to_know_comes_first(tmp_path: Path) -> None:
    unfinished = replace(profile(row(), row("b", apart=0.2)), num_cells=8)
    write_report(unfinished, tmp_path)
    for name in ("profile.md", "profile.html"):
        before = (tmp_path / name).read_text().partition("±")[0]
        assert "3 of 8 settings so far" in before
        assert "more than 10% of the median away from it (tok/s of b/onnx)" in before
    assert "100.0 ± 20.0" in (tmp_path / "profile.md").read_text()


def test_repeats_that_were_not_kept_are_told_as_such(tmp_path: Path) -> None:
    """As in a profile of schema version 1, which has neither samples nor the number of cells."""
    data = json.loads(profile(row(), row("b")).to_json())
    data["schema_version"] = 1
    del data["num_cells"]
    for one in data["rows"]:
        del one["ttft_ms_samples"], one["decode_samples"]
    (tmp_path / PROFILE).write_text(json.dumps(data))
    found = read_profile(tmp_path)
    assert [one.decode_spread for one in found.rows] == [None, None]
    assert found.so_far == so_far(str(tmp_path)) == ""
    write_report(found, tmp_path)
    text = (tmp_path / "profile.md").read_text()
    assert "The spread of these speeds was not recorded" in text
    assert "| 40 | 100.0 |" in text
    write_report(replace(found, rows=(found.rows[0], row("c"))), tmp_path)
    assert "The spread of the speeds of int4-asym-g64/onnx was not recorded" in (tmp_path / "profile.md").read_text()


def test_tables_have_a_cell_for_every_column(report: Path) -> None:
    lines = [line for line in (report / "profile.md").read_text().splitlines() if line.startswith("| ")]
    assert len(lines) == 1 + len(ROWS)
    assert {len(re.split(r"(?<!\\)\|", line)) for line in lines} == {len(COLUMNS) + 2}
    assert "http" not in (report / "profile.md").read_text()


@pytest.mark.parametrize(
    "name", ["profile.md", "profile.html", "pareto_bytes.svg", "pareto_bytes.png", "pareto_speed.svg"]
)
def test_files_of_others_stay(name: str, tmp_path: Path) -> None:
    """They are next to a profile.json that somebody copied into a folder of their own."""
    (tmp_path / name).write_text("# Work: accuracy first\n")
    with pytest.raises(OutputError, match=f"holds {name} but no profile.md of an earlier report"):
        write_report(profile(row(tps=None)), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_text() == "# Work: accuracy first\n"


def test_without_speed_there_is_no_plot_of_it(tmp_path: Path) -> None:
    write_report(profile(*ROWS), tmp_path)
    assert (tmp_path / "pareto_speed.svg").exists()
    write_report(profile(row(tps=None)), tmp_path)
    assert sorted(path.name for path in tmp_path.glob("pareto*")) == ["pareto_bytes.png", "pareto_bytes.svg"]
    assert "| - | - |" in (tmp_path / "profile.md").read_text()
    assert "time to the first token of a prompt" in (tmp_path / "profile.md").read_text()


def test_report_without_rows(tmp_path: Path) -> None:
    write_report(profile(), tmp_path)
    assert not list(tmp_path.glob("pareto*"))
    assert "fp16/onnx: no memory" in (tmp_path / "profile.md").read_text()


def _with(one: Row, *windows: float) -> Row:
    return replace(one, accuracy=accuracy(sum(windows) / len(windows), windows))


def test_comparison_is_paired(tmp_path: Path) -> None:
    """Windows differ by far more than rows do; in pairs the difference is still clear."""
    a, b = _with(row("a"), 0.1, 0.5, 0.9, 0.3), _with(row("b"), 0.08, 0.47, 0.88, 0.27)
    (tmp_path / PROFILE).write_text(profile(a, b).to_json())
    (pair,) = compare_named(f"{tmp_path}:a/onnx", f"{tmp_path / PROFILE}:b/onnx")
    differences = [-0.02, -0.03, -0.02, -0.03]
    stderr = math.sqrt(sum((d + 0.025) ** 2 for d in differences) / 3 / 4)
    assert pair.difference.kld.mean == pytest.approx(-0.025)
    assert pair.difference.kld.z == pytest.approx(-0.025 / stderr)
    assert better(pair.difference.kld) == "b"
    (same,) = compare_named(f"{tmp_path}:a/onnx", f"{tmp_path}:a/onnx")
    assert better(same.difference.kld) == ""


def test_profiles_are_compared_row_by_row(tmp_path: Path) -> None:
    (tmp_path / "one.json").write_text(profile(row("a"), row("b"), row("c")).to_json())
    (tmp_path / "two.json").write_text(profile(row("c"), row("d"), row("a")).to_json())
    pairs = compare_named(str(tmp_path / "one.json"), str(tmp_path / "two.json"))
    assert [(pair.a.name, pair.b.name) for pair in pairs] == [("a/onnx", "a/onnx"), ("c/onnx", "c/onnx")]


def test_what_cannot_be_compared(tmp_path: Path) -> None:
    one, other = row("a"), replace(row("b"), accuracy=replace(accuracy(), reference_key="another"))
    (tmp_path / PROFILE).write_text(profile(one, other, row("c", setting="kv u8")).to_json())
    (tmp_path / "other.json").write_text(profile(row("x"), row("y")).to_json())
    (tmp_path / "new.json").write_text(replace(profile(), failures=(), num_cells=8).to_json())
    for a, b, message in (
        (f"{tmp_path}:a/onnx", f"{tmp_path}:b/onnx", "measured with different checkpoints, texts or windows"),
        (f"{tmp_path}:z", f"{tmp_path}:b/onnx", "has no row 'z'; choose one of a/onnx, b/onnx, c/onnx/kv u8"),
        (str(tmp_path), str(tmp_path / "other.json"), "have no row of the same name; choose one of each"),
        (str(tmp_path / "nothing"), str(tmp_path), "cannot be read"),
        (str(tmp_path / "new.json"), str(tmp_path), "holds no rows: 0 of 8 settings so far; wait for the first"),
    ):
        with pytest.raises(ProfileError, match=message):
            compare_named(a, b)


OTHER: MachineRecord = {"processor": "another", "cores": 8, "memory_bytes": None, "system": "Linux x86_64"}


def test_the_nodes_of_a_cluster_are_told_with_what_they_measured(tmp_path: Path) -> None:
    rows = [
        replace(ROWS[0], places={"export": Place("a"), "accuracy": Place("b", OTHER), "speed": Place("a")}),
        replace(ROWS[1], places={"export": Place("a"), "accuracy": Place("a"), "speed": Place("a")}),
    ]
    written = profile(*rows)
    assert Profile.from_json(written.to_json()) == written
    write_report(written, tmp_path)
    for name in ("profile.md", "profile.html"):
        text = (tmp_path / name).read_text()
        assert (
            "Node a: export of int8-asym; accuracy of int8-asym/onnx; speed of int8-asym/openvino, int8-asym/onnx."
        ) in text
        assert "Node b (another, 8 cores, Linux x86_64): accuracy of int8-asym/openvino." in text
        assert "alone on its machine" in text
        assert "different machines" not in text, "only one has measured speeds"
    unlike = profile(rows[0], replace(rows[1], places={"speed": Place("b", OTHER)}))
    write_report(unlike, tmp_path)
    assert (
        "Speeds were measured on different machines, and do not compare: a processor, 2 cores, 24 GB, Linux x86_64; "
        "another, 8 cores, Linux x86_64."
    ) in (tmp_path / "profile.md").read_text().split("| recipe")[0]


def test_a_profile_of_one_machine_says_nothing_of_nodes() -> None:
    assert '"places"' not in profile(*ROWS).to_json()
    assert not any("Node" in fact for fact in facts(profile(*ROWS)))
