"""LoRA: what is trained, what is saved, and that it answers the same merged, unmerged and in a fresh process."""

import json
import os
import signal
import subprocess
import sys

import pytest
import torch
import yaml
from peft.utils import ModulesToSaveWrapper
from safetensors.torch import load_file
from transformers import AutoProcessor

from ross3d import train
from ross3d.modeling_ross3d import Ross3DForConditionalGeneration
from ross3d.tests.invariant.test_resume import OUTPUT, RECORDS, finish, start
from ross3d.tests.tiny import get_checkpoint, get_rooms
from ross3d.tools.make_tiny import make_tiny_model, make_tiny_processor
from ross3d.training import shards
from ross3d.training.arguments import LoraArguments, PartArguments, read_run_arguments
from ross3d.training.build import choose_optimizer, group_parameters
from ross3d.training.callbacks import is_complete
from ross3d.training.lora import PEFT_PREFIX, add_lora


ANSWER = """
import json, sys
import torch
from transformers import AutoModel, AutoProcessor
torch.manual_seed(0)
processor = AutoProcessor.from_pretrained(sys.argv[1], trust_remote_code=True)
inputs = torch.load(sys.argv[3], weights_only=False)
logits = []
for folder in sys.argv[1:3]:
    model = AutoModel.from_pretrained(folder, trust_remote_code=True).eval()
    logits.append(model(**inputs).logits)
    print(type(model).__name__, sum("lora" in name for name, _ in model.named_parameters()))
print(json.dumps([float((logits[0] - logits[1]).abs().max()), float(logits[0].abs().max())]))
torch.save(logits, sys.argv[3] + ".logits")
"""


def make_settings(**trainer) -> dict:
    return {
        "init_from": str(get_checkpoint()),
        "data": {"root": str(get_rooms()), "visit": "questions", "questions_per_row": 3, "limit": 4},
        "lora": {"rank": 4, "alpha": 8, "dropout": 0.1},
        "trainer": {
            "output_dir": str(OUTPUT),
            "per_device_train_batch_size": 1,
            "gradient_accumulation_steps": 2,
            "learning_rate": 1.0e-2,
            "logging_steps": 2,
            "save_steps": 2,
            "max_steps": 6,
            "use_cpu": True,
            "disable_tqdm": True,
            "report_to": "none",
        }
        | trainer,
    }


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder of a LoRA run of six steps."""
    folder = tmp_path_factory.mktemp("lora")
    (folder / "run.yaml").write_text(yaml.safe_dump(make_settings(output_dir=str(folder / OUTPUT))))
    train.main(read_run_arguments(folder / "run.yaml", []))
    assert is_complete(folder / OUTPUT)
    return folder / OUTPUT


def get_model() -> Ross3DForConditionalGeneration:
    return Ross3DForConditionalGeneration.from_pretrained(get_checkpoint())


def test_what_is_trained():
    """Small matrices beside the language model's, the heads whole, and the rows of two tokens; in float32."""
    whole = sum(parameter.numel() for parameter in get_model().parameters())
    model = add_lora(get_model().bfloat16(), make_tiny_processor(), LoraArguments(rank=4, alpha=8), seed=0)
    found = {name: p for name, p in model.named_parameters() if p.requires_grad}
    config = model.config.text_config
    beside = [name for name in found if ".lora_" in name]
    assert len(beside) == config.num_hidden_layers * 7 * 2 and all(
        ".language_model.layers." in name for name in beside
    )
    rows = {name: p for name, p in found.items() if "trainable_tokens" in name}
    assert [tuple(p.shape) for p in rows.values()] == [(2, config.hidden_size)]
    heads = {name.split(".modules_to_save")[0] for name in found.keys() - set(beside) - rows.keys()}
    assert heads == {
        f"base_model.model.{name}" for name in ("model.multi_modal_projector", "grounding_head", "reconstruction_head")
    }
    assert {p.dtype for p in found.values()} == {torch.float32}
    assert sum(found[name].numel() for name in (*beside, *rows)) < 0.2 * whole
    untouched = [name for name, p in model.named_parameters() if not p.requires_grad]
    assert any("vision_tower" in name for name in untouched) and any("lm_head" in name for name in untouched)


