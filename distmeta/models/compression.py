"""A smaller backbone: weights set to zero, feed-forward units or heads taken away, int8 in the place of float32.

magnitude   the smallest weights of all linear layers together become zero (Han et al. 2015, arXiv 1506.02626)
units       the feed-forward units of least importance go, the same number in every layer: tensors get smaller
heads       likewise whole attention heads, where the architecture's configuration has a width of a head of its own
int8        a matrix as one byte a number and a float32 scale a row (symmetric, no calibration)

The importance of a unit or head is the product of the norms of the weights that it reads and writes through, without
data (Li et al. 2017, arXiv 1608.08710, take one of the two).

Letters: O rows and I columns of a weight. Tensors go by the task model's names ("backbone.encoder.layer.0...."), among
them LoRA pairs and learnt rates a number, which are cut with the weight that they belong to.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from distmeta.errors import InputError
from distmeta.models.layers import TaskConv1D, TaskLinear

KINDS = ("magnitude", "units", "heads")
SCALE = ".int8_scale"
INT8_FILE = "model_int8.safetensors"
Tensors = dict[str, Tensor]


class Prune(NamedTuple):
    """kind: one of `KINDS`; share: of the weights, units or heads, what goes."""

    kind: str
    share: float


class FeedForward(NamedTuple):
    """Ends of module names: into the units, and out of them; and the configuration's number of units."""

    into: tuple[str, ...]
    out: str
    size: str


class Heads(NamedTuple):
    queries: str
    others: tuple[str, ...]  # keys and values, shared by groups of heads where there are fewer
    out: str
    sizes: tuple[str, str]  # the configuration's numbers of heads, and of keys and values
    width: str  # of a head, in the configuration


FEED_FORWARD = (
    FeedForward((".intermediate.dense",), ".output.dense", "intermediate_size"),  # BERT and its kin
    FeedForward((".ffn.lin1",), ".ffn.lin2", "hidden_dim"),
    FeedForward((".mlp.c_fc",), ".mlp.c_proj", "n_inner"),
    FeedForward((".mlp.gate_proj", ".mlp.up_proj"), ".mlp.down_proj", "intermediate_size"),  # Llama and its kin
    FeedForward((".DenseReluDense.wi",), ".DenseReluDense.wo", "d_ff"),
    FeedForward((".DenseReluDense.wi_0", ".DenseReluDense.wi_1"), ".DenseReluDense.wo", "d_ff"),
)
ATTENTION = (
    Heads(".self_attn.q_proj", (".self_attn.k_proj", ".self_attn.v_proj"), ".self_attn.o_proj",
          ("num_attention_heads", "num_key_value_heads"), "head_dim"),
    Heads(".SelfAttention.q", (".SelfAttention.k", ".SelfAttention.v"), ".SelfAttention.o",
          ("num_heads", "num_heads"), "d_kv"),
)  # fmt: skip


class Cut(NamedTuple):
    """What of a linear layer stays: rows of its outputs, or of its inputs."""

    module: str
    side: str  # out or in
    kept: Tensor


def parse_prune(text: str) -> Prune:
    """`units:0.5`. Raises InputError."""
    kind, _, share = text.partition(":")
    try:
        rule = Prune(kind, float(share))
    except ValueError:
        rule = Prune(kind, -1.0)
    if kind not in KINDS or not 0 < rule.share < 1:
        raise InputError(f"--prune {text}: KIND:SHARE, a kind of {', '.join(KINDS)} and a share between 0 and 1")
    return rule


def pruned(backbone: nn.Module, tensors: Mapping[str, Tensor], prune: Prune) -> tuple[Tensors, dict[str, int]]:
    """(tensors, changed sizes of the configuration) of a backbone whose running values are `tensors`.

    Raises InputError where the architecture does not allow it.
    """
    if prune.kind == "magnitude":
        return smallest_to_zero(backbone, tensors, prune.share), {}
    cuts, sizes = (unit_cuts if prune.kind == "units" else head_cuts)(backbone, tensors, prune.share)
    return cut(backbone, tensors, cuts), sizes


def linears(backbone: nn.Module) -> dict[str, nn.Module]:
    """Linear layers by path, without embeddings."""
    return {path: m for path, m in backbone.named_modules() if isinstance(m, TaskLinear | TaskConv1D)}


