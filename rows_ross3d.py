# Copyright 2026 The ross3d authors. All rights reserved.
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.
"""Rows of tokens: the prompt around a question, packed rows, and the target of each position.

A row is `[prefix | segment 1 | ... | segment Q]`: the prefix holds system prompt and views, a segment the question
and, in training, its answer. The prompt's marks and words depend on the backbone (`PromptTemplate`).

Shapes: B rows, L positions of a row, n tokens of a part.
"""

import math
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from .image_processing_ross3d import shorten
from .inputs_ross3d import INPUTS, check


IMAGE_TOKEN, GROUND_TOKEN, COORD_TOKEN = "<image>", "<ground>", "<coord>"
# The published training prompts have this sentence, the published evaluation prompts do not.
SPATIAL_INSTRUCTION = (
    "The video captures 3D spatial information of a scene. Please focus on the spatial relationships in the video and"
    " answer the following questions."
)
IGNORED_LABEL = -100

LabelRule = Literal["published", "answer_only"]


@dataclass
class Question:
    """A question about a scene, with its training targets."""

    text: str
    name: str
    answer: str | None = None
    targets: list[int] | None = None
    coords: list[float] | None = None


@dataclass
class PromptParts:
    """The parts of a question's text, split where joining their token ids equals tokenising the joined text."""

    prefix: str
    question: str
    answer: str = ""


@dataclass(frozen=True)
class PromptTemplate:
    """Marks and words around views and question.

    Attributes:
        turn_start, turn_end (`str`): marks of a turn of the chat.
        system_prompt (`str`): of the first turn.
    """

    turn_start: str
    turn_end: str
    system_prompt: str

    @property
    def answer_header(self) -> str:
        """The text that opens the assistant's turn."""
        return f"{self.turn_start}assistant\n"

    @property
    def scene_prefix(self) -> str:
        """The text before a question, up to the slot of the views."""
        system = f"{self.turn_start}system\n{self.system_prompt}{self.turn_end}\n"
        return f"{system}{self.turn_start}user\n{IMAGE_TOKEN}"

    @property
    def chat_template(self) -> str:
        """The same template in Jinja, for chats.

        One `<image>` marks all consecutive pictures of a message; the scene's text follows on a new line.
        """
        start, end = self.turn_start, self.turn_end
        return (
            "{%- if messages[0]['role'] != 'system' -%}"
            "{{ '" + start + "system\\n" + self.system_prompt + end + "\\n' }}"
            "{%- endif -%}"
            "{%- for message in messages -%}"
            "{{ '" + start + "' + message['role'] + '\\n' }}"
            "{%- if message['content'] is string -%}{{ message['content'] }}"
            "{%- else -%}"
            "{%- set pictures = message['content'] | selectattr('type', 'equalto', 'image') | list -%}"
            "{%- if pictures -%}"
            "{{ '<image>\\n' }}{%- if spatial_instruction -%}{{ spatial_instruction + '\\n' }}{%- endif -%}"
            "{%- endif -%}"
            "{%- for block in message['content'] if block['type'] == 'text' -%}{{ block['text'] }}{%- endfor -%}"
            "{%- endif -%}"
            "{{ '" + end + "\\n' }}"
            "{%- endfor -%}"
            "{%- if add_generation_prompt -%}{{ '" + start + "assistant\\n' }}{%- endif -%}"
        )

    def is_whole_prompt(self, text: str) -> bool:
        """Whether a text has chat marks: it is then tokenised unchanged, without a template."""
        return any(mark in text for mark in (self.turn_start, self.turn_end))

    def get_prefix(self, spatial_instruction: bool) -> str:
        """The text before a question, shared by the questions of a scene."""
        return self.scene_prefix + (f"\n{SPATIAL_INSTRUCTION}\n" if spatial_instruction else "")

    def split(self, question: Question, num_views: int, spatial_instruction: bool, with_answer: bool) -> PromptParts:
        """Prefix (up to the scene slot and the instruction after it), question and, in training, the answer.

        A plain question is put into the template; a whole prompt is split after its only slot.
        """
        name = f"text of {question.name}"
        if self.is_whole_prompt(question.text):
            prefix, segment = split_whole_prompt(question.text, spatial_instruction, name)
        else:
            prefix, text = self.get_prefix(spatial_instruction), remove_slots(question.text, num_views, name)
            check(not (spatial_instruction and text.startswith(("\n", "\r"))), name,
                  "no line break at the beginning, which would merge with that of the instruction",
                  repr(text[:20]), "strip it")  # fmt: skip
            line_break = "" if spatial_instruction else "\n"
            segment = f"{line_break}{text}{self.turn_end}\n{self.answer_header}"
        if not with_answer:
            return PromptParts(prefix, segment)
        header = self.answer_header
        check(segment.endswith(header), name, f"a whole prompt that ends with {header!r} for its answer",
              repr(segment[-30:]), "add the assistant's header, or pass the plain question")  # fmt: skip
        return PromptParts(prefix, segment.removesuffix(header), f"{header}{question.answer}{self.turn_end}\n")