def test_an_adapter_knows_its_base_from_everywhere(monkeypatch):
    """A folder's relative name would be looked for where the adapter is loaded."""
    monkeypatch.chdir(get_checkpoint().parent)
    model = Ross3DForConditionalGeneration.from_pretrained(get_checkpoint().name)
    adapted = add_lora(model, make_tiny_processor(), LoraArguments(rank=4), seed=0)
    assert adapted.peft_config["default"].base_model_name_or_path == str(get_checkpoint().resolve())


def test_parts_keep_their_rates(tmp_path):
    model = add_lora(get_model(), make_tiny_processor(), LoraArguments(), seed=0)
    training = train.build_training_arguments({"output_dir": str(tmp_path), "learning_rate": 1.0e-3}, 0)
    groups = group_parameters(model, {"grounding_head": PartArguments(learning_rate=0.5)}, training)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    of = {names[id(p)]: group["lr"] for group in groups for p in group["params"]}
    assert {rate for name, rate in of.items() if "grounding_head" in name} == {0.5}
    assert {rate for name, rate in of.items() if "grounding_head" not in name} == {1.0e-3}


def test_merged_and_unmerged_answer_alike_in_a_fresh_process(trained, tmp_path):
    """The run's folder is the merged model; `adapter/` stands beside the checkpoint it was trained from."""
    processor = AutoProcessor.from_pretrained(trained / "adapter", trust_remote_code=True)
    page = (trained / "adapter" / "README.md").read_text()
    assert page == (trained / "README.md").read_text() and f"weights ({get_checkpoint().name})" in page
    tokens = processor(text=["How many chairs are there?", "Is there a bed?"], return_tensors="pt")
    inputs = {name: tokens[name] for name in ("input_ids", "attention_mask")}
    torch.save(inputs, tmp_path / "inputs.pt")
    done = subprocess.run(
        [sys.executable, "-c", ANSWER, str(trained), str(trained / "adapter"), str(tmp_path / "inputs.pt")],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    merged, adapted, numbers = done.stdout.strip().splitlines()[-3:]
    assert merged.split()[1] == "0" and int(adapted.split()[1]) > 0
    difference, largest = json.loads(numbers)
    assert difference <= 1e-5 * largest
    # Training has moved what it answers.
    before = get_model().eval()(**inputs).logits
    assert (torch.load(tmp_path / "inputs.pt.logits")[0] - before).abs().max() > 1e-3 * largest


def test_what_is_merged_is_what_was_trained(trained):
    found, before = load_file(trained / "model.safetensors"), load_file(get_checkpoint() / "model.safetensors")
    assert found.keys() == before.keys()
    moved = {name for name in found if not torch.equal(found[name], before[name])}
    heads = ("model.multi_modal_projector", "grounding_head", "reconstruction_head")
    layers = "model.language_model.layers"
    assert {name for name in moved if name.startswith(layers)} == {
        name for name in found if name.startswith(layers) and name.endswith("_proj.weight")
    }
    rest = {name for name in moved if not name.startswith((layers, *heads))}
    assert rest == {"model.language_model.embed_tokens.weight"}
    rows = (found[rest.pop()] != before["model.language_model.embed_tokens.weight"]).any(dim=1).nonzero().flatten()
    tokens = make_tiny_processor().tokenizer.convert_tokens_to_ids(["<ground>", "<coord>"])
    assert set(rows.tolist()) <= set(tokens) and len(rows)


def test_a_checkpoint_of_3drs_is_adapted(tmp_path):
    """Its heads are trained whole; the encoder gives targets and takes no adapters."""
    heads = ("model.multi_modal_projector", "grounding_head", "distillation_head")
    settings = make_settings(output_dir=str(tmp_path / "run")) | {"init_from": str(get_checkpoint("3drs"))}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(settings))
    train.main(read_run_arguments(tmp_path / "run.yaml", []))
    history = json.loads((tmp_path / "run" / "trainer_state.json").read_text())["log_history"]
    losses = [record["distill_loss"] for record in history]
    assert len(losses) == 3 and 0 < losses[-1] < losses[0]
    before = load_file(get_checkpoint("3drs") / "model.safetensors")
    found = load_file(tmp_path / "run" / "model.safetensors")
    moved = {name for name in found if not torch.equal(found[name], before[name])}
    assert found.keys() == before.keys() and {name for name in found if name.startswith("distillation_head")} <= moved
    rest = {name for name in moved if not name.startswith(("model.language_model.layers", *heads))}
    assert rest <= {"model.language_model.embed_tokens.weight"}
    adapter = load_file(tmp_path / "run" / "adapter" / "adapter_model.safetensors")
    assert not any("aggregator" in name for name in (*found, *adapter))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"target_modules": "q_proj"}, "lora.target_modules: expected a regular expression for full module names"),
        ({"modules": ["projector"]}, "lora.modules: expected module names such as .*got 'projector'; leave it out"),
        ({"tokens": ["<spot>"]}, "lora.tokens: expected tokens of the checkpoint's tokenizer, got '<spot>'; leave it"),
    ],
)
def test_names_that_the_model_has_not(change, message):
    with pytest.raises(ValueError, match=message):
        add_lora(get_model(), make_tiny_processor(), LoraArguments(**change), seed=0)


