"""The page about predictions: what stands in it, what it must never load, and that it sorts."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import toys
from pages import browse, chromium, read_page
from PIL import Image

from KidneySegLib import plots
from KidneySegLib.cli import main
from KidneySegLib.cohort_files import Files, Origin, Run, origins_of, read_origins, run_of
from KidneySegLib.cohort_report import agreement, report_page
from KidneySegLib.errors import InputError, UsageError
from KidneySegLib.evaluation import Cohort, Problem, evaluate_case, evaluate_folders
from KidneySegLib.htmlpage import Cell, Column, Html, Page, html, number, picture, table, tag
from KidneySegLib.modelcard import find_card
from KidneySegLib.overlay import Look

pytest.importorskip("matplotlib")

NASTY = "<script>alert(\"1\")</script> & '$x_{1}$' <img src=x onerror=alert(2)>"


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three cases: found exactly, shifted by a column, and missed altogether."""
    top = tmp_path_factory.mktemp("cohort")
    ct, labels = toys.toy()
    for folder in ("predictions", "cases/a", "cases/b", "cases/c"):
        (top / folder).mkdir(parents=True)
    for name, found in (("a", labels), ("b", np.roll(labels, 1, axis=2)), ("c", 0 * labels)):
        sitk.WriteImage(toys.image_of(ct), str(top / "cases" / name / "imaging.nii.gz"))
        sitk.WriteImage(toys.image_of(labels), str(top / "cases" / name / "sides.nii.gz"))
        sitk.WriteImage(toys.image_of(found), str(top / "predictions" / f"{name}_kidneys.nii.gz"))
    return top


@pytest.fixture(scope="module")
def report(folders: Path) -> Path:
    """The page of the command."""
    output = folders / "report.html"
    arguments = ["report", str(folders / "predictions"), "--reference", str(folders / "cases")]
    arguments += ["--images", str(folders / "cases"), "--output", str(output)]
    assert main(arguments) == 0
    return output


def cohort_of(folders: Path) -> Cohort:
    return evaluate_folders(folders / "predictions", folders / "cases", distances=False)


def test_a_report_is_one_page_that_loads_nothing(report: Path) -> None:
    page = read_page(report.read_text(encoding="utf-8"))
    assert "Research use only" in page.words_shown
    assert page.tags.count("svg") == 3 and page.tags.count("img") == 3
    assert report.stat().st_size < 2_000_000


def test_the_table_says_what_the_evaluation_says(report: Path, folders: Path) -> None:
    page = read_page(report.read_text(encoding="utf-8"))
    cases = {case.name: case for case in cohort_of(folders).cases}
    assert page.column("cases", "Case") == ["a", "b", "c"]
    for name, dice, volume in zip(
        page.column("cases", "Case"),
        page.column("cases", "Dice"),
        page.column("cases", "Prediction (ml)"),
        strict=True,
    ):
        assert dice == f"{cases[name].value('dice'):.3f}"
        assert volume == f"{cases[name].value('prediction_ml'):.1f}"
    assert page.column("cases", "Dice")[0] == "1.000" and page.column("cases", "Dice")[2] == "0.000"


def test_every_case_links_to_its_picture_and_back(report: Path) -> None:
    page = read_page(report.read_text(encoding="utf-8"))
    for number_ in (1, 2, 3):
        assert f"#case-{number_}" in page.loads and f"#row-{number_}" in page.loads


def test_best_median_and_worst_are_shown_in_that_order(report: Path) -> None:
    words = read_page(report.read_text(encoding="utf-8")).words_shown
    places = [words.index(f"{what}: {name}") for what, name in
              (("Best", "a"), ("Median", "b"), ("Worst", "c"))]  # fmt: skip
    assert places == sorted(places)


def test_beside_every_figure_stands_the_number_of_patients(folders: Path) -> None:
    cohort = cohort_of(folders)
    origins = {name: Origin("somewhere", "anna") for name in "ab"} | {"c": Origin("else", "ben")}
    page = read_page(str(report_page(cohort, origins=origins)))
    assert "2 patients (3 cases)" in page.words_shown
    assert set(page.column("all-figures", "Patients")) <= {"1", "2"}
    assert "somewhere" in page.words_shown and "else" in page.words_shown
    assert page.column("cases", "Patient") == ["anna", "anna", "ben"]


