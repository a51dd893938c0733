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

"""Inference: `generate`, also about scenes that were encoded before, `ground`, `encode_scene` and `reconstruct`.

Each method checks its arguments first; the checks are at the end of the file.

Shapes: B scenes, V views, L sequence, D width, K proposals, Q questions.
"""

import os
import warnings
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

import torch
from torch.nn import functional as F
from transformers import GenerationConfig, GenerationMixin
from transformers.cache_utils import Cache, DynamicCache
from transformers.generation.logits_process import LogitsProcessor, LogitsProcessorList
from transformers.generation.utils import GenerateDecoderOnlyOutput
from transformers.utils import ModelOutput

from .attention_ross3d import SharedPrefixCache, shares_prefixes
from .diffusion_ross3d import space_timesteps
from .grounding_ross3d import append_ground_slots, compute_grounding_scores, get_proposal_features
from .image_processing_ross3d import shorten
from .inputs_ross3d import INPUTS, check_inputs, check_mask, check_mask_values, list_inputs
from .objectives_ross3d import SceneStates
from .reconstruction_ross3d import (
    PictureQueries,
    check_bev_bounds,
    decode_latents,
    get_bev_queries,
    get_latents,
    get_unseen_views,
    get_view_queries,
    get_visible_views,
)
from .scene_cache_ross3d import Ross3DSceneCache, check_scene


# New tokens of an answer where no setting says how many; the library's default.
DEFAULT_NEW_TOKENS = 20
# Ways to generate in which a token is not simply chosen from the model's own scores, one after the other.
HELPERS = ("assistant_model", "prompt_lookup_num_tokens", "custom_generate")
# Precomputed latents of the teacher, given instead of pictures.
LATENTS = ("view_latents", "bev_latents")


class PlaceholderSuppression(LogitsProcessor):
    """Keeps `<image>` and `<coord>` out of answers under any generation config: they are placeholders of the input."""

    def __init__(self, tokens: list[int]):
        self.tokens = tokens

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        scores = scores.clone()
        for token in self.tokens:
            scores[:, token] = float("-inf")
        return scores


class ChosenTokens(LogitsProcessor):
    """Notes how probable each token was when it was chosen, during generation.

    It keeps the distribution of one step, where `output_logits=True` keeps those of all steps: 64 questions x 512 new
    tokens x 152,064 words are 20 GB. It stands behind the other processors and before temperature and top-k, so the
    probability does not depend on how the token was drawn.
    """

    def __init__(self):
        self.width: int | None = None
        self.distribution: torch.Tensor | None = None
        self.log_probabilities: list[torch.Tensor] = []

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        if self.width is None:
            self.width = input_ids.shape[1]
        self.note(input_ids)
        self.distribution = scores.log_softmax(dim=-1)
        return scores

    def note(self, input_ids: torch.Tensor) -> None:
        """Note the last tokens of rows (B, L), chosen from the latest distribution."""
        if self.distribution is not None:
            self.log_probabilities.append(self.distribution.gather(1, input_ids[:, -1:])[:, 0])

    def compute_mean(self, sequences: torch.Tensor, end_ids: Any, pad_id: Any) -> torch.Tensor:
        """The geometric mean (B,) of the probabilities of each answer's tokens, its end mark included.

        Args:
            sequences (B, L): prompts and answers, padded behind an answer's end.
            end_ids, pad_id: tokens that end an answer, and that follow it; None where there is none.
        """
        answers = sequences[:, self.width :]
        if len(self.log_probabilities) < answers.shape[1]:
            self.note(sequences)
        log_probabilities = torch.stack(self.log_probabilities[: answers.shape[1]], dim=1)
        ends = torch.as_tensor([] if end_ids is None else end_ids, device=answers.device).flatten()
        is_end = torch.isin(answers, ends.to(answers))
        counts = is_end.cumsum(dim=1) - is_end.long() == 0
        if pad_id is not None:
            # Behind an answer that a stop string ended.
            counts &= is_end | (answers != int(pad_id))
        total = log_probabilities.masked_fill(~counts, 0.0).sum(dim=1)
        return (total / counts.sum(dim=1).clamp(min=1)).exp()


@dataclass
class Ross3DGenerateOutput(GenerateDecoderOnlyOutput):
    """The library's output of `generate`, and how sure the model was of each answer.

    Args:
        token_probability (`torch.FloatTensor` of shape `(batch_size,)`, *optional*):
            Geometric mean of the probabilities of the tokens of each answer, its end mark included.
    """

    token_probability: torch.Tensor | None = None


def check_input_names(method: str, inputs: dict[str, Any], unused: tuple[str, ...] = ()) -> None:
    """Refuse names that no processor output has, and those that the method would silently ignore."""
    unknown = sorted(inputs.keys() - INPUTS.keys())
    if unknown:
        raise TypeError(
            f"{method}: expected the processor's output and this method's own arguments, got {', '.join(unknown)};"
            " check the spelling."
        )
    given = [name for name in unused if inputs.get(name) is not None]
    if given:
        raise TypeError(f"{method}: expected no {given[0]}, which means nothing here, got one; leave it out.")


