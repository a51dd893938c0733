"""Plain words for the names in the files of an evaluation, and paths without the folders of one machine."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any


# What a question of a type asks the model to do.
TITLES = {
    "existence": "Say whether an object is there",
    "color": "Name an object's colour",
    "count": "Count objects",
    "size_comparison": "Say which of two objects is taller",
    "object_at": "Name the object at a given place",
    "direction": "Say on which side an object is",
    "nearest": "Name the object nearest to another",
    "room_size": "Estimate the floor area",
    "caption": "Describe the object at a given place",
    "grounding_unique": "Find the one object that is meant",
    "grounding_multiple": "Find all objects that are meant",
    "grounding_none": "Notice that no object fits",
}
SCORES = {
    "exact_match": "answers exactly right",
    "accuracy": "answers right",
    "accuracy@0.5": "boxes that overlap the true one by half",
    "f1@0.5": "F1 of boxes that overlap a true one by half",
    "relative_accuracy": "mean relative accuracy",
    "attribute_accuracy": "words of the right description found",
}
PROPOSALS = {
    "given": "were given with the scenes (a detector's boxes)",
    "depth": "are proposed by this repository from the scene's depth",
    "jittered": "are the true boxes, moved by a few per cent, among some of no object: easier than in real use",
    "ground_truth": "are the true boxes: easier than in real use",
}
BASELINES = {
    "blind": "the blind model",
    "look-up": "a look-up of the question's words",
    "majority": "the commonest answer",
}


def get_title(question_type: str) -> str:
    """A question type in words; an unknown one as it is called."""
    return TITLES.get(question_type, question_type.replace("_", " "))


def get_rank(question_type: str) -> int:
    """The place of a question type in `TITLES`; unknown ones come last."""
    return list(TITLES).index(question_type) if question_type in TITLES else len(TITLES)


def get_score_title(score: str) -> str:
    return SCORES.get(score, score.replace("_", " "))


def count(number: int, one: str, several: str) -> str:
    """ "1 box", "2 boxes"."""
    return f"{number} {one if number == 1 else several}"


def format_share(value: float, interval: Mapping[str, Any] | None = None) -> str:
    """A share in whole percent, with its interval if it has one."""
    # A blank that does not break keeps the number and its sign together.
    text = f"{100 * value:.0f}\N{NO-BREAK SPACE}%"
    if interval is None or interval["low"] is None:
        return text
    return f"{text} [{100 * interval['low']:.0f}, {100 * interval['high']:.0f}]"


def shorten_path(text: str, run_dir: Path) -> str:
    """An absolute path without the machine's folders; other text as it is.

    Inside the run's folder it begins with "./", so that a page does not depend on where its run lies; of any other
    only the last name is left. What stands before "=" stays, as in `--option=/path`.
    """
    option, equals, path = text.rpartition("=")
    if not Path(path).is_absolute():
        return text
    run_dir, path = run_dir.resolve(), Path(path).resolve()
    inside = path.is_relative_to(run_dir)
    short = f"./{path.relative_to(run_dir).as_posix()}" if inside else f"…/{path.name}"
    short = "." if path == run_dir else short
    return f"{option}{equals}{short}"


def shorten_paths(value: Any, run_dir: Path) -> Any:
    """`shorten_path` of every text in a JSON value."""
    if isinstance(value, dict):
        return {name: shorten_paths(item, run_dir) for name, item in value.items()}
    if isinstance(value, list):
        return [shorten_paths(item, run_dir) for item in value]
    return shorten_path(value, run_dir) if isinstance(value, str) else value


__all__ = [
    "BASELINES",
    "PROPOSALS",
    "count",
    "format_share",
    "get_rank",
    "get_score_title",
    "get_title",
    "shorten_path",
    "shorten_paths",
]