def test_text_from_files_is_escaped_everywhere(toy_sides: Path, tmp_path: Path) -> None:
    labels = sitk.ReadImage(str(toy_sides))
    case = replace(evaluate_case(labels, labels, NASTY, distances=False), notes=(NASTY,))
    cohort = Cohort((case,), (Problem(NASTY, "missing", NASTY),), NASTY, NASTY)
    model = toys.copying_model(tmp_path / "model", name="toy", card={"description": NASTY})
    (model.folder / "README.md").write_text(NASTY, encoding="utf-8")
    text = str(
        report_page(
            cohort,
            title=NASTY,
            origins={NASTY: Origin(NASTY, NASTY)},
            card=find_card(model.folder),
            load=lambda case: (labels, labels, labels),
        )
    )
    page = read_page(text)
    assert page.tags.count("img") == 1  # the picture
    assert page.column("cases", "Case") == [NASTY]
    assert page.column("problems", "Why") == [NASTY]


def test_what_has_no_text_of_its_own_cannot_break_a_page() -> None:
    assert html("a\x00b\u202ec\udc80") == "a\ufffdb\ufffdc\ufffd"
    assert tag("a", "x", title='"><b>') == '<a title="&quot;&gt;&lt;b&gt;">x</a>'
    assert isinstance(html(Html("<b>")), Html) and html(Html("<b>")) == "<b>"


def test_a_case_without_kidney_in_either_is_shown_and_not_counted(folders: Path) -> None:
    empty = toys.image_of(np.zeros(toys.SHAPE, np.uint8))
    nothing = evaluate_case(empty, empty, "nothing", distances=False)
    cohort = cohort_of(folders)
    both = replace(cohort, cases=(*cohort.cases, nothing))
    page = read_page(str(report_page(both)))
    assert page.column("cases", "Dice")[3] == "-"
    assert "not defined for 1 more" in page.words_shown
    alone = read_page(str(report_page(Cohort((nothing,)))))
    assert "Dice is not defined for any case" in alone.words_shown


def test_limits_of_agreement_are_those_of_bland_and_altman() -> None:
    # Differences 1, 2, 3: mean 2, standard deviation 1.
    assert agreement([11, 22, 33], [10, 20, 30]) == pytest.approx((2, 2 - 1.96, 2 + 1.96))
    assert agreement([5], [4]) == (1, None, None)
    with pytest.raises(ValueError):
        agreement([], [])


def test_a_ct_that_is_not_there_is_told_and_the_others_are_drawn(folders: Path) -> None:
    cohort = cohort_of(folders)
    some = folders / "some"
    for name in "ab":
        shutil.copytree(folders / "cases" / name, some / name, dirs_exist_ok=True)
    page = read_page(str(report_page(cohort, load=Files(some).of(cohort))))
    assert page.tags.count("img") == 2
    assert "holds no CT named c" in page.words_shown
    with pytest.raises(InputError, match="holds no CT"):
        Files(folders / "nowhere")


def test_no_case_is_drawn_on_the_ct_of_another_patient(folders: Path, tmp_path: Path) -> None:
    cohort = cohort_of(folders)
    (tmp_path / "one").mkdir()
    shutil.copy(folders / "cases/a/imaging.nii.gz", tmp_path / "one/a.nii.gz")
    for images in (tmp_path / "one", tmp_path / "one/a.nii.gz", folders / "cases/a"):
        load = Files(images).of(cohort)
        load(cohort.cases[0])
        with pytest.raises(InputError, match="holds no CT named b"):
            load(cohort.cases[1])


def test_the_only_ct_is_that_of_the_only_case(folders: Path, tmp_path: Path) -> None:
    alone = replace(cohort_of(folders), cases=cohort_of(folders).cases[:1])
    shutil.copy(folders / "cases/a/imaging.nii.gz", tmp_path / "ct.nii.gz")
    for images in (tmp_path, tmp_path / "ct.nii.gz"):
        Files(images).of(alone)(alone.cases[0])