class Ross3DGenerationMixin(GenerationMixin):
    """The inference methods of `Ross3DForConditionalGeneration`."""

    def prepare_inputs_for_generation(
        self, input_ids, *args, inputs_embeds=None, is_first_iteration: bool = False, **kwargs
    ):
        model_inputs = super().prepare_inputs_for_generation(
            input_ids, *args, inputs_embeds=inputs_embeds, is_first_iteration=is_first_iteration, **kwargs
        )
        # `generate` passes the tokenizers for stop strings down to here; the model does not accept them.
        for name in ("tokenizer", "assistant_tokenizer"):
            model_inputs.pop(name, None)
        if not is_first_iteration and model_inputs.get("use_cache", True):
            # Later steps read the cache.
            for key in (*list_inputs("scene", "masking", "question"), "segment_ids"):
                model_inputs.pop(key, None)
        segments = model_inputs.get("segment_ids")
        if segments is not None and model_inputs.get("input_ids") is not None:
            missing = model_inputs["input_ids"].shape[1] - segments.shape[1]
            if missing > 0:
                model_inputs["segment_ids"] = F.pad(segments, (0, missing), value=1)
        return model_inputs

    def _supports_mm_encoder_outputs(self) -> bool:
        """False: `generate` must not encode the views before the first forward.

        It would hand the features to an assistant model as well, whose width may differ.
        """
        return False

    def _prepare_multimodal_encoder_kwargs_for_generation(self, model_kwargs: dict[str, Any]) -> dict[str, Any]:
        """As in the library, which removes the pixels; `view_mask` stays, since the model still reads it."""
        pixel_values, view_mask = model_kwargs.get("pixel_values"), model_kwargs.get("view_mask")
        if view_mask is None and pixel_values is not None:
            view_mask = torch.ones(pixel_values.shape[:2], dtype=torch.bool, device=pixel_values.device)
        prepared = super()._prepare_multimodal_encoder_kwargs_for_generation(model_kwargs)
        return prepared if view_mask is None else prepared | {"view_mask": view_mask}

    def _expand_multimodal_outputs(
        self,
        input_ids: torch.Tensor | None,
        mm_encoder_output: dict[str, ModelOutput],
        expand_size: int = 1,
        inputs_embeds: torch.Tensor | None = None,
    ) -> dict[str, ModelOutput]:
        """Repeat the view features of every row `expand_size` times, for beams and several answers.

        The library infers the number of features of a view from its placeholders, which here include newlines.
        """
        images = mm_encoder_output.get("image")
        if images is None:
            return mm_encoder_output
        is_given = input_ids is not None and input_ids.numel() > 0
        placeholders = self.model.get_placeholder_mask(input_ids if is_given else None, inputs_embeds)
        counts = (placeholders.sum(dim=1) // self.model.views.layout.num_positions).tolist()
        order = [rows.repeat(expand_size) for rows in torch.arange(sum(counts)).split(counts)]
        chosen = torch.cat(order)
        tensors = {name: value for name, value in images.items() if isinstance(value, torch.Tensor)}
        expanded = type(images)(**{name: value[chosen.to(value.device)] for name, value in tensors.items()})
        return mm_encoder_output | {"image": expanded}

    @torch.no_grad()
    def generate(
        self,
        inputs: torch.Tensor | None = None,
        *,
        scene: Ross3DSceneCache | None = None,
        scene_index: torch.Tensor | None = None,
        **kwargs,
    ):
        """The library's `generate`, also about scenes that were encoded before.

        Args:
            scene (`Ross3DSceneCache`, *optional*): from `encode_scene`; then the inputs are questions alone, as
                `processor(text=questions)` returns them.
            scene_index (`torch.LongTensor` of shape `(number of questions,)`, *optional*): which of several scenes
                each question is about.
            kwargs: the processor's output and every argument of the library's `generate`. An answer that would exceed
                the context limit ends there, with a warning.

        Returns:
            ids of prompt (or question) and answer, without `<image>` and `<coord>` in the answer. With
            `return_dict_in_generate=True`, without beams and assistants: `Ross3DGenerateOutput`, with the mean
            probability of each answer's tokens as `token_probability`.

        Raises:
            ValueError: for rows with several questions, questions without a scene, `use_cache=False` with `scene`,
                a `scene_index` that is missing or wrong, or prompts that leave no room for an answer.
        """
        # Drop what the processor returns for grounding and training; latents stay, as targets of masked views.
        for key in set(list_inputs("proposals", "target")) - set(LATENTS):
            kwargs.pop(key, None)
        check_generate_arguments(self, kwargs)
        check_generate_inputs(self, inputs, kwargs, scene, scene_index)
        if kwargs.get("mm_encoder_outputs") is not None:
            # Refuses pixels given together with them.
            kwargs = self._prepare_multimodal_encoder_kwargs_for_generation(kwargs)
        processors = LogitsProcessorList(kwargs.get("logits_processor") or [])
        if not any(isinstance(processor, PlaceholderSuppression) for processor in processors):
            processors.append(PlaceholderSuppression([self.config.image_token_id, self.config.coord_token_id]))
        chosen = ChosenTokens() if is_chosen_once(self, kwargs) else None
        kwargs["logits_processor"] = LogitsProcessorList([*processors, *([] if chosen is None else [chosen])])
        # Stop strings are read by a tokenizer; a processor has one.
        if hasattr(kwargs.get("tokenizer"), "tokenizer"):
            kwargs["tokenizer"] = kwargs["tokenizer"].tokenizer
        if scene is None:
            limit_answers(self, inputs, kwargs)
            return add_token_probability(self, super().generate(inputs, **kwargs), chosen, kwargs)
        input_ids, question_mask = kwargs.pop("input_ids", inputs), kwargs.pop("attention_mask", None)
        question_mask = torch.ones_like(input_ids) if question_mask is None else question_mask
        # They only say that each row is a question; an assistant model, which sees no scene, would refuse them.
        kwargs.pop("segment_ids", None)
        scene_index = read_scene_index(scene, scene_index, len(input_ids))
        settings = kwargs.get("generation_config") or self.generation_config
        copies = max(
            kwargs.get(name) or getattr(settings, name, 1) or 1 for name in ("num_beams", "num_return_sequences")
        )
        cache, attention_mask = self.get_questions_cache(scene, scene_index, question_mask, copies)
        kwargs |= {"attention_mask": attention_mask, "past_key_values": cache}
        limit_answers(self, input_ids, kwargs)
        return add_token_probability(self, super().generate(input_ids, **kwargs), chosen, kwargs)

    def get_questions_cache(
        self, scene: Ross3DSceneCache, scene_index: torch.Tensor, question_mask: torch.Tensor, copies: int = 1
    ) -> tuple[Cache, torch.Tensor]:
        """The cache of questions about encoded scenes, `copies` rows each, and its attention mask (B, L)."""
        rows = scene_index.repeat_interleave(copies)
        # CODEPATH: shared for sdpa, the default; copied for the other implementations of the library.
        if shares_prefixes(self.config.text_config):
            return scene.share_prefixes(rows), question_mask
        if not torch.equal(scene.next_positions, scene.prefix_mask.sum(dim=1)):
            raise ValueError(
                "scene: expected positions that are counted along the row, since this attn_implementation copies the"
                " scene in front of each question, got others; load the model with attn_implementation='sdpa'."
            )
        prefix_mask = scene.prefix_mask[scene_index].to(question_mask)
        return scene.copy_prefixes(rows), torch.cat([prefix_mask, question_mask], dim=1)

    @torch.no_grad()
    def encode_scene(
        self,
        input_ids: torch.LongTensor,
        attention_mask: torch.Tensor | None = None,
        segment_ids: torch.LongTensor | None = None,
        proposal_boxes: torch.FloatTensor | None = None,
        proposal_mask: torch.BoolTensor | None = None,
        proposal_patches: torch.BoolTensor | None = None,
        proposal_tokens: torch.BoolTensor | None = None,
        keep_patch_features: bool = False,
        **inputs,
    ) -> Ross3DSceneCache:
        """Encode scenes once, to ask about them with `generate(scene=...)` and `ground(scene=...)`.

        Args:
            input_ids and the rest: `processor(images=..., depth_maps=..., ...)` without text, padded on the left.
            keep_patch_features (`bool`): keep the projected patches and, where `config.proposal_pooling` reads them,
                the output states of the views, so that other boxes can be grounded later.

        Raises:
            ValueError: when the rows hold questions.
        """
        proposals = {
            "proposal_boxes": proposal_boxes, "proposal_mask": proposal_mask, "proposal_patches": proposal_patches,
            "proposal_tokens": proposal_tokens,
        }  # fmt: skip
        rows = {"input_ids": input_ids, "attention_mask": attention_mask, "segment_ids": segment_ids}
        check_scene_rows(self, rows | inputs | proposals)
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        is_prefix = mask.bool()
        placeholders = self.model.get_placeholder_mask(input_ids, None)
        positions = self.model.views.get_positions(placeholders, torch.where(is_prefix, 0, -1))
        positions = torch.where(is_prefix, positions, 0)
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=mask,
            position_ids=positions,
            # The whole prefix stays in the cache, regardless of a layer's window, which moves over it with a question.
            past_key_values=DynamicCache(),
            use_cache=True,
            return_dict=True,
            **choose_inputs(inputs, *list_inputs("scene")),
        )
        features, features_mask = None, None
        if proposal_boxes is not None:
            features, features_mask = get_proposal_features(
                self, outputs.patch_features, visual_states=outputs.visual_states, **proposals
            )
        keeps_states = keep_patch_features and self.config.proposal_pooling != "vision"
        return Ross3DSceneCache(
            past_key_values=outputs.past_key_values,
            prefix_mask=is_prefix,
            next_positions=positions.reshape(-1, *is_prefix.shape).amax(dim=(0, 2)) + 1,
            proposal_features=features,
            proposal_mask=features_mask,
            patch_features=outputs.patch_features if keep_patch_features else None,
            visual_states=outputs.visual_states if keeps_states else None,
            readers=frozenset({weakref.ref(self)}),
        )

    def load_scene(self, file: str | os.PathLike, processor: Any = None) -> Ross3DSceneCache:
        """Load scenes that this model encoded and `scene.save(file, model, processor)` wrote, also in another process.

        Args:
            file: where they were saved.
            processor (*optional*): the one that prepared them; its settings are compared with the saved ones.

        Raises:
            FileNotFoundError, ValueError: see `Ross3DSceneCache.load`.
        """
        return Ross3DSceneCache.load(file, self, processor)

    @torch.no_grad()
    def ground(
        self,
        input_ids: torch.LongTensor,
        attention_mask: torch.Tensor | None = None,
        segment_ids: torch.LongTensor | None = None,
        *,
        scene: Ross3DSceneCache | None = None,
        scene_index: torch.Tensor | None = None,
        proposal_boxes: torch.FloatTensor | None = None,
        proposal_mask: torch.BoolTensor | None = None,
        proposal_patches: torch.BoolTensor | None = None,
        proposal_tokens: torch.BoolTensor | None = None,
        query_coords: torch.FloatTensor | None = None,
        **inputs,
    ) -> torch.Tensor:
        """Score every proposal for every question.

        Args:
            input_ids and the rest: the processor's output, with views or, given `scene`, questions alone. Questions
                that do not end in `<ground>` get one.
            scene (`Ross3DSceneCache`), scene_index: see `generate`.

        Returns:
            scores (sum of Q, K + 1): cosines in [-1, 1], -inf at padding, last column "no target".
        """
        proposals = {
            "proposal_boxes": proposal_boxes, "proposal_mask": proposal_mask, "proposal_patches": proposal_patches,
            "proposal_tokens": proposal_tokens,
        }  # fmt: skip
        batch = {
            "input_ids": input_ids, "attention_mask": attention_mask, "segment_ids": segment_ids,
            "query_coords": query_coords, **inputs, **proposals,
        }  # fmt: skip
        check_ground_inputs(self, batch, scene, scene_index)
        real = torch.ones_like(input_ids, dtype=torch.bool) if attention_mask is None else attention_mask.bool()
        segment_ids = torch.ones_like(input_ids) if segment_ids is None else segment_ids
        pad = self.config.text_config.pad_token_id or 0
        input_ids, segment_ids = append_ground_slots(input_ids, real, segment_ids, self.config.ground_token_id, pad)
        mask = (segment_ids >= 0).long()
        rows = {"input_ids": input_ids, "segment_ids": segment_ids, "query_coords": query_coords, "return_dict": True}
        if scene is None:
            outputs = self.model(**rows, attention_mask=mask, **choose_inputs(inputs, *list_inputs("scene")))
            features, features_mask = get_proposal_features(
                self, outputs.patch_features, visual_states=outputs.visual_states, **proposals
            )
        else:
            index = read_scene_index(scene, scene_index, len(input_ids))
            features, features_mask = get_cached_proposals(self, scene, proposals)
            features, features_mask = features[index], features_mask[index]
            cache, mask_with_scene = self.get_questions_cache(scene, index, mask)
            positions = (mask_with_scene.cumsum(dim=1) - 1).clamp(min=0)[:, -mask.shape[1] :]
            outputs = self.model(**rows, attention_mask=mask_with_scene, position_ids=positions, past_key_values=cache)
        scores, asked = compute_grounding_scores(
            self.grounding_head,
            outputs.last_hidden_state,
            input_ids,
            segment_ids,
            (features, features_mask),
            self.config.ground_token_id,
        )
        return scores[asked]

    @torch.no_grad()
    def reconstruct(
        self,
        masked_views: list[int] | list[list[int]] | None = None,
        *,
        bool_masked_views: torch.BoolTensor | None = None,
        bev_bounds: torch.FloatTensor | None = None,
        num_inference_steps: int | str = 50,
        generator: torch.Generator | None = None,
        pixel_values: torch.FloatTensor,
        view_mask: torch.BoolTensor | None = None,
        **inputs,
    ) -> tuple[list[torch.Tensor | None], list[torch.Tensor | None]]:
        """Hide views, then sample them and the bird's-eye picture from the remaining views.

        Args:
            masked_views (list of `int`, or one such list a scene): views to hide; or `bool_masked_views` (B, V).
            bev_bounds (`torch.FloatTensor` of shape `(B, 4)`): edges of the bird's-eye picture, metres.
            num_inference_steps (`int` or `str`): sampler steps; a text such as "5,3" spaces sections of the schedule.
            generator (`torch.Generator`, *optional*): on CPU.
            pixel_values, view_mask and the rest: the processor's output, with or without text.

        Returns:
            per scene: views (n, 3, h, w) in [0, 1], or None when none was masked; bird's-eye picture (3, h, w).

        Raises:
            TypeError, ValueError: for views that do not exist, edges in the wrong order, and numbers of steps that the
                schedule does not have, before anything is computed.
        """
        batch = {
            "pixel_values": pixel_values, "view_mask": view_mask, "bool_masked_views": bool_masked_views,
            "bev_bounds": bev_bounds, **inputs,
        }  # fmt: skip
        check_reconstruct_inputs(self, batch, num_inference_steps, generator)
        if view_mask is None:
            view_mask = torch.ones(pixel_values.shape[:2], dtype=torch.bool, device=pixel_values.device)
        masked = bool_masked_views
        if masked is None:
            masked = read_masked_views([] if masked_views is None else masked_views, view_mask)
        states = self.get_scene_states(masked, view_mask=view_mask, pixel_values=pixel_values, **inputs)
        counts = masked.sum(dim=1).tolist()
        views: list[torch.Tensor | None] = [None] * len(counts)
        if any(counts):
            queries = get_view_queries(states, masked, self.config)
            pictures = self.sample_pictures(queries, num_inference_steps, generator)
            views = [part if len(part) else None for part in pictures.split(counts)]
        queries = get_bev_queries(self, states, bev_bounds)
        return views, list(self.sample_pictures(queries, num_inference_steps, generator))

    def get_scene_states(self, masked: torch.Tensor, **inputs) -> SceneStates:
        """Output states of the language model for scenes with masked views.

        Args:
            masked (`torch.BoolTensor` of shape `(B, V)`): the views to rebuild, masked unless the model was trained
                with the vanilla objective.
            inputs: the processor's output, `view_mask` and `pixel_values` included.
        """
        unseen = get_unseen_views(masked, self.config)
        given = choose_inputs(inputs, *list_inputs("text", "scene", "question"))
        outputs = self.model(**given, bool_masked_views=unseen, return_dict=True)
        visible = get_visible_views(inputs["view_mask"], unseen)
        return SceneStates(outputs.visual_states, visible, outputs.visual_positions)

    def sample_pictures(
        self, queries: PictureQueries, num_inference_steps: int | str, generator: torch.Generator | None = None
    ) -> torch.Tensor:
        """Sampled pictures (n, 3, H, W) in [0, 1] of the queries, at the size that the teacher decodes."""
        tokens = self.reconstruction_head(
            *queries.list_arguments(), num_inference_steps=num_inference_steps, generator=generator
        )
        return decode_latents(self.get_teacher(), get_latents(tokens, self.config.denoiser_config))


