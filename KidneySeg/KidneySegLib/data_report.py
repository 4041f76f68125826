"""One HTML page about labelled cases: what they are like, what is odd, some slices to look at."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from KidneySegLib import __version__
from KidneySegLib.errors import InputError
from KidneySegLib.exploring import PHASES, CaseFacts, Spread, guess_phase
from KidneySegLib.htmlpage import (
    Cell,
    Column,
    Html,
    Page,
    facts,
    figure,
    number,
    paragraph,
    picture,
    table,
    tag,
    tiles,
)
from KidneySegLib.modelcard import Card, card_of
from KidneySegLib.overlay import Look, outline_slice
from KidneySegLib.plots import BLUE, FAINT, INK, SERIES, link_marks, plot, short

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MOST_NAMES = 45
_SLICE_PX = 420
_SHEET_PX = 1000
_TILE_PX = 360


@dataclass(frozen=True)
class ExploredCase:
    """A case of the data.

    Attributes
    ----------
    name, source, patient
        As the trainer calls them; the name is unique in the page.
    is_slice
        Whether it is a picture and no volume.
    spacing_known
        False for a picture whose pixel spacing nobody told.
    facts
        What was seen.
    """

    name: str
    source: str
    patient: str
    is_slice: bool
    spacing_known: bool
    facts: CaseFacts


@dataclass(frozen=True)
class Suspicion:
    """Something odd about a case, as a sentence whose subject is the case.

    Attributes
    ----------
    then
        What happens to the case in a training: "used", "left out" or "unusable".
    """

    case: str
    sentence: str
    then: str


@dataclass(frozen=True)
class Sample:
    """A picture of a page and what it shows."""

    caption: str
    image: Image.Image


@dataclass(frozen=True)
class Predictions:
    """What a model makes of cases that did not train it.

    Attributes
    ----------
    card
        Of the model.
    samples
        Contact sheets of random cases and slices.
    shown
        Of how many patients they are.
    patients
        How many there are to choose from.
    """

    card: Card
    samples: Sequence[Sample]
    shown: int
    patients: int


def labelled_slice(
    ct: np.ndarray,
    labels: np.ndarray,
    spacing_mm: tuple[float, float],
    caption: str,
    look: Look | None = None,
) -> Image.Image:
    """One slice with its labels: kidney in the colour of a reference, tumour in that of both.

    Parameters
    ----------
    ct, labels
        Shape (rows, columns); 1 kidney, 2 tumour.
    spacing_mm
        Distance between rows and between columns.
    """
    return outline_slice(
        ct,
        labels == 2,
        labels != 0,
        spacing_mm,
        caption=caption,
        look=look or Look(height_px=_TILE_PX),
    )


def data_page(
    cases: Sequence[ExploredCase],
    suspicions: Sequence[Suspicion] = (),
    samples: Sequence[Sample] = (),
    predictions: Predictions | None = None,
    *,
    title: str = "Kidney data",
    settings: Sequence[tuple[str, str]] = (),
) -> Page:
    """A page about labelled cases.

    Parameters
    ----------
    suspicions
        Odd and unusable cases; those of `CaseFacts.oddities` are added.
    samples
        Random slices with their labels.
    settings
        Further entries, such as the folders and the seed.

    Raises
    ------
    InputError
        There is no case.
    UsageError
        matplotlib is missing.
    """
    if not cases:
        raise InputError("No case can be read, so there is nothing to show.")
    return _DataPage(cases, suspicions).page(samples, predictions, title, settings)


class _DataPage:
    """What the parts of a page share."""

    def __init__(self, cases: Sequence[ExploredCase], suspicions: Sequence[Suspicion]) -> None:
        self.cases = list(cases)
        self.volumes = [case for case in cases if not case.is_slice]
        self.odd = [
            *suspicions,
            *(
                Suspicion(case.name, sentence, "used")
                for case in cases
                for sentence in case.facts.oddities
            ),
        ]
        self.links = {id(case): f"#row-{n}" for n, case in enumerate(cases, start=1)}
        self.sources = sorted({case.source for case in cases})

    def page(
        self,
        samples: Sequence[Sample],
        predictions: Predictions | None,
        title: str,
        settings: Sequence[tuple[str, str]],
    ) -> Page:
        summary = f"{_people(self.cases)}, {', '.join(self.sources)}; {date.today().isoformat()}."
        page = Page(title, summary)
        page.add("overview", "Overview", self._overview())
        page.add("suspicious", "Suspicious cases", *self._suspicious())
        page.add("sizes", "Sizes", self._sizes(), self._volumes())
        page.add("intensity", "Intensity", *self._intensity())
        page.add("cases-table", "Cases", *self._table())
        if samples:
            page.add("slices", "Random slices with their labels", *_gallery(samples))
        if predictions is not None:
            page.add("predictions", "Random predictions against the truth", *_shown(predictions))
            page.add("model", "Model card", card_of(predictions.card))
        entries = [*settings, ("Date", date.today().isoformat())]
        page.add("settings", "Settings", facts([*entries, ("Version", f"KidneySeg {__version__}")]))
        return page

    def _overview(self) -> Html:
        slices = sum(case.facts.shape[0] for case in self.cases)
        shown = sum(case.facts.kidney_slices for case in self.cases)
        people = _people(self.cases)
        kinds = Counter("single slices" if case.is_slice else "volumes" for case in self.cases)
        entries = [
            (str(len(self.cases)), "cases", ", ".join(f"{n} {kind}" for kind, n in kinds.items())),
            (str(len({case.patient for case in self.cases})), "patients", people),
            (str(slices), "slices", f"{shown / slices:.0%} with kidney, {people}"),
        ]
        if self.volumes:
            volumes = [case.facts.kidney_ml for case in self.volumes]
            tumours = [case for case in self.volumes if case.facts.tumour_ml]
            low, high = min(volumes), max(volumes)
            text = f"{low:.0f} to {high:.0f} ml, {_people(self.volumes)}"
            entries.append((f"{np.median(volumes):.0f} ml", "median kidney volume", text))
            if tumours:
                median = np.median([case.facts.tumour_ml for case in tumours])
                text = f"{_people(tumours)} with tumour"
                entries.append((f"{median:.0f} ml", "median tumour volume", text))
        return tiles(entries)

    def _suspicious(self) -> list[Html]:
        if not self.odd:
            return [paragraph(f"Nothing odd was found in {_people(self.cases)}.")]
        columns = [
            Column("case", "Case"),
            Column("what", "What is odd", wide=True),
            Column("then", "In a training"),
        ]
        links = {case.name: self.links[id(case)] for case in self.cases}
        rows = []
        for one in self.odd:
            name: Cell = Cell(one.case)
            if one.case in links:
                name = Cell(tag("a", one.case, href=links[one.case]), one.case)
            rows.append([name, Cell(one.sentence), Cell(one.then)])
        text = (
            "What the trainer's check says, and what the intensities say. A remark is a reason to "
            "look, no verdict."
        )
        return [paragraph(text), table("odd", columns, rows)]

    def _sizes(self) -> Html:
        cases = self.volumes or self.cases
        known = [case for case in cases if case.spacing_known]

        def draw(left: Axes, right: Axes) -> None:
            for case in known:
                slice_mm, _, pixel_mm = case.facts.spacing_mm
                link_marks(left, pixel_mm, slice_mm, self.links[id(case)], BLUE)
            left.set(xlabel="pixel (mm)", ylabel="slice distance (mm)", title="Spacing")
            left.margins(0.12)
            for case in cases:
                share = 100 * case.facts.kidney_share
                link_marks(right, case.facts.shape[0], share, self.links[id(case)], BLUE)
            right.set(
                xlabel="slices",
                ylabel="slices with kidney (%)",
                title="Length of the scan",
                ylim=(0, 105),
            )
            right.margins(x=0.12)

        shown = plot(
            "sizes",
            "Spacing, and number of slices with share of kidney",
            draw,
            panels=2,
            hints=self._hints(_size_text),
        )
        sizes = Counter("{2} x {1}".format(*case.facts.shape) for case in cases)
        usual = ", ".join(f"{size} ({count})" for size, count in sizes.most_common(4))
        what = "Volumes" if self.volumes else "Single slices"
        caption = f"{what} of {_people(cases)}. Columns x rows, with the number of cases: {usual}"
        return figure(shown, f"{caption}{', ...' if len(sizes) > 4 else ''}.")

    def _volumes(self) -> Html:
        if not self.volumes:
            return Html()
        tumours = [case for case in self.volumes if case.facts.tumour_ml]
        groups = [
            source for source in self.sources if any(c.source == source for c in self.volumes)
        ]

        def strip(axes: Axes, cases: Sequence[ExploredCase], what: str) -> None:
            for place, source in enumerate(groups):
                colour, marker = SERIES[place % len(SERIES)]
                own = [case for case in cases if case.source == source]
                values = [getattr(case.facts, f"{what}_ml") for case in own]
                for at, (case, value) in enumerate(zip(own, values, strict=True)):
                    shift = 0.07 * (at % 5 - 2)
                    link_marks(axes, value, place + shift, self.links[id(case)], colour, marker)
                if own:
                    median = float(np.median(values))
                    axes.plot([median, median], [place - 0.35, place + 0.35], color=INK)
            names = [
                f"{short(source)}\n{_people([c for c in cases if c.source == source])}"
                for source in groups
            ]
            axes.set_yticks(range(len(groups)), names)
            axes.set_ylim(-0.6, len(groups) - 0.4)
            most = max((getattr(case.facts, f"{what}_ml") for case in cases), default=0.0)
            axes.set_xlim(0, 1.06 * max(most, 1.0))
            axes.set(
                xlabel=f"{what} volume (ml)", ylabel="source", title=f"{what} volume".capitalize()
            )

        def draw(*axes: Axes) -> None:
            strip(axes[0], self.volumes, "kidney")
            if tumours:
                strip(axes[1], tumours, "tumour")

        shown = plot(
            "volumes",
            "Kidney and tumour volume by source",
            draw,
            panels=2 if tumours else 1,
            height_inches=1.4 + 0.75 * len(groups),
            hints=self._hints(_volume_text),
        )
        caption = (
            f"Both kidneys together, tumours included; {_people(self.volumes)}. The line is the "
            "median. Where a scan ends within a kidney, only what it shows is counted."
        )
        return figure(shown, caption)

    def _intensity(self) -> list[Html]:
        in_hu = [case for case in self.volumes if case.facts.brightness is not None]
        others = [c for c in self.cases if c.is_slice and c.facts.brightness is not None]
        parts = [
            self._brightness(cases, name, unit)
            for cases, name, unit in ((in_hu, "hu", "HU"), (others, "stored", "value as stored"))
            if cases
        ]
        guesses = Counter(case.facts.phase.name for case in in_hu)
        sure = Counter(case.facts.phase.name for case in in_hu if case.facts.phase.sure)
        if guesses:
            text = "; ".join(
                f"{phase} {guesses[phase]} ({sure[phase]} of them sure)"
                for phase in PHASES
                if guesses[phase]
            )
            parts.append(
                paragraph(
                    f"Contrast phases, guessed: {text}. {_people(in_hu)}. A guess is sure where no "
                    "figure that it follows from is close to a limit and the CT was not clipped."
                )
            )
        rules = (guess_phase.__doc__ or "").split("\n\n", 1)[-1]
        parts.append(
            tag("details", tag("summary", "How phases are guessed"), tag("pre", _unindented(rules)))
        )
        return parts or [paragraph("No case has enough kidney to measure its intensity.")]

    def _brightness(self, cases: Sequence[ExploredCase], name: str, unit: str) -> Html:
        def median(case: ExploredCase) -> float:
            assert case.facts.brightness is not None
            return case.facts.brightness.kidney.median

        ranked = sorted(cases, key=median)
        named = len(ranked) <= _MOST_NAMES

        def draw(axes: Axes) -> None:
            series = dict(zip(PHASES, (*SERIES, (INK, "v")), strict=True))
            used = [
                phase for phase in PHASES if any(case.facts.phase.name == phase for case in ranked)
            ]
            for phase in used:
                colour, marker = series[phase]
                label = f"kidney, {phase}" if name == "hu" else "kidney"
                axes.plot([], [], marker, color=colour, linestyle="none", label=label)
            axes.plot([], [], "|", color=FAINT, linestyle="none", label="around it", markersize=9)
            for place, case in enumerate(ranked):
                seen = case.facts.brightness
                assert seen is not None
                colour, marker = series[case.facts.phase.name]
                _bar(axes, seen.kidney, place, colour)
                link_marks(axes, seen.kidney.median, place, self.links[id(case)], colour, marker)
                if seen.around is not None:
                    _bar(axes, seen.around, place, FAINT)
                    axes.plot([seen.around.median], [place], "|", color=FAINT, markersize=9)
            names = [short(case.name) for case in ranked] if named else []
            axes.set_yticks(range(len(names)), names)
            axes.set_ylim(-0.7, len(ranked) - 0.3)
            axes.set(xlabel=unit, ylabel="case" if named else f"{len(ranked)} cases by median")
            axes.set_title("Kidney and what is around it")
            axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))

        shown = plot(
            f"brightness-{name}",
            "Intensity of kidney and surroundings by case",
            draw,
            height_inches=1.5 + 0.2 * min(len(ranked), _MOST_NAMES),
            hints=self._hints(_phase_text),
        )
        caption = (
            f"Median and quartiles; {_people(ranked)}. Kidney: label 1 without its outer 2 mm. "
            "Around it: 2 to 12 mm outside of all labels, in the slice."
        )
        return figure(shown, caption)

    def _hints(self, text: Callable[[ExploredCase], str]) -> dict[str, str]:
        return {self.links[id(case)]: text(case) for case in self.cases}

    def _table(self) -> list[Html]:
        with_patients = any(
            case.patient not in (case.name, f"{case.source}/{case.name}") for case in self.cases
        )
        columns = [Column("case", "Case")]
        columns += [Column("source", "Source")] if len(self.sources) > 1 else []
        columns += [Column("patient", "Patient")] if with_patients else []
        columns += [
            Column("slices", "Slices", numeric=True),
            Column("size", "Columns x rows"),
            Column("pixel", "Pixel (mm)", numeric=True),
            Column("distance", "Slice distance (mm)", numeric=True),
            Column("share", "Slices with kidney (%)", numeric=True),
            Column("kidney", "Kidney (ml)", numeric=True),
            Column("tumour", "Tumour (ml)", numeric=True),
            Column("brightness", "Kidney, median (HU)", numeric=True),
            Column("around", "Around it (HU)", numeric=True),
            Column("phase", "Phase, guessed", wide=True),
        ]
        rows = []
        for case in self.cases:
            seen = case.facts
            slice_mm, _, pixel_mm = seen.spacing_mm
            bright = seen.brightness
            row = [Cell(case.name)]
            row += [Cell(case.source)] if len(self.sources) > 1 else []
            row += [Cell(case.patient)] if with_patients else []
            row += [
                number(seen.shape[0], 0),
                Cell("{2} x {1}".format(*seen.shape)),
                number(pixel_mm if case.spacing_known else None, 2),
                number(None if case.is_slice else slice_mm, 2),
                number(100 * seen.kidney_share, 0),
                number(None if case.is_slice else seen.kidney_ml, 1),
                number(None if case.is_slice else seen.tumour_ml, 1),
                number(None if bright is None else bright.kidney.median, 0),
                number(None if bright is None or not bright.around else bright.around.median, 0),
                Cell(f"{seen.phase} ({seen.phase.why})"),
            ]
            rows.append(row)
        text = (
            f"{_people(self.cases)}. Click a heading to sort. A phase with a question mark is "
            "not sure. Values of pictures are as stored, not HU."
        )
        ids = [link[1:] for link in self.links.values()]
        return [paragraph(text), table("cases", columns, rows, ids)]


def _gallery(samples: Sequence[Sample]) -> list[Html]:
    shown = [
        figure(picture(one.image, f"{one.caption}, labels outlined", _SLICE_PX), one.caption)
        for one in samples
    ]
    text = "Drawn at random from the slices with kidney; kidney red, tumour purple."
    return [paragraph(text), tag("div", *shown, class_="gallery")]


def _shown(predictions: Predictions) -> list[Html]:
    number = len(predictions.samples)
    several = "" if number == predictions.shown else f" ({number} cases)"
    parts = [
        paragraph(
            f"{predictions.card.title} on random slices of {predictions.shown} of the "
            f"{predictions.patients} patients who did not train it{several}. Reference red, "
            "prediction blue, both purple. If the model's epoch was chosen by these patients, "
            "their figures flatter it a little."
        )
    ]
    parts += [
        figure(picture(one.image, f"{one.caption}, outlined", _SHEET_PX), one.caption)
        for one in predictions.samples
    ]
    return parts


def _bar(axes: Axes, spread: Spread, place: float, colour: str) -> None:
    axes.plot([spread.low, spread.high], [place, place], color=colour, linewidth=2)


def _people(cases: Sequence[ExploredCase]) -> str:
    """How many patients these cases are, as it stands beside every figure."""
    patients = len({case.patient for case in cases})
    text = "1 patient" if patients == 1 else f"{patients} patients"
    return text if patients == len(cases) else f"{text} ({len(cases)} cases)"


def _size_text(case: ExploredCase) -> str:
    slice_mm, _, pixel_mm = case.facts.spacing_mm
    return (
        f"{case.name}: {case.facts.shape[0]} slices {slice_mm:.2f} mm apart, pixel "
        f"{pixel_mm:.2f} mm, {case.facts.kidney_share:.0%} of the slices with kidney"
    )


def _volume_text(case: ExploredCase) -> str:
    return (
        f"{case.name}: kidneys {case.facts.kidney_ml:.1f} ml, tumour {case.facts.tumour_ml:.1f} ml"
    )


def _phase_text(case: ExploredCase) -> str:
    return f"{case.name}: {case.facts.phase}, {case.facts.phase.why}"


def _unindented(text: str) -> str:
    return "\n".join(line.removeprefix("    ") for line in text.splitlines()).strip()