@pytest.mark.parametrize(
    ("cases", "cts", "found"),
    [
        (["a", "b"], ["ward/a", "b"], {"a": "ward/a", "b": "b"}),
        (["ward/a", "b"], ["A", "b"], {"ward/a": "A", "b": "b"}),
        (["east/a", "b"], ["west/a", "b"], {"b": "b"}),  # another patient
        (["a", "b"], ["east/a", "west/a", "b"], {"b": "b"}),
        (["east/a", "west/a"], ["a", "x"], {}),
        (["a", "west/a"], ["a", "x"], {"a": "a"}),
    ],
)
def test_a_ct_is_found_by_its_name_and_folders_that_are_not_those_of_another(
    folders: Path, tmp_path: Path, cases: list[str], cts: list[str], found: dict[str, str]
) -> None:
    whole = cohort_of(folders)
    cohort = replace(whole, cases=tuple(replace(whole.cases[0], name=name) for name in cases))
    ct = sitk.ReadImage(str(folders / "cases/a/imaging.nii.gz"))
    for more, name in enumerate(cts):
        (tmp_path / name).mkdir(parents=True)
        sitk.WriteImage(ct + more, str(tmp_path / name / "imaging.nii.gz"))
    load = Files(tmp_path).of(cohort)
    for case in cohort.cases:
        if case.name not in found:
            with pytest.raises(InputError, match=f"holds no CT named {case.name}"):
                load(case)
            continue
        more = cts.index(found[case.name])
        assert sitk.GetArrayViewFromImage(load(case)[0]).min() == toys.AIR + more


def test_a_reference_of_another_patient_is_not_drawn(folders: Path, tmp_path: Path) -> None:
    """References may have moved since the evaluation; what is not there stays where it was."""
    whole = cohort_of(folders)
    case = replace(whole.cases[0], name="east/a")
    cohort = replace(whole, cases=(case,))
    empty = toys.image_of(np.zeros(toys.SHAPE, np.uint8))
    for name, drawn in (("west", 2), ("east", 0)):
        (tmp_path / name / "a").mkdir(parents=True)
        sitk.WriteImage(empty, str(tmp_path / name / "a" / "sides.nii.gz"))
        _, _, reference = Files(folders / "cases/a", tmp_path).of(cohort)(case)
        assert sitk.GetArrayViewFromImage(reference).max() == drawn


def test_no_input_is_overwritten(folders: Path, tmp_path: Path, capsys) -> None:
    table = tmp_path / "cases.html"
    table.write_text("case\na\n")
    given = [str(folders / "predictions"), "--reference", str(folders / "cases")]
    assert main(["report", *given, "--cases", str(table), "--output", str(table)]) == 2
    assert "is an input and is not overwritten" in capsys.readouterr().err
    assert table.read_text() == "case\na\n"


def test_cases_whose_names_are_no_utf_8_are_told(folders: Path, tmp_path: Path, capsys) -> None:
    problem = Problem("case", "unusable", os.fsdecode(b"M\xfcller.nii.gz cannot be read"))
    replace(cohort_of(folders), problems=(problem,)).to_json(tmp_path / "e.json")
    arguments = [str(tmp_path / "e.json"), "--output", str(tmp_path / "r.html")]
    assert main(["report", *arguments]) == 0
    assert "M\\udcfcller.nii.gz cannot be read" in capsys.readouterr().out


def test_no_more_pictures_are_drawn_than_asked_for(folders: Path) -> None:
    cohort = cohort_of(folders)
    load = Files(folders / "cases").of(cohort)
    assert read_page(str(report_page(cohort, load=load, pictures=1))).tags.count("img") == 1
    none = read_page(str(report_page(cohort, load=load, pictures=0)))
    assert none.tags.count("img") == 0


def test_an_evaluation_reports_as_its_folders_do(folders: Path, tmp_path: Path) -> None:
    evaluate_folders(folders / "predictions", folders / "cases").to_json(tmp_path / "e.json")
    output = tmp_path / "report.html"
    assert main(["report", str(tmp_path / "e.json"), "--output", str(output)]) == 0
    page = read_page(output.read_text(encoding="utf-8"))
    assert page.column("cases", "Dice")[::2] == ["1.000", "0.000"]
    assert "CTs were not given" in page.words_shown


def test_sources_and_patients_come_from_a_table(folders: Path, tmp_path: Path) -> None:
    listed = tmp_path / "cases.csv"
    listed.write_text("case;source;patient\na;Bern;7\nb;;\n", encoding="utf-8-sig")
    found = origins_of(cohort_of(folders), read_origins(listed))
    assert found == {
        "a": Origin("Bern", "7"), "b": Origin("cases", "b"), "c": Origin("cases", "c"),
    }  # fmt: skip
    with pytest.raises(UsageError, match="names none"):
        origins_of(cohort_of(folders), {"x": Origin("", "x")})
    listed.write_text("name\na\n", encoding="utf-8")
    with pytest.raises(UsageError, match="no column 'case'"):
        read_origins(listed)