@pytest.mark.parametrize(("system", "head"), [("ross3d", "reconstruction_head"), ("3drs", "distillation_head")])
def test_heads_that_a_model_has_are_trained_whole(system, head):
    processor = make_tiny_processor(system)
    model = add_lora(make_tiny_model(processor.tokenizer, system=system), processor, LoraArguments(), seed=0)
    whole = {name for name, module in model.named_modules() if isinstance(module, ModulesToSaveWrapper)}
    heads = {"model.multi_modal_projector", "grounding_head", head}
    assert whole == {f"{PEFT_PREFIX}{name}" for name in heads}


def test_lora_stands_beside_a_checkpoint(tmp_path):
    (tmp_path / "run.yaml").write_text("lora: {rank: 8}\ntrainer: {output_dir: out}\n")
    with pytest.raises(ValueError, match="lora: expected init_from, the checkpoint to adapt, got none"):
        read_run_arguments(tmp_path / "run.yaml", [])
    assert read_run_arguments(tmp_path / "run.yaml", ["--init_from", "folder"]).lora == LoraArguments(rank=8)


@pytest.mark.parametrize("part", ["reconstruction_head", "grounding_head.query_mlp", "model"])
def test_what_is_trained_whole_cannot_be_frozen(tmp_path, part):
    file = tmp_path / "run.yaml"
    file.write_text(f"init_from: x\nlora: {{rank: 8}}\nparts: {{{part}: {{freeze: true}}}}\n")
    with pytest.raises(
        ValueError, match=f"parts.{part}: expected not to freeze modules that lora.modules trains, got"
    ):
        read_run_arguments(file, [])
    other = ["--lora.modules", "[model.vision_tower.head]", "--parts", "{model.language_model: {freeze: true}}"]
    assert read_run_arguments(file, other).parts == {"model.language_model": PartArguments(freeze=True)}


def test_pieces_of_weights_are_refused(tmp_path, monkeypatch):
    training = train.build_training_arguments({"output_dir": str(tmp_path)}, 0)
    muon = {"lm_head": PartArguments(optimizer="muon", learning_rate=0.02)}
    choose_optimizer(get_model(), muon, training)
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    add_lora(get_model(), make_tiny_processor(), LoraArguments(), seed=0)
    with pytest.raises(
        ValueError, match="parts: expected an optimizer that sees whole matrices, got DeepSpeed or FSD"
    ):
        choose_optimizer(get_model(), muon, training)
    monkeypatch.setattr(shards, "is_deepspeed_zero3_enabled", lambda: True)
    with pytest.raises(
        ValueError, match="lora: expected all weights on every process, got ZeRO-3 or FSDP, which shard"
    ):
        add_lora(get_model(), make_tiny_processor(), LoraArguments(), seed=0)


@pytest.mark.slow
def test_a_killed_run_ends_with_the_same_adapter(tmp_path):
    """Dropout included; killed inside the second checkpoint, it goes on from the first."""
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(make_settings()))
    script = [sys.executable, "-m", "ross3d.tests.invariant.record_train", str(RECORDS), str(tmp_path / "run.yaml")]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    finish(start(script, whole), whole)
    process = start(script, killed, KILL_AT="checkpoint-4:5")
    assert process.wait(timeout=300) == -signal.SIGKILL
    finish(start(script, killed), killed)
    for name in ("model.safetensors", "adapter/adapter_model.safetensors"):
        assert (killed / OUTPUT / name).read_bytes() == (whole / OUTPUT / name).read_bytes(), name