# The template of the published model, and of Qwen2's chats.
LLAVA_VIDEO = PromptTemplate("<|im_start|>", "<|im_end|>", "You are a helpful assistant.")


def split_whole_prompt(text: str, spatial_instruction: bool, name: str) -> tuple[str, str]:
    slots = text.count(IMAGE_TOKEN)
    check(slots == 1, name, "exactly one <image> in a whole prompt (one mark for all views)", f"{slots} of them",
          "write one <image> where the views belong, or pass the plain question without chat marks")  # fmt: skip
    head, tail = text.split(IMAGE_TOKEN)
    instruction = f"\n{SPATIAL_INSTRUCTION}\n" if spatial_instruction else ""
    rest = tail.removeprefix(instruction)
    if rest.startswith(("\n", "\r")):
        return head + IMAGE_TOKEN, tail
    return text.removesuffix(rest), rest


def remove_slots(text: str, num_views: int, name: str) -> str:
    """A plain question without the `<image>` marks at its beginning or end, which mark its views.

    There is one mark for all views, as in the records of LLaVA, or one per view. The template puts the views in front
    of the text, so marks between words, which would give a picture another place, are refused.
    """
    if IMAGE_TOKEN not in text:
        return text
    count, question = text.count(IMAGE_TOKEN), text.strip()
    while question.startswith(IMAGE_TOKEN):
        question = question.removeprefix(IMAGE_TOKEN).lstrip()
    while question.endswith(IMAGE_TOKEN):
        question = question.removesuffix(IMAGE_TOKEN).rstrip()
    check(IMAGE_TOKEN not in question, name, "<image> at the beginning or at the end of a plain question",
          f"one among its words: {shorten(text, 100)!r}",
          "leave <image> out, or write the whole prompt with chat marks")  # fmt: skip
    check(count in (1, num_views), name, f"one <image> for all {num_views} views, or one a view", f"{count} of them",
          "leave <image> out: the views stand before the question")  # fmt: skip
    check_words(question, name, "leave text out to have the scene alone")
    return question


def check_question(question: Question, template: PromptTemplate) -> None:
    """Refuse marks that contradict each other, or the point, answer or targets given with the question."""
    text, answer, name = question.text, question.answer, question.name
    check(isinstance(text, str), f"text of {name}", "a string", type(text).__name__, "pass words, or no text at all")
    check_words(text, f"text of {name}", "leave text out to have the scene alone")
    if answer is not None:
        check_answer(answer, f"answers of {name}", template)
    grounds, coords = text.count(GROUND_TOKEN) + (answer == GROUND_TOKEN), text.count(COORD_TOKEN)
    check(grounds <= 1, f"text of {name}", "at most one <ground>, the answer's included", f"{grounds} of them",
          "ask about one referring expression at a time")  # fmt: skip
    check(coords <= 1, f"text of {name}", "at most one <coord>", f"{coords} of them", "ask about one place at a time")
    check(coords == 0 or question.coords is not None, f"query_coords of {name}",
          "a point (x, y, z) in metres for its <coord>", "none", "pass query_coords=")  # fmt: skip
    check(coords == 1 or question.coords is None, f"query_coords of {name}", "none, since it has no <coord>",
          question.coords, "write <coord> where the point is meant, or leave the point out")  # fmt: skip
    check(question.targets is None or grounds == 1, f"target_objects of {name}",
          "None for a question that is not answered by <ground>", question.targets,
          "pass '<ground>' as its answer, or None as its targets")  # fmt: skip
    check(answer != GROUND_TOKEN or question.targets is not None, f"target_objects of {name}",
          "a list of proposal indices ([] = no target) for the answer <ground>", "None",
          "pass target_objects=")  # fmt: skip


def check_words(text: str, name: str, remedy: str) -> None:
    """Refuse blank text, and lone surrogates, which JSON can hold and no tokenizer reads."""
    check(text.strip() != "", name, "words, not blank text", repr(text[:20]), remedy)
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{name}: expected text that UTF-8 can hold, got {text[error.start]!r} at letter {error.start}, half of a"
            " surrogate pair; write the text again from its source."
        ) from None