def get_setting(model: Any, kwargs: dict[str, Any], name: str) -> Any:
    """The value of a setting of `generate`: the argument, or that of the first config that has one."""
    if name in kwargs:
        return kwargs[name]
    given = [settings for settings in (kwargs.get("generation_config"), model.generation_config) if settings]
    values = [getattr(settings, name, None) for settings in given]
    return next((value for value in values if value is not None), None)


def is_chosen_once(model: Any, kwargs: dict[str, Any]) -> bool:
    """Whether `generate` returns a dictionary and chooses each token once: no beams, no assistant, no loop of the
    caller's."""
    helped = [get_setting(model, kwargs, name) for name in HELPERS]
    one_beam = (get_setting(model, kwargs, "num_beams") or 1) == 1
    return bool(get_setting(model, kwargs, "return_dict_in_generate")) and one_beam and not any(helped)


def add_token_probability(model: Any, outputs: Any, chosen: ChosenTokens | None, kwargs: dict[str, Any]) -> Any:
    """The outputs of `generate`, with the mean probability of each answer's tokens if they were noted."""
    if chosen is None:
        return outputs
    end_ids, pad_id = (get_setting(model, kwargs, name) for name in ("eos_token_id", "pad_token_id"))
    mean = chosen.compute_mean(outputs.sequences, end_ids, pad_id)
    return Ross3DGenerateOutput(**outputs, token_probability=mean)


