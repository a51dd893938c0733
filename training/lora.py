"""Train low-rank adapters (LoRA) of a checkpoint's frozen matrices, with the library peft."""

import re
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model

from ross3d.modeling_ross3d import Ross3DForConditionalGeneration
from ross3d.processing_ross3d import Ross3DProcessor
from ross3d.training.arguments import WHOLE_MODULES, LoraArguments
from ross3d.training.shards import check_whole_weights


# What peft puts in front of the names of the model's own parameters.
PEFT_PREFIX = "base_model.model."


def add_lora(
    model: Ross3DForConditionalGeneration, processor: Ross3DProcessor, arguments: LoraArguments, seed: int
) -> PeftModel:
    """The model with its own weights frozen and trainable adapters in float32; `seed` initialises the adapters.

    Raises:
        ValueError: when `target_modules`, `modules` or `tokens` match nothing in the model, and with sharded weights,
            into which the adapters could not be merged at the end.
    """
    check_whole_weights("lora")
    names = {name for name, _ in model.named_modules()}
    if not any(re.fullmatch(arguments.target_modules, name) for name in names):
        raise ValueError(
            "lora.target_modules: expected a regular expression for full module names such as"
            f" {sorted(n for n in names if n.endswith('q_proj'))[:1]}, got {arguments.target_modules!r}."
        )
    modules = [name for name in WHOLE_MODULES if name in names] if arguments.modules is None else arguments.modules
    for name in modules:
        if name not in names:
            known = [child for child, _ in model.named_children()]
            raise ValueError(f"lora.modules: expected module names such as {known}, got {name!r}; leave it out.")
    vocabulary = processor.tokenizer.get_vocab()
    for token in arguments.tokens:
        if token not in vocabulary:
            raise ValueError(
                f"lora.tokens: expected tokens of the checkpoint's tokenizer, got {token!r}; leave it out."
            )
    rows = [vocabulary[token] for token in arguments.tokens]
    torch.manual_seed(seed)
    adapted = get_peft_model(
        model,
        LoraConfig(
            r=arguments.rank,
            lora_alpha=arguments.alpha,
            lora_dropout=arguments.dropout,
            target_modules=arguments.target_modules,
            modules_to_save=list(modules),
            trainable_token_indices={"embed_tokens": rows} if rows else None,
        ),
    )
    base = Path(model.name_or_path)
    if base.is_dir():
        # A relative path from the run's file would be looked up where the adapter is loaded, or on the Hub.
        adapted.peft_config["default"].base_model_name_or_path = str(base.resolve())
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            # In half precision most updates of a small learning rate would be rounded away.
            parameter.data = parameter.data.to(torch.float32)
    return adapted