def check_answer(answer: Any, name: str, template: PromptTemplate) -> None:
    check(isinstance(answer, str), name, "a string", type(answer).__name__, "convert numbers with str()")
    check_words(answer, name, "leave the question out")
    marks = [mark for mark in (template.turn_start, template.turn_end, IMAGE_TOKEN, COORD_TOKEN) if mark in answer]
    if GROUND_TOKEN in answer and answer != GROUND_TOKEN:
        marks.append(GROUND_TOKEN)
    check(not marks, name, "plain words, or <ground> alone", f"{marks} in {answer!r}", "remove these marks")
    check(not answer.startswith(("\n", "\r")), name, "no line break at the beginning", repr(answer[:20]),
          "strip the answer first")  # fmt: skip


@dataclass
class Segment:
    """Token ids (n,) of a part of a row, and their labels (n,), -100 where nothing is learnt."""

    ids: np.ndarray
    labels: np.ndarray
    has_text_answer: bool = False


@dataclass
class Row:
    """One packed row, arrays (L,); `targets` is empty without answers."""

    input_ids: np.ndarray
    segment_ids: np.ndarray
    targets: dict[str, np.ndarray] = field(default_factory=dict)


def get_segment_targets(segment: Segment, num_prefix_targets: int) -> tuple[np.ndarray, np.ndarray, float]:
    """The targets of a segment's positions, their weights, and the weight of one target."""
    targets = np.append(segment.labels[1:], IGNORED_LABEL)
    if not segment.has_text_answer:
        return np.full_like(targets, IGNORED_LABEL), np.zeros(len(targets)), 0.0
    num_targets = num_prefix_targets + int((segment.labels != IGNORED_LABEL).sum())
    share = 1.0 / max(num_targets, 1)
    return targets, share * (targets != IGNORED_LABEL), share


def shift_targets(prefix: Segment, segments: list[Segment], name: str) -> dict[str, np.ndarray]:
    """Next-token targets and their weights, as if each question followed the prefix in a row of its own.

    Position t of `shift_labels` holds the target at t: the last position of the prefix predicts the first token of
    every segment, the last position of a segment predicts nothing. The n targets of an answer, including those in the
    prefix, weigh 1 / n each, so a prefix target shared by Q answers has the sum of their weights. Grounding answers
    have no text targets.
    """
    inside = np.append(prefix.labels[1:], IGNORED_LABEL)
    is_inside = inside != IGNORED_LABEL
    parts = [get_segment_targets(segment, int(is_inside.sum())) for segment in segments]
    prefix_weights = is_inside * sum(share for _, _, share in parts)
    first = sorted({int(segment.labels[0]) for segment in segments if segment.has_text_answer} - {IGNORED_LABEL})
    check(len(first) <= 1, f"text of {name}",
          "segments whose first supervised token is the same, since the last prefix position predicts it",
          f"token ids {first}", "pass one question a row, or use label_rule='answer_only'")  # fmt: skip
    if first:
        inside[-1] = first[0]
        prefix_weights[-1] = sum(
            share for segment, (_, _, share) in zip(segments, parts, strict=True) if segment.labels[0] == first[0]
        )
    inside[prefix_weights == 0] = IGNORED_LABEL
    return {
        "shift_labels": np.concatenate([inside, *(targets for targets, _, _ in parts)]),
        "loss_weights": np.concatenate([prefix_weights, *(weights for _, weights, _ in parts)]),
    }


def build_row(prefix: Segment | None, segments: list[Segment], with_targets: bool, name: str) -> Row:
    """The row `[prefix | segment 1 | ...]`; without a prefix, its only segment, numbered 1."""
    parts = segments if prefix is None else [prefix, *segments]
    numbers = range(1 if prefix is None else 0, len(segments) + 1)
    row = Row(
        input_ids=np.concatenate([part.ids for part in parts]),
        segment_ids=np.concatenate([np.full(len(part.ids), n) for n, part in zip(numbers, parts, strict=True)]),
    )
    if with_targets:
        row.targets = {"labels": np.concatenate([part.labels for part in parts])}
        row.targets |= shift_targets(prefix, segments, name)
    return row


def pad_rows(rows: list[np.ndarray], value: float, side: Literal["left", "right"], length: int) -> torch.Tensor:
    """Pad arrays (L,) to (B, length), with length at least the longest L; float64 becomes float32."""
    tensors = [torch.from_numpy(row if row.dtype == np.int64 else row.astype(np.float32)) for row in rows]
    padded = pad_sequence(tensors, batch_first=True, padding_value=value, padding_side=side)
    missing = length - padded.shape[1]
    return F.pad(padded, (missing, 0) if side == "left" else (0, missing), value=value)