# ---- checks

# Strategies of the library that cannot be used here, and why.
UNSUPPORTED = {
    "token_healing": "which would decode the prompt and tokenise it again, without its views",
    "assistant_early_exit": "which would answer from the first layers, on which this model was not trained",
}


def is_count(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool) and value >= 1


def get_items(value: Any) -> Any:
    """A tensor as Python numbers, one or a list; other values as they are."""
    return value.tolist() if isinstance(value, torch.Tensor) else value


def is_number(value: Any) -> bool:
    return isinstance(get_items(value), Real) and not isinstance(get_items(value), bool)


def is_whole_number(value: Any) -> bool:
    return isinstance(get_items(value), Integral) and not isinstance(get_items(value), bool)


def is_token(value: Any) -> bool:
    """Whether a value is the id of a token, or several."""
    items = get_items(value)
    return all(map(is_whole_number, items)) if is_list(items) else is_whole_number(items)


def is_list(value: Any) -> bool:
    return isinstance(value, (list, tuple))


# Arguments that the library uses without a look at them: what is expected, and whether a value is that.
EXPECTED: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "generation_config": ("a GenerationConfig", lambda value: isinstance(value, GenerationConfig)),
    "num_beams": ("a whole number from 1 on", is_count),
    "num_return_sequences": ("a whole number from 1 on", is_count),
    "max_time": ("seconds, a number", is_number),
    **dict.fromkeys(
        ("max_new_tokens", "max_length", "min_new_tokens", "min_length", "top_k"), ("a whole number", is_whole_number)
    ),
    **dict.fromkeys(("temperature", "top_p", "min_p", "typical_p", "repetition_penalty"), ("a number", is_number)),
    **dict.fromkeys(("eos_token_id", "pad_token_id", "bos_token_id"), ("the id of a token", is_token)),
    "tokenizer": (
        "a tokenizer or the processor",
        lambda value: hasattr(getattr(value, "tokenizer", value), "get_vocab"),
    ),
    "streamer": ("a streamer, such as TextStreamer(processor.tokenizer)", lambda value: hasattr(value, "put")),
    "logits_processor": ("a list of logits processors", is_list),
    "stopping_criteria": ("a list of stopping criteria", is_list),
    "assistant_model": ("a model", lambda value: isinstance(value, torch.nn.Module)),
}


