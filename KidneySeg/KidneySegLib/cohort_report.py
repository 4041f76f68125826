"""One HTML page about how well predictions agree with their references, for people who look.

Figures come from `evaluation`, pictures from `overlay`, the page from `htmlpage`. Nothing that is
shown is computed twice: what `kidneyseg evaluate` tells of a case is what stands here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import date
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from KidneySegLib import __version__
from KidneySegLib.cohort_files import Images, Origin, Run, origins_of
from KidneySegLib.errors import InputError, KidneySegError
from KidneySegLib.evaluation import (
    FIGURES,
    INTERVAL,
    NOT_COUNTED,
    CaseScores,
    Cohort,
    bootstrap_interval,
)
from KidneySegLib.htmlpage import (
    Cell,
    Column,
    Html,
    Page,
    facts,
    figure,
    join,
    number,
    paragraph,
    picture,
    table,
    tag,
    tiles,
)
from KidneySegLib.modelcard import Card, card_of, patients_of
from KidneySegLib.overlay import Look, contact_sheet
from KidneySegLib.pictures.style import RED_BLUE
from KidneySegLib.plots import BLUE, FAINT, INK, ORANGE, SERIES, link_marks, plot, short

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Progress = Callable[[float, str], None]

# Cases with a picture of their own, by default; a picture takes about 100 kB of the page.
PICTURES = 20
_CHOSEN_SLICES, _CHOSEN_PX = 6, 1200
_SLICES, _PX = 3, 1000
_TILE_PX = 330
# More names than this do not fit beside a plot.
_MOST_NAMES = 45
_DIGITS = {"ml": 1, "%": 1, "mm": 2, "": 3}
_PART_NAMES = {"kidney": "both kidneys", "left": "left kidney", "right": "right kidney"}


class _Pictures:
    """The pictures of a page: drawn once each, and why some are missing."""

    def __init__(self, load: Callable[[CaseScores], Images] | None, look: Look) -> None:
        self.load, self.look = load, look
        self.missing: dict[str, str] = {}

    def draw(self, case: CaseScores, title: str, slices: int, widest_px: int) -> Html | None:
        if self.load is None:
            return None
        try:
            ct, prediction, reference = self.load(case)
            look = replace(self.look, title=title, height_px=_TILE_PX)
            sheet = contact_sheet(ct, prediction, reference, slices=slices, look=look)
        except KidneySegError as error:
            self.missing[case.name] = str(error)
            return None
        return picture(sheet, f"Slices of {title}: reference and prediction outlined", widest_px)


# --- The page -----------------------------------------------------------------------------------


class Agreement(NamedTuple):
    """Agreement of two ways to measure.

    Attributes
    ----------
    bias
        Mean of the differences.
    low, high
        95 % limits of agreement, bias -/+ 1.96 standard deviations; None for a single pair.
    """

    bias: float
    low: float | None
    high: float | None


def agreement(values: Sequence[float], reference: Sequence[float]) -> Agreement:
    """Bias and limits of agreement of pairs of measurements.

    Bland and Altman, Lancet 327 (1986) 307.

    Raises
    ------
    ValueError
        There is no pair, or the numbers of values differ.
    """
    if not values or len(values) != len(reference):
        raise ValueError("Agreement needs pairs of values.")
    differences = np.subtract(values, reference)
    bias = float(differences.mean())
    if len(values) < 2:
        return Agreement(bias, None, None)
    reach = 1.96 * float(differences.std(ddof=1))
    return Agreement(bias, bias - reach, bias + reach)


def report_page(
    cohort: Cohort,
    *,
    title: str = "",
    load: Callable[[CaseScores], Images] | None = None,
    origins: Mapping[str, Origin] | None = None,
    card: Card | None = None,
    run: Run | None = None,
    pictures: int = PICTURES,
    look: Look | None = None,
    progress: Progress | None = None,
) -> Page:
    """A page about a cohort.

    Parameters
    ----------
    title
        Of the page; by default after the folder of the predictions.
    load
        Gives CT, prediction and reference of a case, for pictures; see `Files.of`. A
        `KidneySegError` of it is told in the page. Without it there are no pictures.
    origins
        Of the cases, as `origins_of` gives them.
    card
        Of the model.
    run
        How the predictions were made.
    pictures
        How many cases get one: best, median and worst, then from the worst on.
    look
        Of the pictures; title and height play no part.
    progress
        Called with the share that is done and the name of a case.

    Raises
    ------
    InputError
        The cohort has no case.
    UsageError
        matplotlib is missing.
    """
    if not cohort.cases:
        # What cannot be read tells more than what is not there.
        worst = sorted(cohort.problems, key=lambda one: one.kind != "unusable")[:1]
        why = "".join(f" ({one.case}: {one.reason.rstrip('.')})" for one in worst)
        raise InputError(f"Nothing could be compared{why}; check predictions and references.")
    return _Report(cohort, title, load, origins, card, run or Run(), pictures, look or Look()).page(
        progress or (lambda share, name: None)
    )


class _Report:
    """What the parts of a page share."""

    def __init__(
        self,
        cohort: Cohort,
        title: str,
        load: Callable[[CaseScores], Images] | None,
        origins: Mapping[str, Origin] | None,
        card: Card | None,
        run: Run,
        pictures: int,
        look: Look,
    ) -> None:
        self.cohort, self.card, self.run = cohort, card, run
        self.origins = dict(origins_of(cohort) if origins is None else origins)
        name = PurePosixPath(Path(cohort.prediction).as_posix()).name if cohort.prediction else ""
        self.title = title or ": ".join(filter(None, ("Kidney segmentation report", name)))
        self.pictures = _Pictures(load, look)
        self.most = pictures
        self.anchors = {case.name: f"case-{n}" for n, case in enumerate(cohort.cases, start=1)}
        self.sources = sorted({origin.source for origin in self.origins.values()})
        ranked = [case for case in cohort.cases if case.value("dice") is not None]
        self.ranked = sorted(ranked, key=lambda case: (-(case.value("dice") or 0.0), case.name))
        self.links = {case.name: f"#{self.anchors[case.name]}" for case in cohort.cases}

    def page(self, progress: Progress) -> Page:
        page = Page(
            self.title,
            f"{self.people(self.cohort.cases)}, predictions against references, "
            f"{date.today().isoformat()}.",
        )
        chosen, others = self._draw(progress)
        page.add("overview", "Overview", *self._overview())
        page.add("cases-table", "Cases", *self._cases())
        page.add("dice", "Dice", self._dice_by_case(), self._dice_by_source())
        page.add("volumes", "Volumes", self._volumes())
        page.add("pictures", "Best, median and worst case", *chosen)
        if others:
            page.add("more-pictures", "More cases, from the worst on", *others)
        page.add("figures", "All figures", *self._figures())
        page.add("settings", "Settings", *self._settings())
        if self.card is not None:
            page.add("model", "Model card", *self._model())
        return page

    def people(self, cases: Sequence[CaseScores]) -> str:
        """How many patients these cases are, as it stands beside every figure."""
        patients = len({self.origins[case.name].patient for case in cases})
        text = "1 patient" if patients == 1 else f"{patients} patients"
        return text if patients == len(cases) else f"{text} ({len(cases)} cases)"

    def having(self, name: str, part: str = "kidney") -> list[CaseScores]:
        """Cases for which a figure is defined."""
        return [case for case in self.cohort.cases if case.value(name, part) is not None]

    # --- Text and tables ---

    def _overview(self) -> list[Html]:
        entries = []
        for name, what in (
            ("dice", "mean Dice"),
            ("surface_dice_2mm", "mean surface Dice, 2 mm"),
            ("slice_score", "mean per-slice score"),
        ):
            values = self.cohort.values(name)
            if values:
                count = self.people(self.having(name))
                interval = bootstrap_interval(values)
                if interval is not None:
                    count = f"95 % interval {interval.low:.3f} to {interval.high:.3f}, {count}"
                entries.append((f"{np.mean(values):.3f}", what, count))
        if self.ranked:
            worst = self.ranked[-1]
            text = f"{worst.name}, of {self.people(self.ranked)}"
            entries.append((f"{worst.value('dice'):.3f}", "lowest Dice", text))
        values = self.cohort.values("volume_difference_percent")
        if values:
            count = f"of the reference, {self.people(self.having('volume_difference_percent'))}"
            entries.append((f"{np.mean(values):+.1f} %", "mean volume difference", count))
        return [
            tiles(entries),
            paragraph("Dice of both kidneys together: ", FIGURES["dice"].definition),
            paragraph("Per-slice score: ", FIGURES["slice_score"].definition),
            paragraph(NOT_COUNTED, class_="faint"),
            *self._trained(),
        ]

    def _trained(self) -> list[Html]:
        """A warning where cases trained the model, or that nobody knows."""
        split = None if self.card is None else patients_of(self.card.folder)
        if split is None:
            text = (
                "Whether some of these patients trained the model is not known here; if so, the "
                "figures flatter it."
            )
            return [paragraph(text, class_="faint")]
        trained = {PurePosixPath(patient).name for patient in split.training}
        names = []
        for case in self.cohort.cases:
            known = (case.name, self.origins[case.name].patient)
            if trained & {PurePosixPath(name).name for name in known}:
                names.append(case.name)
        if not names:
            text = f"By their names, none of these cases trained the model ({split.path})."
            return [paragraph(text, class_="faint")]
        text = (
            f"By their names, {len(names)} of these {len(self.cohort.cases)} cases trained the "
            f"model ({', '.join(names)}), so the figures flatter it."
        )
        return [paragraph(tag("strong", text), class_="notice")]

    def _cases(self) -> list[Html]:
        with_patients = any(o.patient != name for name, o in self.origins.items())
        sides = [part for part in ("left", "right") if part in self.cohort.parts]
        columns = [Column("case", "Case")]
        columns += [Column("source", "Source")] if len(self.sources) > 1 else []
        columns += [Column("patient", "Patient")] if with_patients else []
        shown = [("dice", "kidney"), *(("dice", side) for side in sides)]
        shown += [
            (name, "kidney")
            for name in (
                "slice_score", "surface_dice_2mm", "mean_surface_distance_mm", "hausdorff_95_mm",
                "prediction_ml", "reference_ml", "volume_difference_ml",
                "volume_difference_percent",
            )
        ]  # fmt: skip
        columns += [Column(_key(*one), _title(*one), numeric=True) for one in shown]
        columns += [Column("notes", "Notes", wide=True)]
        rows = []
        for case in self.cohort.cases:
            origin = self.origins[case.name]
            row = [Cell(tag("a", case.name, href=self.links[case.name]), case.name)]
            row += [Cell(origin.source)] if len(self.sources) > 1 else []
            row += [Cell(origin.patient)] if with_patients else []
            row += [_figure_cell(case, *one) for one in shown]
            row += [Cell("; ".join((*_shortened(case), *self._failed_since(case))))]
            rows.append(row)
        count = self.people(self.cohort.cases)
        parts = [
            paragraph(f"{count}. Click a heading to sort, a case to see it."),
            table("cases", columns, rows, [f"row-{n}" for n in range(1, len(rows) + 1)]),
        ]
        problems = [(one.case, one.kind, one.reason) for one in self.cohort.problems]
        known = {case for case, _, _ in problems} | set(self.anchors)
        problems += [
            (case, "failed", reason)
            for case, reason in self.run.errors.items()
            if case not in known
        ]
        reasons = self.run.errors
        if problems:
            columns = [
                Column("case", "Case"),
                Column("kind", "What"),
                Column("reason", "Why", wide=True),
            ]
            rows = [
                [Cell(case), Cell(kind), Cell(reasons.get(case, reason))]
                for case, kind, reason in problems
            ]
            text = f"{len(problems)} more without figures, which count nowhere on this page:"
            parts += [paragraph(text), table("problems", columns, rows)]
        return parts

    def _failed_since(self, case: CaseScores) -> list[str]:
        """That there is a prediction is no sign that the last batch made it."""
        reason = self.run.errors.get(case.name)
        if reason is None:
            return []
        return [f"this prediction is older than the batch, which failed here: {reason}"]

    def _figures(self) -> list[Html]:
        columns = [
            Column("figure", "Figure"),
            Column("part", "Of"),
            Column("patients", "Patients", numeric=True),
            Column("mean", "Mean", numeric=True),
            Column("interval", "95 % interval"),
            Column("median", "Median", numeric=True),
            Column("lowest", "Lowest", numeric=True),
            Column("highest", "Highest", numeric=True),
        ]
        rows = []
        for name, parts in self.cohort.summary().items():
            unit = FIGURES[name].unit
            digits = _DIGITS[unit]
            for part, summary in parts.items():
                interval = (
                    ""
                    if summary.low is None or summary.high is None
                    else f"{summary.low:.{digits}f} to {summary.high:.{digits}f}"
                )
                patients = {self.origins[case.name].patient for case in self.having(name, part)}
                rows.append(
                    [
                        Cell(_with_unit(FIGURES[name].title, unit)),
                        Cell(_PART_NAMES.get(part, part)),
                        number(len(patients), 0),
                        number(summary.mean, digits),
                        Cell(interval),
                        number(summary.median, digits),
                        number(summary.minimum, digits),
                        number(summary.maximum, digits),
                    ]
                )
        meanings = [(_with_unit(one.title, one.unit), one.definition) for one in FIGURES.values()]
        return [
            table("all-figures", columns, rows),
            paragraph(INTERVAL, class_="faint"),
            tag("h3", "What the figures mean"),
            facts(meanings),
        ]

    def _settings(self) -> list[Html]:
        look = self.pictures.look
        entries = [
            ("Predictions", self.cohort.prediction or "not said"),
            ("References", self.cohort.reference or "not said"),
            ("Model", "; ".join(self.run.models) or (self.card.title if self.card else "not said")),
            *self.run.settings,
            ("Window of the pictures", _window(look)),
            ("Date", date.today().isoformat()),
            ("Version", f"KidneySeg {__version__}"),
        ]
        return [facts(entries)]

    def _model(self) -> list[Html]:
        assert self.card is not None
        parts = [card_of(self.card)]
        if self.run.models and self.card.title not in self.run.models:
            text = (
                f"The predictions say that they were made by {'; '.join(self.run.models)}, and "
                f"this is the card of {self.card.title}."
            )
            parts.insert(0, paragraph(tag("strong", text), class_="notice"))
        return parts

    # --- Pictures ---

    def _draw(self, progress: Progress) -> tuple[list[Html], list[Html]]:
        """The chosen cases and the others, as figures; links then lead to them."""
        if self.pictures.load is None:
            text = "No pictures: the CTs were not given (--images)."
            self.links = {name: f"#{self._row(name)}" for name in self.links}
            return [paragraph(text)], []
        places: dict[str, tuple[str, CaseScores]] = {}
        for what, at in (("Best", 0), ("Worst", -1), ("Median", len(self.ranked) // 2)):
            if self.ranked:
                case = self.ranked[at]
                places.setdefault(case.name, (what, case))
        order = ("Best", "Median", "Worst")
        chosen = sorted(places.values(), key=lambda one: order.index(one[0]))[: max(self.most, 0)]
        names = {case.name for _, case in chosen}
        undefined = [case for case in self.cohort.cases if case.value("dice") is None]
        rest = [case for case in (*undefined, *reversed(self.ranked)) if case.name not in names]
        rest = rest[: max(0, self.most - len(chosen))]
        total = len(chosen) + len(rest)
        drawn: tuple[list[Html], list[Html]] = ([], [])
        for done, (what, case) in enumerate([*chosen, *(("", case) for case in rest)]):
            progress(done / total, case.name)
            size = (_CHOSEN_SLICES, _CHOSEN_PX) if what else (_SLICES, _PX)
            shown = self.pictures.draw(case, f"{case.name}, {_dice_text(case)}", *size)
            row = self._row(case.name)
            if shown is None:
                self.links[case.name] = f"#{row}"
                continue
            back = tag("a", "its row in the table", href=f"#{row}")
            caption = join([f"{what}: " if what else "", self._caption(case), ", ", back])
            drawn[not what].append(figure(shown, caption, self.anchors[case.name]))
        with_picture = names | {case.name for case in rest}
        for name in set(self.links) - with_picture:
            self.links[name] = f"#{self._row(name)}"
        legend = "Dice is not defined for any case."
        if self.ranked:
            legend = f"By Dice, of {self.people(self.ranked)}."
            if self.pictures.look.style.colours == RED_BLUE:
                legend += " Reference red, prediction blue, both purple."
        drawn[0].insert(0, paragraph(legend))
        if self.pictures.missing:
            entries = [(name, reason) for name, reason in self.pictures.missing.items()]
            drawn[0].append(paragraph("Without a picture:"))
            drawn[0].append(facts(entries))
        return drawn

    def _row(self, name: str) -> str:
        return self.anchors[name].replace("case-", "row-")

    def _caption(self, case: CaseScores) -> str:
        ours, theirs = case.value("prediction_ml"), case.value("reference_ml")
        volumes = "" if ours is None else f", {ours:.0f} ml against {theirs:.0f} ml"
        return f"{case.name}, {_dice_text(case)}{volumes} (1 patient)"

    # --- Plots ---

    def _hints(self, text: Callable[[CaseScores], str]) -> dict[str, str]:
        return {self.links[case.name]: text(case) for case in self.cohort.cases}

    def _dice_by_case(self) -> Html:
        cases = list(reversed(self.ranked))
        if not cases:
            return paragraph("Dice is not defined for any case.")

        def draw(axes: Axes) -> None:
            series = dict(zip(self.sources, _series(self.sources), strict=True))
            for source, (colour, marker) in series.items():
                axes.plot([], [], marker, color=colour, linestyle="none", label=source or "cases")
            for place, case in enumerate(cases):
                colour, marker = series[self.origins[case.name].source]
                value = case.value("dice") or 0.0
                link_marks(axes, value, place, self.links[case.name], colour, marker)
            mean = float(np.mean([case.value("dice") for case in cases]))
            axes.axvline(mean, color=INK, linewidth=1, linestyle="--", label=f"mean {mean:.3f}")
            if len(cases) <= _MOST_NAMES:
                names = [short(case.name) for case in cases]
                axes.set_yticks(range(len(cases)), names)
                axes.set_ylabel("case")
            else:
                axes.set_yticks([])
                axes.set_ylabel(f"{len(cases)} cases by Dice")
            axes.set_ylim(-0.7, len(cases) - 0.3)
            axes.set_xlim(*_dice_limits([case.value("dice") or 0.0 for case in cases]))
            axes.set(xlabel="Dice of both kidneys (0 none, 1 identical)", title="Dice by case")
            if len(self.sources) > 1:
                axes.legend(loc="upper left")
            else:
                axes.legend(handles=axes.lines[-1:], loc="upper left")

        height = 1.3 + 0.2 * min(len(cases), _MOST_NAMES)
        shown = plot(
            "dice-by-case",
            "Dice by case",
            draw,
            height_inches=max(2.4, height),
            hints=self._hints(lambda case: f"{case.name}: {_dice_text(case)}"),
        )
        left_out = len(self.cohort.cases) - len(cases)
        caption = f"Dice of both kidneys, from the worst case up; {self.people(cases)}"
        caption += f"; not defined for {left_out} more" if left_out else ""
        return figure(shown, f"{caption}. The dashed line is the mean over cases.")

    def _dice_by_source(self) -> Html:
        groups = {
            source: [c for c in self.ranked if self.origins[c.name].source == source]
            for source in self.sources
        }
        groups = {source: cases for source, cases in groups.items() if cases}
        if not groups:
            return Html()

        def draw(axes: Axes) -> None:
            values: list[float] = []
            for place, (source, cases) in enumerate(groups.items()):
                colour, marker = _series(self.sources)[self.sources.index(source)]
                own = [case.value("dice") or 0.0 for case in cases]
                values += own
                for case, value, shift in zip(cases, own, _spread_out(own), strict=True):
                    link_marks(axes, value, place + shift, self.links[case.name], colour, marker)
                mean = float(np.mean(own))
                axes.plot([mean, mean], [place - 0.38, place + 0.38], color=INK, linewidth=1.6)
            names = [
                f"{short(source) or 'cases'}\n{self.people(cases)}"
                for source, cases in groups.items()
            ]
            axes.set_yticks(range(len(groups)), names)
            axes.set_ylim(-0.6, len(groups) - 0.4)
            axes.set_xlim(*_dice_limits(values))
            axes.set(
                xlabel="Dice of both kidneys (0 none, 1 identical)",
                ylabel="source",
                title="Dice by source",
            )

        shown = plot(
            "dice-by-source",
            "Dice by source",
            draw,
            height_inches=1.3 + 0.75 * len(groups),
            hints=self._hints(lambda case: f"{case.name}: {_dice_text(case)}"),
        )
        texts = []
        for source, cases in groups.items():
            own = [case.value("dice") or 0.0 for case in cases]
            texts.append(
                f"{source or 'cases'}: mean {np.mean(own):.3f}, lowest {min(own):.3f}, "
                f"{self.people(cases)}"
            )
        return figure(shown, f"The line is the mean. {'; '.join(texts)}.")

    def _volumes(self) -> Html:
        cases = self.having("volume_difference_ml")
        if not cases:
            return paragraph("No case has volumes.")
        ours = [case.value("prediction_ml") or 0.0 for case in cases]
        theirs = [case.value("reference_ml") or 0.0 for case in cases]
        found = agreement(ours, theirs)

        def draw(left: Axes, right: Axes) -> None:
            most = 1.06 * max(*ours, *theirs, 1.0)
            left.plot([0, most], [0, most], color=FAINT, linewidth=1, linestyle="--")
            for case, one, other in zip(cases, ours, theirs, strict=True):
                link = self.links[case.name]
                link_marks(left, other, one, link, BLUE)
                link_marks(right, (one + other) / 2, one - other, link, BLUE)
            left.set(
                xlabel="reference (ml)",
                ylabel="prediction (ml)",
                title="Volume of both kidneys",
                xlim=(0, most),
                ylim=(0, most),
            )
            lines = [("bias", found.bias, "-")]
            if found.low is not None and found.high is not None:
                lines += [("+1.96 SD", found.high, "--"), ("-1.96 SD", found.low, "--")]
            for name, value, style in lines:
                right.axhline(value, color=ORANGE, linewidth=1.2, linestyle=style)
                right.annotate(
                    f"{name}\n{value:+.1f}",
                    (1.0, value),
                    xycoords=("axes fraction", "data"),
                    xytext=(4, 0),
                    textcoords="offset points",
                    va="center",
                    fontsize=9,
                )
            right.axhline(0, color=FAINT, linewidth=1)
            right.set(
                xlabel="mean of both (ml)",
                ylabel="prediction minus reference (ml)",
                title="Bland-Altman",
            )
            right.margins(x=0.1, y=0.18)

        shown = plot(
            "bland-altman",
            "Prediction volume against reference volume, and Bland-Altman plot",
            draw,
            panels=2,
            height_inches=3.7,
            hints=self._hints(_volume_text),
        )
        caption = f"{self.people(cases)}. Bias {found.bias:+.1f} ml"
        if found.low is not None:
            caption += f", 95 % limits of agreement {found.low:+.1f} to {found.high:+.1f} ml"
        return figure(
            shown,
            f"{caption} (Bland and Altman, Lancet 327 (1986) 307). The dashed line on the left is "
            "where both volumes are equal.",
        )


def _dice_text(case: CaseScores) -> str:
    value = case.value("dice")
    return "no kidney in either" if value is None else f"Dice {value:.3f}"


def _volume_text(case: CaseScores) -> str:
    ours, theirs = case.value("prediction_ml"), case.value("reference_ml")
    if ours is None or theirs is None:
        return case.name
    return f"{case.name}: {ours:.1f} ml, reference {theirs:.1f} ml"


def _series(sources: Sequence[str]) -> list[tuple[str, str]]:
    """A colour and a marker for each source; they repeat where there are more than four."""
    return [SERIES[n % len(SERIES)] for n in range(len(sources))]


def _spread_out(values: Sequence[float], width: float = 0.05) -> list[float]:
    """Shifts that keep marks of nearly equal values, given in order, from hiding one another."""
    return [width * ((n % 5) - 2) if len(values) > 1 else 0.0 for n in range(len(values))]


def _dice_limits(values: Sequence[float]) -> tuple[float, float]:
    """From a round number below the lowest to a little over 1."""
    low = math.floor((min(values) - 0.02) * 10) / 10
    low = min(max(low, 0.0), 0.9)
    return low - 0.02 * (1 - low), 1 + 0.02 * (1 - low)


def _key(name: str, part: str) -> str:
    return name if part == "kidney" else f"{name}_{part}"


def _title(name: str, part: str) -> str:
    named = {"prediction_ml": "Prediction (ml)", "reference_ml": "Reference (ml)"}
    title = named.get(name) or _with_unit(FIGURES[name].title, FIGURES[name].unit)
    title = title[0].upper() + title[1:]
    return title if part == "kidney" else f"{title} {part}"


def _with_unit(title: str, unit: str) -> str:
    return f"{title} ({unit})" if unit else title


def _figure_cell(case: CaseScores, name: str, part: str) -> Cell:
    unit = FIGURES[name].unit if name in FIGURES else "ml"
    return number(case.value(name, part), _DIGITS[unit], sign=name.startswith("volume_difference"))


def _shortened(case: CaseScores) -> list[str]:
    """The notes without the paths that every row would repeat."""
    notes = []
    for note in case.notes:
        for path, name in ((case.prediction, "prediction"), (case.reference, "reference")):
            note = note.replace(path, f"the {name}") if path else note
        notes.append(note)
    return notes


def _window(look: Look) -> str:
    if isinstance(look.window, str):
        return f"{look.window} (-160 to 240 HU where values are HU)"
    low, high = look.window
    return f"{low:g} to {high:g} HU"