@dataclass
class RowOptions:
    """How a call pads and cuts rows, as the library's processors understand it."""

    padding: bool | str
    truncation: bool
    padding_side: Literal["left", "right"] | None = None
    pad_to_multiple_of: int | None = None
    max_length: int | None = None


@dataclass
class SceneWords:
    """The questions about one scene, and how many views it has."""

    name: str
    num_views: int
    questions: list[Question]


@dataclass
class RowBuilder:
    """Lays out rows of tokens.

    Attributes:
        tokenizer: of the checkpoint.
        template (`PromptTemplate`): the text around a question.
        label_rule (`str`): `"published"` supervises chat marks and lone line breaks anywhere, `"answer_only"` answers.
        spatial_instruction (`bool`): whether `SPATIAL_INSTRUCTION` follows the views.
        tokens_per_view (`int`): placeholders of a view.
        max_positions (`int`, *optional*): longest row.
        image_token_id (`int`): of `<image>`.
        structure_ids (list of `int`): of line break and chat marks.
        answer_header_length (`int`): tokens of the template's `answer_header`.
    """

    tokenizer: Any
    template: PromptTemplate
    label_rule: LabelRule
    spatial_instruction: bool
    tokens_per_view: int
    max_positions: int | None
    image_token_id: int
    structure_ids: list[int]
    answer_header_length: int

    def check_questions(self, questions: list[Question]) -> None:
        for question in questions:
            check_question(question, self.template)

    def tokenize(self, texts: list[str]) -> dict[str, np.ndarray]:
        """Token ids of every distinct text, in one call of the tokenizer."""
        different = list(dict.fromkeys(texts))
        ids = self.tokenizer(different, add_special_tokens=False, return_attention_mask=False)["input_ids"]
        return {text: np.asarray(numbers, dtype=np.int64) for text, numbers in zip(different, ids, strict=True)}

    def get_prompt_labels(self, ids: np.ndarray) -> np.ndarray:
        """Labels outside of answers: the published rule supervises chat marks and lone line breaks anywhere."""
        if self.label_rule == "answer_only":
            return np.full_like(ids, IGNORED_LABEL)
        return np.where(np.isin(ids, self.structure_ids), ids, IGNORED_LABEL)

    def get_answer_labels(self, ids: np.ndarray) -> np.ndarray:
        """Labels of `header answer <|im_end|> \\n`."""
        if self.label_rule == "published":
            return ids
        labels = np.full_like(ids, IGNORED_LABEL)
        labels[self.answer_header_length : -1] = ids[self.answer_header_length : -1]
        return labels

    def build_scene_rows(self, scenes: list[SceneWords], with_targets: bool, options: RowOptions) -> list[Row]:
        """Tokenise the texts of all scenes at once and lay out one row per scene."""
        self.check_questions([question for scene in scenes for question in scene.questions])
        prompts = [
            [
                self.template.split(question, scene.num_views, self.spatial_instruction, with_targets)
                for question in scene.questions
            ]
            or [PromptParts(self.template.get_prefix(self.spatial_instruction), "")]
            for scene in scenes
        ]
        tokens = self.tokenize([text for parts in prompts for part in parts for text in vars(part).values()])
        rows = []
        for scene, parts in zip(scenes, prompts, strict=True):
            prefixes = sorted({part.prefix for part in parts})
            check(len(prefixes) == 1, f"text of {scene.name}", "questions with the same text before <image>",
                  f"{len(prefixes)} different beginnings", "pass such prompts as scenes of their own")  # fmt: skip
            prefix = self.expand_slot(tokens[prefixes[0]], scene.num_views)
            segments = [self.get_segment(part, tokens, q) for part, q in zip(parts, scene.questions, strict=False)]
            row = build_row(Segment(prefix, self.get_prompt_labels(prefix)), segments, with_targets, scene.name)
            row = self.cut_row(row, options, scene.name)
            self.check_length(row, scene.num_views, scene.name)
            rows.append(row)
        return rows

    def build_question_rows(self, questions: list[Question], options: RowOptions) -> list[Row]:
        """One row per question, without a scene; segment ids are 1 in plain questions and 0 in whole prompts."""
        self.check_questions(questions)
        texts = []
        for question in questions:
            check(IMAGE_TOKEN not in question.text, f"text of {question.name}", "no <image>, since there are no views",
                  "one", "pass images= as well (in a chat: the picture in its block, {'type': 'image', 'image': ...}),"
                  " or leave <image> out")  # fmt: skip
            is_whole = self.template.is_whole_prompt(question.text)
            parts = None if is_whole else self.template.split(question, 0, self.spatial_instruction, False)
            texts.append(question.text if is_whole else parts.question)
        tokens = self.tokenize(texts)
        rows = []
        for text, question in zip(texts, questions, strict=True):
            segment = Segment(tokens[text], self.get_prompt_labels(tokens[text]))
            parts = (segment, []) if self.template.is_whole_prompt(question.text) else (None, [segment])
            row = self.cut_row(build_row(*parts, False, question.name), options, question.name)
            self.check_length(row, 0, question.name)
            rows.append(row)
        return rows

    def cut_row(self, row: Row, options: RowOptions, name: str) -> Row:
        """The row, cut at its end to `max_length` if the call asks for truncation; views are never cut."""
        limit = options.max_length or self.max_positions
        if not options.truncation or limit is None or len(row.input_ids) <= limit:
            return row
        visual = np.flatnonzero(row.input_ids == self.image_token_id)
        needed = int(visual[-1]) + 1 if len(visual) else 0
        check(needed < limit and row.segment_ids.max() <= 1 and not row.targets, f"max_length of {name}",
              f"room for the views ({needed} positions) and one question without answers=, to cut its words", limit,
              "raise max_length, use fewer views or questions, or leave truncation out")  # fmt: skip
        return Row(row.input_ids[:limit], row.segment_ids[:limit])

    def expand_slot(self, ids: np.ndarray, num_views: int) -> np.ndarray:
        """Replace the one scene slot by the placeholders of all views."""
        slot = int(np.flatnonzero(ids == self.image_token_id)[0])
        placeholders = np.full(num_views * self.tokens_per_view, self.image_token_id)
        return np.concatenate([ids[:slot], placeholders, ids[slot + 1 :]])

    def get_segment(self, parts: PromptParts, tokens: dict[str, np.ndarray], question: Question) -> Segment:
        ids = tokens[parts.question]
        labels = self.get_prompt_labels(ids)
        if not parts.answer:
            return Segment(ids, labels)
        answer = tokens[parts.answer]
        return Segment(
            ids=np.concatenate([ids, answer]),
            labels=np.concatenate([labels, self.get_answer_labels(answer)]),
            has_text_answer=question.answer != GROUND_TOKEN,
        )

    def check_length(self, row: Row, num_views: int, name: str) -> None:
        limit, length = self.max_positions, len(row.input_ids)
        visual = num_views * self.tokens_per_view
        check(limit is None or length <= limit, f"input_ids of {name}",
              f"at most {limit} positions (max_position_embeddings)",
              f"{length}: {num_views} views of {self.tokens_per_view} and {length - visual} of text",
              "use fewer views, or fewer or shorter questions a row")  # fmt: skip

    def pad_text(
        self, rows: list[Row], side: Literal["left", "right"], options: RowOptions
    ) -> dict[str, torch.Tensor]:
        """Rows -> (B, L) tensors, padded on `side` unless the call names another side."""
        pad, side = self.tokenizer.pad_token_id, options.padding_side or side
        lengths = {len(row.input_ids) for row in rows}
        length, multiple = max(lengths), options.pad_to_multiple_of or 1
        if options.padding == "max_length":
            limit = options.max_length or self.max_positions
            check(limit is not None, "max_length", "the length to pad to", "None", "pass max_length=")
            length = max(length, limit)
        check(options.padding is not False or len(lengths) == 1, "padding", "True for rows of different lengths",
              f"{options.padding} for lengths {sorted(lengths)}", "leave it out, or make one call a row")  # fmt: skip
        if options.padding is not False:
            length = math.ceil(length / multiple) * multiple
        check(pad is not None or lengths == {length}, "tokenizer.pad_token",
              "a padding token for rows of different lengths", "None", "set tokenizer.pad_token")  # fmt: skip
        data = {
            "input_ids": pad_rows([row.input_ids for row in rows], pad or 0, side, length),
            "attention_mask": pad_rows([np.ones_like(row.input_ids) for row in rows], 0, side, length),
            "segment_ids": pad_rows([row.segment_ids for row in rows], INPUTS["segment_ids"].padding, side, length),
        }
        for name in rows[0].targets:
            data[name] = pad_rows([row.targets[name] for row in rows], INPUTS[name].padding, side, length)
        return data


__all__ = [
    "COORD_TOKEN",
    "GROUND_TOKEN",
    "IGNORED_LABEL",
    "IMAGE_TOKEN",
    "LLAVA_VIDEO",
    "SPATIAL_INSTRUCTION",
    "LabelRule",
    "PromptTemplate",
    "Question",
    "RowBuilder",
    "RowOptions",
    "SceneWords",
    "check_words",
]