def smallest_to_zero(backbone: nn.Module, tensors: Mapping[str, Tensor], share: float) -> Tensors:
    """`share` of the weights of all linear layers, those of least magnitude, are zero."""
    from torch.nn.utils import prune

    modules = {f"backbone.{path}.weight": nn.Module() for path in linears(backbone)}
    for name, module in modules.items():
        module.register_parameter("weight", nn.Parameter(tensors[name].clone(), requires_grad=False))
    method, every = prune.L1Unstructured, [(module, "weight") for module in modules.values()]
    prune.global_unstructured(every, pruning_method=method, amount=share)  # type: ignore[no-untyped-call]
    zeroed: Tensors = {}
    for name, module in modules.items():
        zeroed[name] = module.get_parameter("weight_orig") * module.get_buffer("weight_mask")
    return {**tensors, **zeroed}


def unit_cuts(backbone: nn.Module, tensors: Mapping[str, Tensor], share: float) -> tuple[list[Cut], dict[str, int]]:
    """The feed-forward units that stay in each layer, as cuts, and the configuration's new size."""
    layers = linears(backbone)
    for form in FEED_FORWARD:
        cuts, kept = [], 0
        for path in layers:
            stem = path.removesuffix(form.into[0])
            into = [stem + end for end in form.into]
            if stem == path or stem + form.out not in layers or not layers.keys() >= set(into):
                continue
            read = sum(row_norms(tensors, layers, module, "out") for module in into)
            chosen = strongest(read * row_norms(tensors, layers, stem + form.out, "in"), share)
            kept = len(chosen)
            cuts += [Cut(module, "out", chosen) for module in into] + [Cut(stem + form.out, "in", chosen)]
        if cuts:
            return cuts, {form.size: kept}
    raise InputError(f"--prune units: {_family(backbone)}: no feed-forward layers of a known form; prune magnitude")


