"""The page of a converted checkpoint: what it is, how it is used, and on what terms each part of it is published."""

from collections.abc import Sequence

from huggingface_hub import ModelCard, ModelCardData

from ross3d.tools.checkpoints.ingredients import Ingredient


USAGE = """from transformers import AutoModel, AutoProcessor

processor = AutoProcessor.from_pretrained(path, trust_remote_code=True)
model = AutoModel.from_pretrained(path, trust_remote_code=True)
# views: images, depth_maps (metres), intrinsics (pixels), cam2world (metres, z up)
inputs = processor(**views, text="How many chairs are there?", return_tensors="pt").to(model.device)
ids = model.generate(**inputs, max_new_tokens=32)
print(processor.batch_decode(ids[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True))"""


def list_licenses(ingredients: Sequence[Ingredient]) -> list[str]:
    """A line for each ingredient: what, from where, on what terms."""
    return [
        f"{item.name} ({item.source}): {item.license}{f'; {item.note}' if item.note else ''}" for item in ingredients
    ]


def make_card(source: str, summary: str, ingredients: Sequence[Ingredient]) -> ModelCard:
    """The card of a checkpoint.

    Args:
        source (`str`): what it was converted from, a Hub id or a folder's name.
        summary (`str`): what became of its keys.
        ingredients: everything that its weights come from.
    """
    data = ModelCardData(
        license="other",
        license_name="several-see-below",
        library_name="transformers",
        pipeline_tag="image-text-to-text",
        base_model=source if "/" in source else None,
        tags=["ross3d", "3d-scene-understanding", "rgb-d"],
    )
    licenses = "\n".join(f"- {line}" for line in list_licenses(ingredients))
    return ModelCard(
        f"---\n{data.to_yaml()}\n---\n\n# ross3d\n\nA language model over posed RGB-D views of an indoor scene"
        f" ([Ross3D](https://arxiv.org/abs/2504.01901)), converted from `{source}`: {summary}. `conversion.json` has"
        " what became of every key.\n\n"
        f"```python\n{USAGE}\n```\n\n## Licences\n\n{licenses}\n"
    )
