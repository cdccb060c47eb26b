"""What listeners answered on a comparison page, as a table with intervals."""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from scipy.stats import binomtest

from audio_ct.errors import InputError, MissingError

MAX_BYTES = 1 << 24


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class JudgedSound(_Strict):
    """A sound that was heard: whose, None of real speech, and which."""

    model: str | None
    label: str


class Answer(_Strict):
    """A pair that was judged."""

    question: Literal["real", "better"]
    first: JudgedSound
    second: JudgedSound
    chosen: Literal["first", "second", "neither"]

    def is_consistent(self) -> bool:
        """Whether its question has such a pair and such an answer."""
        models = [self.first.model, self.second.model]
        if self.question == "real":
            return models.count(None) == 1 and self.chosen != "neither"
        return None not in models and models[0] != models[1]


class AnswerSheet(_Strict):
    """What a comparison page saves of a listener."""

    format: Literal["audio-ct answers 1"]
    comparison: str = Field(min_length=1)
    title: str
    listener: str = Field(min_length=1)
    name: str
    answers: list[Answer]


def read_answers(path: Path) -> AnswerSheet:
    """Read a file that a comparison page saved.

    Raises:
        MissingError: if it is not there.
        InputError: if it is not such a file.
    """
    if not path.is_file():
        raise MissingError(f"answers {str(path)!r} is not a file; name one that a comparison page saved.")
    remedy = "name a file that a comparison page saved, as it was saved."
    if path.stat().st_size > MAX_BYTES:
        raise InputError(f"answers {str(path)!r} has over {MAX_BYTES >> 20} MiB, which no answers have; {remedy}")
    try:
        sheet = AnswerSheet.model_validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise InputError(f"answers {str(path)!r}: {where}: {first['msg']}; {remedy}") from None
    for number, answer in enumerate(sheet.answers):
        if not answer.is_consistent():
            raise InputError(f"answers {str(path)!r}: answers.{number} is no pair of its question; {remedy}")
    return sheet


def preference_table(sheets: Sequence[AnswerSheet]) -> dict[str, Any]:
    """Count the answers of all listeners to one page, and how far the counts can be trusted.

    Args:
        sheets: of each listener one.

    Returns:
        comparison, title, num_listeners and num_answers; real: of each model, how many of its sounds were taken for
        real (taken, of), the share, 0.5 for a model that nobody can tell from speech, its interval and p_value;
        better: of each two models a and b, how often a was called better (a_better, of, without the no_preference), the
        share, its interval and p_value. Intervals are exact, of 95 %; p values are those of a share of 0.5.

    Raises:
        InputError: if answers are of several pages, or a listener's are given twice.

    Source: Clopper and Pearson 1934, "The use of confidence or fiducial limits illustrated in the case of the
    binomial"; scipy.stats.binomtest.
    """
    first = sheets[0]
    listeners: set[str] = set()
    for sheet in sheets:
        if sheet.comparison != first.comparison:
            raise InputError(
                f"answers of {_listener(sheet)} are about page {sheet.comparison} ({sheet.title!r}), those of "
                f"{_listener(first)} about {first.comparison} ({first.title!r}); give answers to one page."
            )
        if sheet.listener in listeners:
            raise InputError(f"answers of {_listener(sheet)} are given twice; give the newer file alone.")
        listeners.add(sheet.listener)
    taken: dict[str, list[bool]] = defaultdict(list)
    better: dict[tuple[str, str], list[str | None]] = defaultdict(list)
    for answer in (answer for sheet in sheets for answer in sheet.answers):
        sounds = {"first": answer.first.model, "second": answer.second.model}
        chosen = sounds.get(answer.chosen)
        models = sorted(model for model in sounds.values() if model is not None)
        if answer.question == "real":
            taken[models[0]].append(chosen is not None)
        else:
            better[models[0], models[1]].append(chosen)
    return {
        "comparison": first.comparison,
        "title": first.title,
        "num_listeners": len(sheets),
        "num_answers": sum(len(sheet.answers) for sheet in sheets),
        "real": [
            {"model": model, "taken": sum(answers), **_share(sum(answers), len(answers))}
            for model, answers in sorted(taken.items())
        ],
        "better": [
            {
                "a": a,
                "b": b,
                "a_better": answers.count(a),
                "no_preference": answers.count(None),
                **_share(answers.count(a), len(answers) - answers.count(None)),
            }
            for (a, b), answers in sorted(better.items())
        ],
    }


def table_lines(table: dict[str, Any]) -> list[str]:
    """The table as lines of text."""
    listeners = f"{table['num_listeners']} listener{'s' if table['num_listeners'] > 1 else ''}"
    lines = [f"{table['title']}: {table['num_answers']} answers of {listeners}"]
    if table["real"]:
        lines += ["", "Which is real? (50 %: nobody can tell)"]
    for row in table["real"]:
        lines.append(f"  {row['model']}: {row['taken']} of {row['of']} taken for real, {_percent(row)}")
    if table["better"]:
        lines += ["", "Which is better?"]
    for row in table["better"]:
        ties = f", no preference {row['no_preference']} times" if row["no_preference"] else ""
        lines.append(f"  {row['a']} over {row['b']}: {row['a_better']} of {row['of']}, {_percent(row)}{ties}")
    lines += [
        "",
        "95 % intervals, exact, as if all answers were independent: several of one listener tell less than that.",
    ]
    return lines


def _share(count: int, total: int) -> dict[str, Any]:
    """A share with its interval and the p value of a half; None without any answer."""
    if not total:
        return {"of": 0, "share": None, "interval": None, "p_value": None}
    test = binomtest(count, total, 0.5)
    ends = test.proportion_ci(confidence_level=0.95, method="exact")
    return {
        "of": total,
        "share": count / total,
        "interval": [float(ends.low), float(ends.high)],
        "p_value": float(test.pvalue),
    }


def _percent(row: dict[str, Any]) -> str:
    if row["share"] is None:
        return "no answers"
    low, high = row["interval"]
    return f"{row['share']:.0%} [{low:.0%}, {high:.0%}]"


def _listener(sheet: AnswerSheet) -> str:
    return f"listener {(sheet.name or sheet.listener[:8])!r}"