def head_cuts(backbone: nn.Module, tensors: Mapping[str, Tensor], share: float) -> tuple[list[Cut], dict[str, int]]:
    """The attention heads that stay, as cuts, and the configuration's new numbers of heads.

    Where several heads share keys and values, they go together. The same heads stay in all layers of T5, which share
    one relative position bias by head.
    """
    hf_config: Any = backbone.config
    layers = linears(backbone)
    form = next((f for f in ATTENTION if any(path.endswith(f.queries) for path in layers)), None)
    if form is None or form.width not in type(hf_config)().to_dict():
        raise InputError(
            f"--prune heads: {_family(backbone)}: its configuration ties the width of a head to the number of heads, "
            "so that no model with fewer can be written; prune units instead"
        )
    heads, pairs = (int(getattr(hf_config, size)) for size in form.sizes)  # pairs of keys and values
    groups = pairs if pairs > 1 else heads  # one pair for all heads stays
    stems = [path.removesuffix(form.queries) for path in layers if path.endswith(form.queries)]
    importance = {}
    for stem in stems:
        values = row_norms(tensors, layers, stem + form.others[1], "out").view(pairs, -1).norm(dim=1)
        write = row_norms(tensors, layers, stem + form.out, "in").view(groups, -1).norm(dim=1)
        importance[stem] = values * write
    biases = [path for path, _ in backbone.named_modules() if path.endswith("relative_attention_bias")]
    if biases:
        importance = dict.fromkeys(stems, torch.stack(list(importance.values())).sum(0))
    cuts = []
    for stem in stems:
        chosen = strongest(importance[stem], share)
        for end in (form.queries, *(form.others if pairs > 1 else ()), form.out):
            side = "in" if end == form.out else "out"
            rows = _rows(layers[stem + end], side)
            cuts.append(Cut(stem + end, side, torch.arange(rows).view(groups, -1)[chosen].flatten()))
    cuts += [Cut(path, "in", chosen) for path in biases]
    sizes = {form.sizes[0]: heads // groups * len(chosen)}
    return cuts, sizes if pairs == 1 else {**sizes, form.sizes[1]: len(chosen)}


def strongest(importance: Tensor, share: float) -> Tensor:
    """Numbers of those that stay, ascending; at least one. Of equals the first stay."""
    kept = max(1, round(len(importance) * (1 - share)))
    return importance.argsort(descending=True, stable=True)[:kept].sort().values


def row_norms(tensors: Mapping[str, Tensor], layers: Mapping[str, nn.Module], path: str, side: str) -> Tensor:
    """Norms of the weights of each output (side out) or input (in) of a linear layer."""
    weight = tensors[f"backbone.{path}.weight"].float()
    norms: Tensor = weight.norm(dim=1 - _dim(layers[path], side))
    return norms


def cut(backbone: nn.Module, tensors: Mapping[str, Tensor], cuts: Sequence[Cut]) -> Tensors:
    """The tensors with each layer's weight, bias, LoRA pair and rates a number cut."""
    out = dict(tensors)
    for one in cuts:
        dim = _dim(backbone.get_submodule(one.module), one.side)
        dims = {"weight": dim} | ({"bias": 0, "lora_B": 0} if one.side == "out" else {"lora_A": 1})
        for end, of in dims.items():
            for prefix in ("", "log_lr."):
                name = f"{prefix}backbone.{one.module}.{end}"
                whole = tensors.get(f"backbone.{one.module}.{end}")
                if name in out and whole is not None and tensors[name].shape == whole.shape:
                    out[name] = out[name].index_select(of, one.kept).contiguous()
    return out


def _dim(module: nn.Module, side: str) -> int:
    """The dimension of a weight that is of its outputs or its inputs: [O, I], but [I, O] in Conv1D."""
    return int((side == "in") != isinstance(module, TaskConv1D))


def _rows(module: nn.Module, side: str) -> int:
    return module.get_parameter("weight").shape[_dim(module, side)]


def _family(backbone: nn.Module) -> str:
    return str(backbone.config.model_type)  # type: ignore[union-attr]


def quantise(tensors: Mapping[str, Tensor], names: Iterable[str]) -> Tensors:
    """The tensors with the named matrices [O, I] as int8 and a float32 scale for each row under NAME + `SCALE`.

    q = round(w / s) with s = max |w| of the row / 127, so that |w - s q| is at most s / 2; a row of zeros has scale 0.
    """
    out = dict(tensors)
    for name in names:
        weight = tensors[name].float()
        scale = weight.abs().amax(1) / 127
        out[name] = (weight / scale.clamp(min=torch.finfo(torch.float32).tiny).unsqueeze(1)).round().to(torch.int8)
        out[name + SCALE] = scale
    return out


def restore(tensors: Mapping[str, Tensor]) -> Tensors:
    """What `quantise` made, as float32; other tensors as they are."""
    return {
        name: value.float() * tensors[name + SCALE].unsqueeze(1) if name + SCALE in tensors else value
        for name, value in tensors.items()
        if not name.endswith(SCALE)
    }


def matrices(tensors: Mapping[str, Tensor]) -> list[str]:
    """Names of the backbone's matrices, embeddings among them; not LoRA pairs, which are small, nor learnt rates."""
    return [
        name
        for name, value in tensors.items()
        if name.startswith("backbone.") and value.dim() == 2 and not name.endswith(("lora_A", "lora_B"))
    ]


class Int8Linear(nn.Module):
    """A linear layer by torch's dynamic int8 kernel: inputs are rounded too, with a scale for each call.

    weight int8 [O, I], scale [O], bias [O] or None, as `quantise` makes them.
    """

    def __init__(self, weight: Tensor, scale: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        import warnings

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch announces the end of this constructor, which has no successor yet
            zeros = torch.zeros(len(scale), dtype=torch.long)
            made = torch._make_per_channel_quantized_tensor(weight, scale.double(), zeros, 0)  # type: ignore[attr-defined]
        self.packed = torch.ops.quantized.linear_prepack(made, bias)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = torch.ops.quantized.linear_dynamic(x, self.packed, True)
        return y


def save_int8(model: Any, folder: Path) -> None:
    """A transformers model as config.json and `INT8_FILE`: safetensors of int8 matrices, their scales, and the rest."""
    from safetensors.torch import save_file

    tensors = {name: value.detach().contiguous() for name, value in model.named_parameters()}
    tensors = quantise(tensors, [name for name, value in tensors.items() if value.dim() == 2])
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(folder)
    save_file(tensors, folder / INT8_FILE, metadata={"format": "pt"})


def load_int8(folder: str | Path, *, kernels: bool = False) -> Any:
    """The transformers model in a directory that was exported with `--quantise int8`. Raises InputError.

    Weights are restored to float32, so that it is a model like any other (peft takes it), smaller on disk alone.
    kernels: its linear layers stay int8 and run by torch's dynamic kernels, on a CPU, for inference.
    """
    import transformers
    from safetensors.torch import load_file

    file = Path(folder) / INT8_FILE
    if not file.is_file():
        raise InputError(f"{folder}: no {INT8_FILE}; make it with `distmeta export RUN --out DIR --quantise int8`")
    config = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=False)
    tensors = load_file(file)
    model: Any = getattr(transformers, config.architectures[0])(config).eval().requires_grad_(False)
    model.load_state_dict(restore(tensors), strict=False)
    if kernels:
        for path, module in list(model.named_modules()):
            if type(module) is nn.Linear:
                name = f"{path}.weight"
                parent, _, leaf = path.rpartition(".")
                int8 = Int8Linear(tensors[name], tensors[name + SCALE], module.bias)
                setattr(model.get_submodule(parent), leaf, int8)
    return model
