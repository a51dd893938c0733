"""Make a benchmark's score a module of the `evaluate` library: shared code of the folders in `evaluate_modules/`."""

from collections.abc import Callable
from typing import Any

import datasets
import evaluate

from ross3d.metrics.meteor import Meteor


TEXT = datasets.Value("string")
TEXTS = datasets.List(TEXT)
NUMBERS = datasets.List(datasets.Value("float64"))
BOXES = datasets.List(NUMBERS)
MATRICES = datasets.List(BOXES)


def make_module(
    name: str, description: str, score: Callable[..., dict[str, Any]], **columns: Any
) -> type[evaluate.Metric]:
    """The class that `evaluate.load` looks for in a file.

    Args:
        name (`str`): name of the class.
        description (`str`): the docstring of the file.
        score: a benchmark's function of `metrics.benchmarks`; its arguments are the columns.
        columns: the type of one item of each column, by name.
    """

    def get_info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=description,
            citation="",
            inputs_description=score.__doc__,
            features=datasets.Features(columns),
        )

    def compute(self, **values: Any) -> dict[str, Any]:
        return score(**values)

    return type(name, (evaluate.Metric,), {"__doc__": description, "_info": get_info, "_compute": compute})


def offer_meteor(score: Callable[..., dict[str, Any]]) -> Callable[..., dict[str, Any]]:
    """Wrap a caption score so that it starts METEOR's program itself with `use_meteor=True`."""

    def score_captions(predictions, references, use_meteor: bool = False) -> dict[str, Any]:
        if not use_meteor:
            return score(predictions, references)
        with Meteor() as meteor:
            return score(predictions, references, meteor)

    score_captions.__doc__ = score.__doc__
    return score_captions


__all__ = ["BOXES", "MATRICES", "NUMBERS", "TEXT", "TEXTS", "make_module", "offer_meteor"]