def choose_inputs(inputs: dict[str, Any], *names: str) -> dict[str, Any]:
    """The inputs that have one of these names and are not None."""
    return {name: inputs[name] for name in names if inputs.get(name) is not None}


def check_generate_arguments(model: Any, kwargs: dict[str, Any]) -> None:
    """Refuse strategies that this model cannot use, and arguments of other types than the library expects.

    Raises:
        ValueError: for such a strategy. TypeError: for such an argument. Both name it.
    """
    for name, (expected, is_expected) in EXPECTED.items():
        # The library replaces None by a default for all but the counts.
        is_given = kwargs.get(name) is not None or (name in kwargs and is_expected is is_count)
        if is_given and not is_expected(kwargs[name]):
            got = shorten(repr(kwargs[name]))
            raise TypeError(f"generate: {name}: expected {expected}, got {got}; correct it, or leave it out.")
    settings = kwargs.get("generation_config") or model.generation_config
    for name, reason in UNSUPPORTED.items():
        value = kwargs.get(name, getattr(settings, name, None))
        if value:
            raise ValueError(f"generate: expected no {name}, {reason}, got {shorten(repr(value))}; leave it out.")


def check_generate_inputs(model: Any, inputs: torch.Tensor | None, kwargs: dict, scene: Any, scene_index: Any) -> None:
    """Refuse rows that `generate` cannot answer, and arguments that do not go with `scene`."""
    # An assistant model is called again for longer rows, with the segments of the first call.
    batch = {"input_ids": kwargs.get("input_ids", inputs)}
    check_inputs(kwargs | batch | {"segment_ids": None} if scene is None else batch, **model.model.views.layout.sizes)
    check_prompts(model, "generate", batch["input_ids"], kwargs)
    segments = kwargs.get("segment_ids")
    check_inputs({"segment_ids": segments})
    if segments is not None and int(segments.max()) > 1:
        raise ValueError(
            f"generate: expected one question a row, got rows with up to {int(segments.max())}; encode the scene"
            " once with scene = model.encode_scene(**processor(images=...)) and ask model.generate(scene=scene,"
            " **processor(text=questions))."
        )
    check_left_padding(kwargs.get("attention_mask"))
    has_views = any(kwargs.get(name) is not None for name in ("pixel_values", "mm_encoder_outputs"))
    if has_views and not model.model.views.counts_along_row:
        raise ValueError(
            f"generate: expected scene= with backbone {model.config.backbone!r}, whose views are not counted like"
            " words, got views; pass scene=model.encode_scene(...) and questions alone."
        )
    if scene is None:
        prompts = {"input_ids": inputs} if inputs is not None else {}
        check_has_scene(model, "generate", segments, kwargs | prompts, scene_index)
        return
    check_questions_alone(model, "generate", scene, kwargs)
    settings = kwargs.get("generation_config") or model.generation_config
    if kwargs.get("use_cache", settings.use_cache) is False:
        raise ValueError(
            "generate: expected use_cache=True with scene=, whose views are only in the cache, got False;"
            " leave it out, or pass the views with each question."
        )
    input_ids = batch["input_ids"]
    if input_ids is None or not len(input_ids) or kwargs.get("past_key_values") is not None:
        raise ValueError(
            "generate: expected input_ids of at least one question with scene=, and no other cache, got"
            f" {'a cache' if kwargs.get('past_key_values') is not None else input_ids}; pass"
            " **processor(text=questions)."
        )
    if kwargs.get("cache_implementation", settings.cache_implementation) is not None:
        raise ValueError(
            "generate: expected no cache_implementation with scene=, which is already a cache, got"
            f" {shorten(repr(kwargs.get('cache_implementation', settings.cache_implementation)))}; leave it out, or"
            " pass the views with each question."
        )
    guesses = [name for name in ("prompt_lookup_num_tokens", "assistant_model") if kwargs.get(name) is not None]
    if guesses and not shares_prefixes(model.config.text_config):
        raise ValueError(
            f"generate: expected no {guesses[0]} together with scene= and this attn_implementation, whose caches are"
            " cut back over the scene; load the model with attn_implementation='sdpa'."
        )


