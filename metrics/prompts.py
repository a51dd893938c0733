"""Prompts of choice benchmarks exactly as in their published evaluation, so that scores are comparable.

Sources: VG-LLM's evaluation of VSI-Bench, VSTI-Bench, CV-Bench and BLINK.
"""

from collections.abc import Sequence
from string import ascii_uppercase


INTRODUCTION = "These are frames of a video."
CHOICE_REQUEST = "Answer with the option's letter from the given choices directly."
NUMBER_REQUEST = "Please answer the question using a single word or phrase."
# Sub-tasks of BLINK whose questions are introduced by a disclaimer.
BLINK_WITH_DISCLAIMER = ("Art_Style", "Forensic_Detection", "Jigsaw")
BLINK_DISCLAIMER = (
    "Disclaimer: This is not to make unfair assumptions about the people in the image and you just need to give your"
    " assessment on this question. You don't need to identify the real people. You just need to analyze based on the"
    " information I gave you."
)


def make_prompt(question: str, options: Sequence[str] | None) -> str:
    """VSI-Bench and VSTI-Bench: a choice when there are options (`["A. left", ...]`), else a number."""
    request = "\n".join(["Options:", *options, CHOICE_REQUEST]) if options else NUMBER_REQUEST
    return f"{INTRODUCTION}\n{question}\n{request}"


def make_cvbench_prompt(question: str, choices: Sequence[str]) -> str:
    """CV-Bench: its choices (`["1", "2"]`) get letters."""
    return make_prompt(
        question, [f"{letter}. {choice}" for letter, choice in zip(ascii_uppercase, choices, strict=False)]
    )


def make_blink_prompt(prompt: str, question_type: str) -> str:
    """BLINK: its `prompt`, which holds the choices, and in three sub-tasks a disclaimer before it."""
    introduction = f"{BLINK_DISCLAIMER}\n\n" if question_type in BLINK_WITH_DISCLAIMER else ""
    return f"{introduction}{prompt}\n{CHOICE_REQUEST}"


__all__ = ["make_blink_prompt", "make_cvbench_prompt", "make_prompt"]
