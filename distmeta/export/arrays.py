"""Export of models that read no texts: images and vectors (distmeta.models.arrays).

config.json  model.safetensors    the whole backbone, as transformers writes it; LoRA pairs are added to its weights
preprocessor_config.json          of images: their size, and how a model's pixels are scaled
head.safetensors  distmeta.json   as of texts
README.md                         the few lines that use all this
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from distmeta.config import Config
from distmeta.errors import InputError
from distmeta.models.arrays import ArrayModel, has_set_norm
from distmeta.models.images import ImageModel
from distmeta.models.layers import merge_lora
from distmeta.models.two_towers import TwoTowerModel

OWN = ("conv4", "mlp")  # model types that transformers has from distmeta

CARD = """---
library_name: transformers
tags: [meta-learning, few-shot, distmeta, {algorithm}]
---
# {name}

{what} by distmeta ({algorithm}). Its backbone is `{kind}`; `head.safetensors` has {head}.

```python
import torch{register}
from safetensors.torch import load_file
from transformers import AutoModel

model, head = AutoModel.from_pretrained(folder).eval(), load_file(f"{{folder}}/head.safetensors")
rows = {rows}
with torch.no_grad():
    features = model{states}
features = {pooled}
{last}
```
{note}"""


def write_arrays(
    model: ArrayModel, values: Mapping[str, Tensor], config: Config, head: dict[str, Tensor], about: dict[str, Any],
    draft: Path,
) -> None:  # fmt: skip
    """Fill the directory `draft`. values: trained weights by the model's names; head: its tensors, as they leave."""
    from safetensors.torch import save_file

    plain = stock(model, values, config)
    plain.save_pretrained(draft)
    if isinstance(model, ImageModel):
        (draft / "preprocessor_config.json").write_text(json.dumps(preprocessor(model), indent=1), encoding="utf-8")
    save_file(head, draft / "head.safetensors")
    about = about | {key: value for key in ("image", "dimensions") if (value := getattr(config.model, key)) is not None}
    (draft / "distmeta.json").write_text(json.dumps(about, indent=1, ensure_ascii=False), encoding="utf-8")
    (draft / "README.md").write_text(card(model, plain, config, head, about), encoding="utf-8")


def stock(model: ArrayModel, values: Mapping[str, Tensor], config: Config) -> Any:
    """transformers' own model with the trained weights. Raises InputError for a module of the user's."""
    from transformers import AutoModel

    if config.model.module is not None:
        raise InputError(
            f"export: the model is made by your own code, model.module = {config.model.module}; distmeta adapt, "
            "predict and serve take the checkpoint"
        )
    weights = {n: v.detach() for n, v in model.backbone.state_dict().items()}
    weights |= {n.removeprefix("backbone."): v for n, v in values.items() if n.startswith("backbone.")}
    if isinstance(model, TwoTowerModel):
        weights["logit_scale"] = values["head_log_scale"]
    with torch.random.fork_rng(devices=[]):  # parts that the task model dropped, as ViT's pooler, at the run's seed
        torch.manual_seed(config.run.seed)
        plain = AutoModel.from_config(model.backbone.config, trust_remote_code=False)
    loaded = plain.load_state_dict(merge_lora(weights, model.backbone), strict=False)
    absent = [name for name in loaded.missing_keys if "pooler" not in name and not is_statistic(name)]
    if absent or loaded.unexpected_keys:
        first = (absent + loaded.unexpected_keys)[0]
        raise InputError(f"export: its weights do not fit transformers' model, such as {first}")
    return plain.eval()


def is_statistic(name: str) -> bool:
    """Whether a name is of a batch norm's running statistics, which a model that reads sets has not."""
    return name.endswith(("running_mean", "running_var", "num_batches_tracked"))


def preprocessor(model: ImageModel) -> dict[str, Any]:
    """preprocessor_config.json, which AutoImageProcessor reads."""
    channels, height, width = model.size
    mean, deviation = (list(v) if len(v) == channels else list(v) * channels for v in model.scale)
    return {
        "image_processor_type": "ViTImageProcessor", "do_resize": True, "size": {"height": height, "width": width},
        "resample": 2, "do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True, "image_mean": mean,
        "image_std": deviation,
    }  # fmt: skip


def card(model: ArrayModel, plain: nn.Module, config: Config, head: Mapping[str, Tensor], about: dict[str, Any]) -> str:
    """README.md."""
    kind = str(plain.config.model_type)  # type: ignore[union-attr]
    places = "features[:, 0]" if model.pooling == "first" else "features.mean(1)"
    if not isinstance(model, ImageModel):
        rows, argument = f"torch.zeros(1, {(config.model.dimensions or (1,))[0]})  # inputs", "inputs"
    else:
        rows, argument = f"torch.zeros(1, {', '.join(map(str, model.size))})  # pixels, from 0 to 1", "pixel_values"
        mean, deviation = (f"torch.tensor({list(v)}).view(-1, 1, 1)" for v in model.scale)
        rows += f"\nrows = (rows - {mean}) / {deviation}"
        places = f"{places} if features.dim() == 3 else features.mean((2, 3))"
    states, linear = f"({argument}=rows).last_hidden_state", "head_weight" in head
    said = "the linear layer over it" if linear else "the scale of a head that is made of class means"
    if isinstance(model, TwoTowerModel):
        states = ".get_image_features(pixel_values=rows).pooler_output"
        places = f"{model.length} * features / features.norm(dim=-1, keepdim=True)"
        said = said if linear else "the scale of scores, which is its logit_scale too"
    last = 'print(features @ head["head_weight"].T + head["head_bias"])' if linear else "print(features)"
    labels = about.get("labels")
    note = f"\nThe scores are of {', '.join(labels)}.\n" if labels else ""
    if isinstance(model, TwoTowerModel) and not linear:
        reads = (
            f"the tokenizer of {config.model.pretrained}"
            if config.model.pretrained
            else (
                f"`distmeta.tasks.descriptions.hashed(text, {plain.config.text_config.vocab_size})`"  # type: ignore[union-attr]
            )
        )
        note += f"\nIts text tower reads descriptions of classes by {reads}.\n"
    if has_set_norm(model.backbone):
        note += (
            "\nIts batch norms take the statistics of the batch at hand: it is transductive, and reads sets whole.\n"
        )
        places += "  # plain transformers keeps running statistics, which this model never had" * (kind not in OWN)
    return CARD.format(
        algorithm=config.algorithm, name=config.run.name, kind=kind, head=said, rows=rows, states=states,
        what="Adapted to a new task" if "adapted" in about else "Meta-trained to adapt from a few examples",
        pooled=places, last=last, note=note,
        register=f"\nfrom distmeta.models import {kind}\n\n{kind}.register()" if kind in OWN else "",
    )  # fmt: skip