def check_scene_rows(model: Any, batch: dict[str, Any]) -> None:
    """Refuse inputs of `encode_scene` that are not scenes alone."""
    check_input_names("encode_scene", batch, unused=("bool_masked_views", "query_coords", *LATENTS))
    input_ids, attention_mask = batch["input_ids"], batch["attention_mask"]
    check_inputs(batch, **model.model.views.layout.sizes)
    check_prompts(model, "encode_scene", input_ids, {"attention_mask": attention_mask})
    if batch.get("pixel_values") is None:
        model.model.check_views_given(input_ids)
    if has_questions(model, input_ids, batch["segment_ids"]):
        raise ValueError(
            "encode_scene: expected rows without questions, got text; call the processor without text= and ask"
            " with model.generate(scene=scene, **processor(text=questions))."
        )
    check_left_padding(attention_mask)


def check_ground_inputs(model: Any, batch: dict[str, Any], scene: Any, scene_index: Any) -> None:
    """Refuse inputs of `ground` without an expression to ground, or without proposals."""
    check_input_names("ground", batch, unused=("bool_masked_views", *LATENTS))
    if scene is not None:
        check_questions_alone(model, "ground", scene, batch)
    # Proposals of cached scenes come as one list per scene, not per question.
    rows = batch if scene is None else choose_inputs(batch, "input_ids", "segment_ids", "query_coords")
    check_inputs(rows, **model.model.views.layout.sizes)
    input_ids, segment_ids = batch["input_ids"], batch["segment_ids"]
    check_prompts(model, "ground", input_ids, {"attention_mask": batch["attention_mask"]})
    if model.grounding_head is None:
        raise ValueError("ground: expected a model with config.grounding=True, got False; load another checkpoint.")
    if segment_ids is not None and not bool((segment_ids > 0).any()):
        raise ValueError(
            "ground: expected at least one question, got scenes alone; pass text= to the processor, one expression"
            " for each object that is meant."
        )
    if scene is not None:
        return
    if batch["proposal_boxes"] is None:
        raise ValueError(
            "ground: expected proposal_boxes (B, K, 6), got None; pass proposal_boxes= to the"
            " processor (K = 0 is legal)."
        )
    check_has_scene(model, "ground", segment_ids, batch, scene_index)


def check_reconstruct_inputs(
    model: Any, batch: dict[str, Any], num_inference_steps: int | str, generator: torch.Generator | None
) -> None:
    """Refuse inputs of `reconstruct` that cannot be rebuilt, before anything is computed."""
    check_input_names("reconstruct", batch, unused=LATENTS)
    check_inputs(batch, **model.model.views.layout.sizes)
    if model.reconstruction_head is None:
        raise ValueError("reconstruct: expected a model with denoiser_config, got None; load another checkpoint.")
    if batch["pixel_values"] is None:
        raise ValueError("pixel_values: expected the views of the scenes, got None; pass the processor's output.")
    model.get_teacher()
    if generator is not None and not isinstance(generator, torch.Generator):
        got = shorten(repr(generator))
        raise TypeError(f"generator: expected a torch.Generator, got {got}; pass torch.Generator().manual_seed(5).")
    space_timesteps(model.config.denoiser_config.num_train_timesteps, num_inference_steps)
    if batch["bev_bounds"] is not None:
        check_bev_bounds(batch["bev_bounds"])