def test_the_folder_of_a_case_is_its_source(folders: Path) -> None:
    case = replace(cohort_of(folders).cases[0], name="Bern/a")
    assert origins_of(Cohort((case,)))["Bern/a"] == Origin("Bern", "Bern/a")


def test_the_batch_says_which_model_it_was_and_what_failed(tmp_path: Path) -> None:
    (tmp_path / "results.csv").write_text(
        "case,seconds,error,model\na,2.0,,toy 1.0\nb,4.0,no CT,toy 1.0\n", encoding="utf-8"
    )
    run = run_of(tmp_path)
    assert run.models == ("toy 1.0",) and run.errors == {"b": "no CT"}
    assert "median 3.0 s" in run.settings[0][1]
    (tmp_path / "results.csv").unlink()
    (tmp_path / "other.json").write_text("[1, 2]", encoding="utf-8")
    report = {"model": {"name": "toy", "version": "2.0"}, "device": "cpu", "precision": "float32"}
    entry = {"cases": [{**report, "seconds": {"total": 3.0}}, {"error": "no"}]}
    (tmp_path / "report.json").write_text(json.dumps(entry), encoding="utf-8")
    assert run_of(tmp_path).models == ("toy 2.0",)


def test_a_prediction_that_the_last_batch_did_not_make_is_said_to_be_older(folders: Path) -> None:
    run = Run(("toy 1.0",), (), {"b": "the CT is damaged", "d": "no CT"})
    page = read_page(str(report_page(cohort_of(folders), run=run)))
    assert page.column("problems", "Case") == ["d"] and "1 more without figures" in page.words_shown
    notes = dict(zip(page.column("cases", "Case"), page.column("cases", "Notes"), strict=True))
    assert "older than the batch, which failed here: the CT is damaged" in notes["b"]
    assert "older" not in notes["a"] + notes["c"]


def test_a_table_says_that_it_does_not_hold_where_label_maps_are(
    folders: Path, tmp_path: Path
) -> None:
    cohort_of(folders).to_csv(tmp_path / "r.csv")
    table = Cohort.from_csv(tmp_path / "r.csv")
    shown = str(report_page(table, load=Files(folders / "cases").of(table)))
    words = read_page(shown).words_shown
    assert "A table does not say where the label maps are; give the .json" in words
    assert "in memory" not in words


def test_cases_that_trained_the_model_are_named(folders: Path, tmp_path: Path) -> None:
    toys.copying_model(tmp_path / "run" / "model", name="toy")
    split = {"training": ["cases/b"], "validation": ["cases/a", "cases/c"]}
    (tmp_path / "run" / "split.json").write_text(json.dumps(split), encoding="utf-8")
    page = read_page(str(report_page(cohort_of(folders), card=find_card(tmp_path / "run"))))
    assert "1 of these 3 cases trained the model (b)" in page.words_shown
    (tmp_path / "run" / "split.json").write_text("{}", encoding="utf-8")
    with pytest.raises(InputError, match="does not say who trained"):
        report_page(cohort_of(folders), card=find_card(tmp_path / "run"))


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["nowhere", "--reference", "cases", "--output", "x.html"], 3, "does not exist"),
        (["predictions", "--output", "x.html"], 2, "--reference"),
        (["predictions", "--reference", "cases", "--output", "x.pdf"], 2, ".html"),
        (["predictions", "--reference", "cases", "--output", "x.html", "--pictures", "-1"], 2, "0"),
        (["predictions", "--reference", "cases", "--images", "no", "--output", "x.html"], 3, "no"),
        (["bad.json", "--output", "x.html"], 3, "no result of"),
        (["predictions", "--reference", "cases", "--model", "nix", "--output", "x.html"], 4, "nix"),
    ],
)
def test_what_cannot_be_reported_is_said_in_a_sentence(
    arguments: list[str],
    code: int,
    message: str,
    folders: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(folders)
    Path("bad.json").write_text("{}", encoding="utf-8")
    assert main(["report", *arguments]) == code
    said = capsys.readouterr().err
    assert said.startswith("error: ") and message in said and said.count("\n") == 1
    assert not Path("x.html").exists()


def test_without_matplotlib_the_report_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UsageError, match="pip install matplotlib"):
        plots.plot("x", "x", lambda axes: None)


