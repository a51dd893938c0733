"""What `test_push.py` runs on another machine: load models by their Hub ids, then do as the first one's page says.

    python -I hub_machine.py VIEWS.npz LOGITS.pt QUESTION REPOSITORY [REPOSITORY ...]

This file is run by itself: it imports what the library needs and nothing of this project.
"""

import sys
from pathlib import Path

import numpy as np
import torch
from huggingface_hub import hf_hub_download
from transformers import AutoModel, AutoProcessor


def main(views: str, logits: str, question: str, *repositories: str) -> None:
    found = {}
    for name in repositories:
        processor = AutoProcessor.from_pretrained(name, trust_remote_code=True)
        model = AutoModel.from_pretrained(name, trust_remote_code=True)
        assert type(model).__module__.startswith("transformers_modules."), type(model)
        with torch.no_grad():
            found[name] = model(**processor(**np.load(views), text=question)).logits
    torch.save(found, logits)
    page = Path(hf_hub_download(repositories[0], "README.md")).read_text()
    block = page.split("```python\n")[1].split("```")[0]
    assert f'path = "{repositories[0]}"' in block, block
    exec(block, {"__name__": "__main__"})
    assert not [name for name in sys.modules if name.split(".")[0] == "ross3d"]


if __name__ == "__main__":
    main(*sys.argv[1:])