def check_prompts(model: Any, name: str, input_ids: torch.Tensor | None, inputs: dict[str, Any]) -> None:
    """Refuse ids that are not tokens, and attention masks that do not fit them."""
    mask, cache = inputs.get("attention_mask"), inputs.get("past_key_values")
    if input_ids is None:
        return
    size = model.config.text_config.vocab_size
    outside = (input_ids < 0) | (input_ids >= size)
    if bool(outside.any()):
        raise ValueError(
            f"{name}: expected input_ids in 0..{size - 1}, got {input_ids[outside][:5].tolist()}; build rows with"
            " this model's processor."
        )
    if cache is not None or inputs.get("inputs_embeds") is not None:
        return
    check_mask(mask, *input_ids.shape, 0)
    if isinstance(mask, torch.Tensor) and mask.dim() == 2:
        check_mask_values(mask)
    elif mask is not None and not (name == "generate" and isinstance(mask, torch.Tensor)):
        raise TypeError(
            f"attention_mask: expected a tensor of 0 and 1 of shape (B, L), got"
            f" {tuple(mask.shape) if isinstance(mask, torch.Tensor) else type(mask).__name__}; build rows with"
            " this model's processor."
        )


def has_questions(model: Any, input_ids: torch.Tensor, segment_ids: torch.Tensor | None) -> bool:
    """Whether rows hold questions after their scene.

    Without `segment_ids` a question is recognised by its end-of-turn mark: rows of a scene alone end before that mark.
    """
    if segment_ids is not None:
        return bool((segment_ids > 0).any())
    ends = model.generation_config.eos_token_id
    ends = model.config.text_config.eos_token_id if ends is None else ends
    if ends is None:
        return False
    ends = torch.as_tensor(ends, device=input_ids.device).flatten()
    behind = model.model.get_placeholder_mask(input_ids, None).cumsum(dim=1)
    return bool((torch.isin(input_ids, ends) & (behind > 0)).any())


def check_has_scene(model: Any, name: str, segment_ids: torch.Tensor | None, inputs: dict, scene_index) -> None:
    """Refuse questions that the processor made for an encoded scene when no such scene is given."""
    asks_alone = segment_ids is not None and not bool((segment_ids == 0).any())
    has_views = inputs.get("pixel_values") is not None or inputs.get("mm_encoder_outputs")
    if (asks_alone or scene_index is not None) and not has_views:
        raise ValueError(
            f"{name}: expected scene= or views, since the processor made these questions without images, got"
            " neither; pass scene=model.encode_scene(...), or images= to the processor."
        )
    if not has_views and inputs.get("past_key_values") is None and inputs.get("input_ids") is not None:
        model.model.check_views_given(inputs["input_ids"])
    if scene_index is not None:
        raise ValueError(
            f"scene_index: expected None without scene=, got {shorten(repr(scene_index))}; row i is scene i."
        )


def check_left_padding(attention_mask: Any) -> None:
    if (
        isinstance(attention_mask, torch.Tensor)
        and attention_mask.dim() == 2
        and not bool(attention_mask[:, -1].all())
    ):
        raise ValueError(
            "attention_mask: expected rows padded on the left, since answers go on at their ends, got padding at"
            f" the end of row {int((attention_mask[:, -1] == 0).nonzero()[0])}; leave answers= out of the"
            " processor."
        )


def check_questions_alone(model: Any, name: str, scene: Any, inputs: dict) -> None:
    """Refuse a `scene` that is not an encoded scene, and views given together with one."""
    # By its name: a process may have loaded this class several times, once for each checkpoint with its code.
    if type(scene).__name__ != Ross3DSceneCache.__name__:
        raise TypeError(
            f"scene: expected a scene from model.encode_scene(...), got a {type(scene).__name__}"
            f" {str(scene)[:80]!r}; read a saved one with model.load_scene(file)."
        )
    check_scene(scene, model)
    given = [key for key in ("pixel_values", "mm_encoder_outputs") if inputs.get(key) is not None]
    if given:
        raise ValueError(
            f"{name}: expected questions alone with scene=, which already contains the views, got {given[0]};"
            " call the processor without images=, or leave scene= out."
        )
    segments = inputs.get("segment_ids")
    if segments is not None and bool((segments == 0).any()):
        raise ValueError(
            f"{name}: expected plain questions with scene=, which contains the beginning of the chat, got whole"
            " prompts with chat marks; pass the question's own words to the processor, or leave scene= out."
        )


def read_scene_index(scene: Ross3DSceneCache, scene_index, num_questions: int) -> torch.Tensor:
    num_scenes = len(scene.prefix_mask)
    if scene_index is None:
        if num_scenes != 1:
            raise ValueError(
                f"scene_index: expected the scene (0..{num_scenes - 1}) of each of {num_questions} questions, got"
                f" None while {num_scenes} scenes are cached; pass scene_index=[...]."
            )
        return torch.zeros(num_questions, dtype=torch.long, device=scene.prefix_mask.device)
    # Without a dtype: a float would be truncated to the number of another scene.
    try:
        index = torch.as_tensor(scene_index, device=scene.prefix_mask.device)
    except (TypeError, ValueError, RuntimeError) as error:
        got = shorten(repr(scene_index))
        raise TypeError(
            f"scene_index: expected {num_questions} whole numbers in 0..{num_scenes - 1}, got {got};"
            " number the scenes in the order in which they were encoded."
        ) from error
    is_whole = not index.is_floating_point() and not index.is_complex() and index.dtype != torch.bool
    legal = is_whole and index.shape == (num_questions,) and bool(((index >= 0) & (index < num_scenes)).all())
    if not legal:
        raise ValueError(
            f"scene_index: expected {num_questions} whole numbers in 0..{num_scenes - 1}, got {index.tolist()};"
            " pass one scene for each question."
        )
    return index.long()


