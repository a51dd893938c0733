"""What `test_remote_code.py` runs on another machine: load a checkpoint by its directory, use it, save it again.

    python -I other_machine.py CHECKPOINT INPUTS.npz ANSWERS.pt SECOND_CHECKPOINT NUM_THREADS

This file is copied there by itself: it may import what the library needs and nothing of this project.
"""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import torch
from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText, AutoProcessor


ABSENT = ("ross3d", "diffusers", "accelerate", "torchvision", "pytest")


def use(model, processor, scene: dict, questions: list[str], points: list) -> dict:
    """What a user asks of a model: answers and scores, with the scene and about an encoded one."""
    found = {}
    with torch.no_grad():
        inputs = processor(**scene, text=questions[0])
        found["inputs"] = dict(inputs)
        found["logits"] = model(**inputs).logits
        found["ids"] = model.generate(**inputs, max_new_tokens=5)
        found["beams"] = model.generate(**inputs, max_new_tokens=5, num_beams=3, num_return_sequences=2)
        found["scores"] = model.ground(**processor(**scene, text=questions, query_coords=points))
        encoded = model.encode_scene(**processor(**scene))
        asks = processor(text=questions, query_coords=points)
        found["answers"] = model.generate(scene=encoded, **asks, max_new_tokens=5)
        found["encoded scores"] = model.ground(scene=encoded, **asks)
    return found


def read_inputs(path: str | Path) -> tuple[dict, list[str], list]:
    """The processor's arguments for one scene, questions and their points."""
    arrays = dict(np.load(path, allow_pickle=True))
    return arrays, arrays.pop("questions").tolist(), arrays.pop("points").tolist()


def main(checkpoint: str, inputs: str, answers: str, again: str, num_threads: str) -> None:
    for name in ABSENT:
        assert importlib.util.find_spec(name) is None, f"{name} is importable here"
    torch.set_num_threads(int(num_threads))
    config = AutoConfig.from_pretrained(checkpoint, trust_remote_code=True)
    processor = AutoProcessor.from_pretrained(checkpoint, trust_remote_code=True)
    models = {
        auto.__name__: auto.from_pretrained(checkpoint, trust_remote_code=True)
        for auto in (AutoModel, AutoModelForImageTextToText)
    }
    for loaded in (config, processor, *models.values()):
        assert type(loaded).__module__.startswith("transformers_modules."), type(loaded)
    torch.save({name: use(model, processor, *read_inputs(inputs)) for name, model in models.items()}, answers)

    model = models["AutoModel"]
    try:
        model.attach_teacher(Path(checkpoint) / "teacher")
    except ImportError as error:
        assert "pip install diffusers" in str(error), error
    else:
        raise AssertionError("a teacher was read without diffusers")
    built = AutoModel.from_config(config, trust_remote_code=True)
    assert not built.reconstruction_head.denoiser.final_layer.linear.weight.any()
    model.save_pretrained(again)
    processor.save_pretrained(again)
    assert not {name.split(".")[0] for name in sys.modules} & set(ABSENT)


if __name__ == "__main__":
    main(*sys.argv[1:])
