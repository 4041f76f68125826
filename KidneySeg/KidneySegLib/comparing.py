"""Two models on the same cases: who is better by how much, where, and whether it is chance.

Differences are the second's figure minus the first's. Of figures that are best at zero, such as
the volume difference, the sizes are compared.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from KidneySegLib.errors import InputError, UsageError
from KidneySegLib.evaluation import (
    FIGURES,
    INTERVAL,
    PARTS,
    CaseScores,
    Cohort,
    bootstrap_interval,
    write_table,
)
from KidneySegLib.writing import write_json

SLICES = 10
# With fewer cases than this the test cannot fall below 0.05, whatever they show.
FEWEST_CASES = 6
# Figures that differ by less were only rounded, in a table or in single precision.
_DECIMALS = 5
_ROUNDING = 10**-_DECIMALS

DEFINITIONS = {
    "difference": "The second's figure minus the first's, in the same case; of volume differences "
    f"their sizes are compared, and what differs by less than {_ROUNDING:g} counts as equal.",
    "p": "Two-sided Wilcoxon signed-rank test of the differences, those of zero left out "
    "(Wilcoxon, Biometrics Bulletin 1 (1945) 80), not corrected for the number of figures.",
    "interval": INTERVAL.replace("the mean over cases", "the mean difference over cases"),
    "slices": "The axial slices whose Dice, smoothed as for the per-slice score, differs most; 1 "
    "is the one closest to the head.",
}


@dataclass(frozen=True)
class CaseDifference:
    """One case in the eyes of both."""

    name: str
    a: CaseScores
    b: CaseScores

    def values(self, figure: str, part: str = "kidney") -> tuple[float, float] | None:
        """The figures that are compared; None where one of them is not defined."""
        first, second = self.a.value(figure, part), self.b.value(figure, part)
        if first is None or second is None:
            return None
        return (abs(first), abs(second)) if FIGURES[figure].better == "zero" else (first, second)


@dataclass(frozen=True)
class PairedTest:
    """One figure of one part over all cases.

    Attributes
    ----------
    cases
        Those in which both have it.
    mean_difference, low, high
        Mean of the differences, and its bootstrap interval (None for a single case).
    better_a, better_b
        In how many cases each is the better one.
    p
        Of Wilcoxon's signed-rank test; None where no case differs.
    """

    figure: str
    part: str
    cases: int
    mean_a: float
    mean_b: float
    mean_difference: float
    low: float | None
    high: float | None
    better_a: int
    better_b: int
    p: float | None


@dataclass(frozen=True)
class SliceDifference:
    """One axial slice in the eyes of both.

    Attributes
    ----------
    slice
        Its number, from 1 at the head.
    z_mm
        Its height in mm, which Slicer shows as S.
    dice_a, dice_b
        The smoothed Dice of both kidneys together.
    """

    case: str
    slice: int
    z_mm: float
    dice_a: float
    dice_b: float


@dataclass(frozen=True)
class Comparison:
    """What `compare` found.

    Attributes
    ----------
    names
        Of the first and the second.
    cases
        Those that both have, in the order of their names.
    tests
        By figure and part.
    slices
        Where they differ most, the largest difference first; none where the results do not hold
        the figures of single slices.
    notes
        Sentences on what could not be compared.
    """

    names: tuple[str, str]
    cases: tuple[CaseDifference, ...]
    tests: tuple[PairedTest, ...]
    slices: tuple[SliceDifference, ...]
    notes: tuple[str, ...]

    def rows(self) -> list[dict[str, Any]]:
        """The figures of every case: case, figure, part, a, b, difference."""
        table: list[dict[str, Any]] = []
        for case in self.cases:
            for test in self.tests:
                values = case.values(test.figure, test.part)
                if values is not None:
                    table.append(
                        {
                            "case": case.name,
                            "figure": test.figure,
                            "part": test.part,
                            "a": values[0],
                            "b": values[1],
                            "difference": values[1] - values[0],
                        }
                    )
        return table

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return {
            "a": self.names[0],
            "b": self.names[1],
            "tests": [asdict(test) for test in self.tests],
            "slices": [asdict(one) for one in self.slices],
            "cases": self.rows(),
            "notes": list(self.notes),
            "definitions": {
                **{key: figure.definition for key, figure in FIGURES.items()},
                **DEFINITIONS,
            },
        }

    def to_json(self, path: Path | str) -> None:
        """Write `to_dict`; errors as of `writing.write_json`."""
        write_json(self.to_dict(), path)

    def to_csv(self, path: Path | str) -> None:
        """Write `rows` as a table; errors as of `evaluation.write_table`."""
        rows = self.rows()
        for row in rows:
            row |= {key: f"{row[key]:.6f}" for key in ("a", "b", "difference")}
        write_table(("case", "figure", "part", "a", "b", "difference"), rows, path)


def compare(
    a: Cohort, b: Cohort, names: tuple[str, str] = ("A", "B"), *, slices: int = SLICES
) -> Comparison:
    """Compare two evaluations of the same cases.

    Parameters
    ----------
    names
        What to call the two.
    slices
        How many slices to name at most.

    Raises
    ------
    InputError
        They have no case in common.
    UsageError
        scipy is missing.
    """
    others = {case.name: case for case in b.cases}
    cases = tuple(
        CaseDifference(case.name, case, others[case.name])
        for case in a.cases
        if case.name in others
    )
    if not cases:
        raise InputError(
            f"{names[0]} and {names[1]} have no case in common; evaluate both on the same folder "
            "of references."
        )
    notes = [
        f"{case.name} is only in {name}"
        for name, cohort, other in zip(names, (a, b), (b, a), strict=True)
        for case in cohort.cases
        if case.name not in {one.name for one in other.cases}
    ]
    notes += [
        f"{case.name} was measured against references of different volume"
        for case in cases
        if abs(case.a.parts["kidney"].reference_ml - case.b.parts["kidney"].reference_ml)
        > _ROUNDING
    ]
    if len(cases) < FEWEST_CASES:
        notes.append(f"with {len(cases)} cases no p below 0.05 is possible")
    if not all(case.a.slice_dice and case.b.slice_dice for case in cases):
        notes.append(
            "a table does not hold the figures of single slices; compare results of --report, or "
            "folders"
        )
    tests = (
        _test(cases, figure, part)
        for figure in FIGURES
        for part in (PARTS if figure != "slice_score" else PARTS[:1])
    )
    return Comparison(
        names=names,
        cases=cases,
        tests=tuple(test for test in tests if test is not None),
        slices=tuple(_slices(cases)[:slices]),
        notes=tuple(notes),
    )


def _test(cases: Sequence[CaseDifference], figure: str, part: str) -> PairedTest | None:
    """None where no case has this figure from both."""
    found = [values for case in cases if (values := case.values(figure, part)) is not None]
    if not found:
        return None
    first, second = np.array(found).T
    differences = second - first
    differences[np.abs(differences) < _ROUNDING] = 0
    interval = bootstrap_interval(differences.tolist())
    gains = differences if FIGURES[figure].better == "higher" else -differences
    return PairedTest(
        figure=figure,
        part=part,
        cases=len(found),
        mean_a=float(first.mean()),
        mean_b=float(second.mean()),
        mean_difference=float(differences.mean()),
        low=None if interval is None else interval.low,
        high=None if interval is None else interval.high,
        better_a=int(np.count_nonzero(gains < 0)),
        better_b=int(np.count_nonzero(gains > 0)),
        p=_wilcoxon(differences),
    )


def _wilcoxon(differences: np.ndarray) -> float | None:
    """The p of the signed-rank test.

    Exact up to 50 cases, with ties up to 13; else by the normal approximation.
    """
    try:
        from scipy.stats import wilcoxon
    except ModuleNotFoundError as error:
        raise UsageError(
            "Comparing needs the Python package scipy, which is not there; run `pip install scipy`."
        ) from error
    # Differences of equal size, as of volumes in whole voxels, differ in their last digits.
    differing = np.round(differences[differences != 0], _DECIMALS)
    if not differing.size:
        return None
    p = float(wilcoxon(differing).pvalue)
    return p if math.isfinite(p) else None


def _slices(cases: Sequence[CaseDifference]) -> list[SliceDifference]:
    """Every slice in which they differ, the largest difference first."""
    found = [
        SliceDifference(case.name, number, z_mm, of_a, of_b)
        for case in cases
        if len(case.a.slice_dice) == len(case.b.slice_dice)
        for number, (z_mm, of_a, of_b) in enumerate(
            zip(case.a.slice_z_mm, case.a.slice_dice, case.b.slice_dice, strict=True), start=1
        )
        if abs(of_a - of_b) >= _ROUNDING
    ]
    return sorted(found, key=lambda one: (-abs(one.dice_b - one.dice_a), one.case, one.slice))