def test_plots_have_the_colours_of_the_page_and_names_of_their_own() -> None:
    def draw(axes) -> None:
        plots.link_marks(axes, 1, 2, "#row-1", plots.BLUE)
        axes.set(xlabel="Dice $", title="a <b>")

    texts = [plots.plot(name, NASTY, draw, hints={"#row-1": NASTY}) for name in ("one", "two")]
    page = Page("x", "x")
    page.add("plots", "Plots", *texts, table("t", [Column("c", "C")], [[Cell("1")]], ["row-1"]))
    read = read_page(str(page))
    assert read.tags.count("svg") == 2 and read.tags.count("title") == 3
    assert not any(stand_in in text for text in texts for stand_in in ("#010101", "#040404"))
    assert all("var(--blue)" in text for text in texts)


def test_numbers_that_do_not_exist_sort_last() -> None:
    assert number(None) == Cell("-", "") and number(float("nan")) == Cell("-", "")
    assert number(-0.5, 1, sign=True) == Cell("-0.5", -0.5)


def test_a_picture_is_inside_the_page_and_no_wider_than_asked_for() -> None:
    shown = picture(Image.new("RGB", (400, 100), "red"), "a & b", widest_px=200)
    assert shown.startswith('<img src="data:image/jpeg;base64,')
    assert 'width="200" height="50"' in shown and 'alt="a &amp; b"' in shown


# --- In a browser -------------------------------------------------------------------------------

# What a reader does: click the head of Dice, and again, then follow a link that sorts.
_CLICKS = """
{ const order = () => [...document.querySelectorAll("#cases tbody tr")].map(
  (row) => row.cells[0].textContent).join("");
const head = document.querySelector('#cases th[data-key="dice"]');
const seen = [order()];
head.querySelector("button").click(); seen.push(order() + head.getAttribute("aria-sort"));
head.querySelector("button").click(); seen.push(order() + head.getAttribute("aria-sort"));
document.querySelector('#cases th[data-key="case"] button').click(); seen.push(order());
document.body.dataset.seen = seen.join(" "); }
"""


def test_a_click_on_a_heading_sorts_the_table(report: Path, tmp_path: Path) -> None:
    text = report.read_text(encoding="utf-8")
    # The page's own policy would, rightly, not run the clicks.
    start, end = text.index("<meta http-equiv"), text.index('<meta name="viewport')
    copy = tmp_path / "copy.html"
    clicks = text[:start] + text[end:].replace("</body>", f"<script>{_CLICKS}</script></body>")
    copy.write_text(clicks, encoding="utf-8")
    seen = browse(copy.as_uri(), tmp_path / "profile", "--dump-dom")
    assert 'data-seen="abc cbaascending abcdescending abc"' in seen


def test_a_link_sorts_the_page_as_it_was_written(report: Path, tmp_path: Path) -> None:
    url = f"{report.as_uri()}#sort=cases.volume_difference_ml.ascending"
    page = browse(url, tmp_path / "profile", "--dump-dom")
    rows = [page.index(f'id="row-{n}"') for n in (3, 1, 2)]
    # c lacks everything; a and b have the volume of the reference, and stay in their order.
    assert rows == sorted(rows) and 'aria-sort="ascending"' in page


def test_the_page_is_drawn(report: Path, tmp_path: Path) -> None:
    chromium()
    shot = tmp_path / "shot.png"
    options = (f"--screenshot={shot}", "--window-size=1200,3000")
    browse(report.as_uri(), tmp_path / "profile", *options)
    drawn = np.asarray(Image.open(shot).convert("RGB")).astype(int)
    assert drawn.shape == (3000, 1200, 3)
    blue = np.abs(drawn - (0, 114, 178)).max(axis=2) < 30  # marks of the plots
    red = (drawn[..., 0] > 200) & (drawn[..., 1] < 90) & (drawn[..., 2] < 90)  # reference outlines
    assert blue.sum() > 300 and red.sum() > 100


def test_the_look_of_pictures_is_the_callers(folders: Path) -> None:
    look = Look(window=(0.0, 100.0))
    cohort = cohort_of(folders)
    load = Files(folders / "cases").of(cohort)
    page = read_page(str(report_page(cohort, load=load, look=look)))
    assert "0 to 100 HU" in page.words_shown