def limit_answers(model: Any, inputs: torch.Tensor | None, kwargs: dict[str, Any]) -> None:
    """Make answers end at the context limit: reduce, in place, how many new tokens `generate` is asked for.

    Raises:
        ValueError: for prompts that leave no room for an answer.
    """
    for name in ("max_new_tokens", "max_length"):
        value = kwargs.get(name)
        # The library accepts Python integers only; NumPy and torch have integer types of their own.
        if isinstance(value, torch.Tensor) and value.numel() == 1:
            value = value.item()
        if isinstance(value, Integral) and not isinstance(value, bool):
            value = int(value)
        if value is not None:
            kwargs[name] = value
    wanted, total = (get_setting(model, kwargs, name) for name in ("max_new_tokens", "max_length"))
    for name, value in (("max_new_tokens", wanted), ("max_length", total)):
        is_whole = isinstance(value, Integral) and not isinstance(value, bool)
        if value is not None and (not is_whole or value < 1):
            got = shorten(repr(value))
            raise ValueError(f"generate: {name}: expected a whole number from 1 on, got {got}; correct it.")
    prompts = next((given for given in (inputs, kwargs.get("input_ids")) if given is not None), None)
    embeds, mask, cache = (kwargs.get(name) for name in ("inputs_embeds", "attention_mask", "past_key_values"))
    widths = [given.shape[1] for given in (prompts, embeds) if given is not None]
    if not widths:
        return
    # A mask is longer than the prompt where a cache precedes it.
    length = max(*widths, mask.shape[-1]) if isinstance(mask, torch.Tensor) else max(widths)
    if isinstance(cache, SharedPrefixCache):
        length += cache.longest_prefix
    limit, per_view = model.config.context_length, model.model.views.layout.num_positions
    if length >= limit:
        raise ValueError(
            f"generate: expected fewer than {limit} positions (max_position_embeddings), so that an answer has"
            f" room, got {length}; use fewer views ({per_view} positions each) or a shorter"
            " question."
        )
    if wanted is None:
        wanted = DEFAULT_NEW_TOKENS if total is None else total - max(widths)
    if wanted <= limit - length:
        return
    warnings.warn(
        f"generate: {wanted} new tokens behind {length} positions pass the limit of {limit}"
        f" (max_position_embeddings): answers end after {limit - length} at the latest.",
        stacklevel=3,
    )
    kwargs.pop("max_length", None)
    kwargs["max_new_tokens"] = limit - length


def read_masked_views(masked_views: Sequence, view_mask: torch.Tensor) -> torch.Tensor:
    """Numbers of the views to hide, one list for all scenes or one per scene -> (B, V) bool."""
    given = masked_views.tolist() if hasattr(masked_views, "tolist") else masked_views
    nested = [isinstance(part, list | tuple) for part in given] if isinstance(given, list | tuple) else [None]
    if len(set(nested)) > 1 or None in nested:
        raise TypeError(
            "masked_views: expected a list of views such as [3, 7], or such a list for each scene, got"
            f" {shorten(repr(masked_views))}; pass [] to hide none."
        )
    lists = given if any(nested) else [given] * len(view_mask)
    if len(lists) != len(view_mask):
        raise ValueError(
            f"masked_views: expected one list for each of {len(view_mask)} scenes, got {len(lists)}; pass [] for a"
            " scene that keeps all its views."
        )
    masked = torch.zeros_like(view_mask)
    for row, numbers in enumerate(lists):
        for number in numbers:
            # True and 1.0 compare equal to a view's number but are not one.
            is_whole = isinstance(number, Integral) and not isinstance(number, bool)
            if not is_whole or not 0 <= number < view_mask.shape[1] or not view_mask[row, number]:
                raise ValueError(
                    f"masked_views: expected views 0..{int(view_mask[row].sum()) - 1} of scene {row}, got"
                    f" {shorten(repr(number))}; name views that exist by whole numbers, or pass bool_masked_views."
                )
            masked[row, number] = True
    return masked


def get_cached_proposals(model: Any, scene: Ross3DSceneCache, proposals: dict[str, torch.Tensor | None]):
    """Proposal features (B, K, D) and mask (B, K) of cached scenes: those encoded with them, or those of new boxes."""
    if proposals["proposal_boxes"] is None:
        if scene.proposal_features is None:
            raise ValueError(
                "ground: expected a scene encoded with proposal_boxes, got one without; pass proposal_boxes= to"
                " the processor before encode_scene, or encode with keep_patch_features=True and pass them here."
            )
        return scene.proposal_features, scene.proposal_mask
    if scene.patch_features is None:
        raise ValueError(
            "ground: expected a scene encoded with keep_patch_features=True, since new proposal_boxes are given,"
            " got none; encode it again with keep_patch_features=True."
        )
    return get_proposal_features(model, scene.patch_features, visual_states=scene.visual_states, **proposals)


__all__ = ["Ross3DGenerateOutput", "Ross3DGenerationMixin"]
