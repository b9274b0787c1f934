"""The configuration of a run: typed, frozen, strict, and the only place where defaults live.

A configuration is made of a recipe (a YAML file that states only what differs from the defaults below) and of
dotted overrides (`inner.lr=0.05`). An unknown key or an unusable value is one line that names the key, the
value, what is allowed and the nearest match.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from distmeta.errors import InputError, nearest

RECIPES = Path(__file__).parent / "recipes"


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, protected_namespaces=())


class ModelConfig(Section):
    """What adapts."""

    pretrained: str | None = Field(None, description="a Hugging Face directory or hub id; null: from `config`")
    architecture: str = Field("bert", description="transformers model type, or lstm, built when `pretrained` is null")
    config: dict[str, Any] = Field(
        {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 128},
        description="its transformers configuration, in that architecture's own keys",
    )
    tokenizer: Literal["word", "wordpiece", "character"] = Field(
        "word", description="level of the tokenizer trained on the task store's text when `pretrained` is null"
    )
    vocab_size: int = Field(8000, ge=16, description="largest vocabulary of the trained tokenizer")
    max_tokens: int = Field(64, ge=4, description="longer texts are cut, special tokens included")
    head: Literal["linear", "prototype"] = Field(
        "linear", description="linear: meta-learnt; prototype: set from each episode's support (proto-MAML)"
    )
    pooling: Literal["auto", "first", "last", "mean"] = Field(
        "auto", description="token states read by the head; auto: mean for encoders, last for decoders"
    )
    dtype: Literal["float32", "bfloat16"] = Field(
        "float32", description="bfloat16: matrix products and frozen weights; meta-parameters stay float32"
    )
    dropout: float = Field(0.0, ge=0, lt=1, description="in every dropout layer, while training")
    activation_checkpointing: bool = Field(
        False, description="layers are run again on the way back instead of keeping what is in them; first order only"
    )
    lora_rank: int = Field(8, ge=1)
    lora_alpha: float = Field(16.0, gt=0, description="LoRA output is scaled by alpha / rank")
    lora_targets: str = Field("auto", description="regular expression of linear module names; auto: query and value")


class SourceConfig(Section):
    """One of several data sources. What is not given is as in the section data."""

    path: str | list[str]
    text: str | None = None
    label: str | None = None
    task: str | None = None
    split: str | None = None
    splits: dict[str, list[str]] | str | None = None
    fractions: tuple[float, float, float] | None = None


class DataConfig(Section):
    """Where the tasks are read from. Without a path and sources: the built-in product reviews."""

    path: str | list[str] | None = Field(None, description="files, directories or globs, local or a filesystem URI")
    sources: dict[str, SourceConfig] | None = Field(
        None, description="several data sources by name, instead of `path`; task.mixture says how they are mixed"
    )
    text: str = "text"
    label: str = "label"
    task: str = Field("task", description="column that names the task (family domain)")
    split: str = Field("split", description="column with train, validation or test; absent: by stable hash")
    splits: dict[str, list[str]] | str | None = Field(
        None, description="lists of tasks or classes for train, validation, test; or JSON_FILE or JSON_FILE#KEY"
    )
    fractions: tuple[float, float, float] = Field(
        (0.6, 0.2, 0.2), description="shares of tasks or classes by stable hash"
    )
    cache: str | None = Field(
        None, description="directory of token caches; null: in cluster.storage, else ~/.cache/distmeta"
    )

    @model_validator(mode="before")
    @classmethod
    def _defaults_are_not_choices(cls, given: Any) -> Any:
        """A column that is named as it is by default may be absent, also when a written configuration is read."""
        if not isinstance(given, dict):
            return given
        return {k: v for k, v in given.items() if k not in cls.model_fields or v != cls.model_fields[k].default}

    @model_validator(mode="after")
    def _one_or_several(self) -> DataConfig:
        if self.sources is not None:
            if self.path is not None or self.splits is not None:
                key = "path" if self.path is not None else "splits"
                raise ValueError(f"data.{key} and data.sources: give each source its own {key} instead")
            for name in self.sources:
                if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
                    raise ValueError(f"data.sources: the name {name!r} may hold letters, digits and . _ - only")
                self.of(name)
            if not self.sources:
                raise ValueError("data.sources is empty: name at least one source, or give data.path")
        return self

    def of(self, name: str) -> DataConfig:
        """Source `name` alone: its own keys over those of this section."""
        assert self.sources is not None
        own = self.sources[name].model_dump(exclude_none=True)
        shared = {key: getattr(self, key) for key in self.model_fields_set - {"sources"}}
        return DataConfig(**{**shared, **own})

    @field_validator("fractions")
    @classmethod
    def _sums_to_one(cls, value: tuple[float, float, float]) -> tuple[float, float, float]:
        if min(value) < 0 or abs(sum(value) - 1) > 1e-6:
            raise ValueError("three shares of at least 0 that add up to 1")
        return value


class TaskConfig(Section):
    """What an episode is."""

    family: Literal["domain", "classes"] = Field(
        "domain", description="domain: a task per domain, fixed labels; classes: N ways over disjoint classes"
    )
    ways: int | None = Field(None, ge=2, description="classes in an episode; domain: all labels")
    shots: int = Field(5, ge=1, description="support examples of each class")
    queries: int = Field(10, ge=1, description="query examples of each class")
    permute_labels: bool = Field(False, description="family domain: a new order of the label ids in each episode")
    mixture: Literal["uniform", "proportional", "temperature"] | dict[str, Annotated[float, Field(ge=0)]] = Field(
        "uniform",
        description="how often an episode is of each of data.sources: equally, by their examples, by the 1/temperature "
        "power of these, or weights by name",
    )
    temperature: float = Field(1.0, gt=0, description="of mixture temperature; 1: proportional, larger: more equal")


class InnerConfig(Section):
    """The inner loop: adaptation on a support set."""

    lr: float = Field(0.1, gt=0, description="(initial) inner learning rate")
    steps: int = Field(5, ge=1, description="inner steps in training")
    optimizer: Literal["sgd", "momentum", "adam"] = "sgd"
    momentum: float = Field(0.9, ge=0, lt=1, description="of optimizer momentum")
    learn_lr: Literal["none", "scalar", "per_step", "per_layer", "per_parameter"] = "none"
    adapt: str = Field("all", description="all, lora, head, or a regular expression of parameter names")
    memory: Literal["auto", "walk", "unroll"] = "auto"
    budget_mb: float = Field(2048, gt=0, description="memory: auto unrolls within this many megabytes")
    buckets: int = Field(0, ge=0, description="length-sorted micro-batches of a set; 0: chosen by their cost")
    part_tokens: int = Field(
        0, ge=0, description="most padded tokens of a micro-batch; 0: 4096 on a CPU, else no limit"
    )
    prefix_mb: float = Field(
        512, ge=0, description="megabytes for what frozen layers below the adapted ones make of examples; 0: keep none"
    )
    task_batch: int = Field(0, ge=0, description="tasks that run as one; 0: chosen by their size and the device")

    @field_validator("learn_lr", mode="before")
    @classmethod
    def _from_bool(cls, value: object) -> object:
        return {True: "scalar", False: "none", None: "none"}.get(value, value) if not isinstance(value, str) else value  # type: ignore[call-overload]


class OuterConfig(Section):
    """The outer loop: the update of the meta-parameters."""

    lr: float = Field(1e-3, gt=0)
    optimizer: Literal["adamw", "adam", "sgd"] = "adamw"
    weight_decay: float = Field(0.0, ge=0)
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = Field(1e-8, gt=0)
    momentum: float = Field(0.0, ge=0, lt=1, description="of optimizer sgd")
    schedule: Literal["constant", "cosine", "linear"] = "constant"
    warmup_steps: int = Field(0, ge=0)
    meta_batch_size: int = Field(8, ge=1, description="episodes of a meta-step, over all ranks")
    steps: int = Field(300, ge=1, description="meta-steps")
    until: str | None = Field(
        None, description="stop once a meta-validation metric is reached, such as accuracy>=0.9 (needs eval.every)"
    )
    base: Literal["auto", "train", "freeze"] = Field(
        "auto", description="parameters that the inner loop does not adapt; auto: train only if built from config"
    )

    @field_validator("until", mode="before")
    @classmethod
    def _accuracy_by_default(cls, value: object) -> object:
        return f"accuracy>={value}" if isinstance(value, int | float) and not isinstance(value, bool) else value

    @field_validator("until")
    @classmethod
    def _parses(cls, value: str | None) -> str | None:
        if value is not None:
            parse_until(value)
        return value


class SamplingConfig(Section):
    actors: Annotated[int, Field(ge=0)] | Literal["auto"] = Field(
        2,
        description="sampler actors; 0: episodes are made in the learner's process; auto: one a node, and as many more "
        "as keep the learners from waiting, by the first meta-steps",
    )
    window: int = Field(32, ge=1, description="most episodes asked for and not yet used, per learner rank")
    timeout_s: float = Field(120, gt=0, description="longest wait for one group of episodes")


class ClusterConfig(Section):
    workers: int | tuple[int, int] = Field(
        2, description="learner ranks; a range such as 1-3 follows the nodes that there are"
    )
    episode: Literal["rank", "group"] = Field(
        "rank", description="an episode is adapted to by one rank, or by all together, its fast weights in shards"
    )
    address: str | None = Field(None, description="Ray cluster; null: RAY_ADDRESS, else one is started here")
    storage: str | None = Field(None, description="directory, shared by all nodes, in which run.dir is resolved")
    cpus_per_worker: float = Field(1, gt=0)
    gpus_per_worker: float | None = Field(None, ge=0, description="null: 1 where the cluster has enough GPUs")
    cpus_per_sampler: float = Field(0.25, ge=0)
    max_failures: int = Field(3, ge=0, description="restarts of the learner group from its last checkpoint")

    @field_validator("workers", mode="before")
    @classmethod
    def _number_or_range(cls, value: object) -> object:
        """3, "1-3" or [1, 3]."""
        match = re.fullmatch(r"\s*(\d+)\s*-\s*(\d+)\s*", value) if isinstance(value, str) else None
        ends = (int(match[1]), int(match[2])) if match else value
        if isinstance(ends, int) and not isinstance(ends, bool) and ends >= 1:
            return ends
        if isinstance(ends, list | tuple) and len(ends) == 2 and all(type(end) is int for end in ends):
            if 1 <= ends[0] < ends[1]:
                return tuple(ends)
            if 1 <= ends[0] == ends[1]:
                return ends[0]
        raise ValueError("a number of ranks from 1, or a range of them such as 1-3")

    @property
    def fewest(self) -> int:
        return self.workers if isinstance(self.workers, int) else self.workers[0]

    @property
    def most(self) -> int:
        return self.workers if isinstance(self.workers, int) else self.workers[1]

    @property
    def is_elastic(self) -> bool:
        return self.fewest < self.most

    @property
    def shown(self) -> str:
        """As a person writes it."""
        return f"{self.fewest}-{self.most}" if self.is_elastic else str(self.workers)


class EvalConfig(Section):
    episodes: int = Field(600, ge=2, description="meta-test episodes")
    steps: int | None = Field(None, ge=0, description="inner steps when evaluating; null: inner.steps")
    baselines: bool = Field(True, description="also score the methods that were not meta-trained")
    every: int = Field(0, ge=0, description="meta-steps between meta-validations; 0: none")
    validation_episodes: int = Field(50, ge=2)


class RunConfig(Section):
    name: str = Field("default", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    seed: int = Field(0, ge=0)
    dir: str | None = Field(None, description="run directory; null: runs/NAME")
    checkpoint_every: int = Field(50, ge=1, description="meta-steps between checkpoints")
    keep: int = Field(2, ge=1, description="newest checkpoints that are kept")
    timeout_s: float = Field(600, gt=0, description="longest wait for another rank")


Rates = Literal["scalar", "per_step", "per_layer", "per_parameter"]


class TuneConfig(Section):
    """The search of `distmeta tune` over whole runs. What `space` may say is in distmeta.tune.space."""

    space: dict[str, dict[str, Any]] = Field(
        {"inner.lr": {"log_uniform": [0.01, 1.0]}, "inner.steps": {"integer": [1, 5]}},
        description="by dotted key: log_uniform, uniform or integer [low, high], choice or grid [values]; with `when`",
    )
    searcher: Literal["random", "grid", "optuna"] = Field("random", description="optuna: tree of Parzen estimators")
    scheduler: Literal["none", "asha", "median", "pbt"] = Field("asha", description="which trials are stopped early")
    trials: int = Field(16, ge=1, description="runs that are searched; grid: that many for each point of the grid")
    max_concurrent: int | None = Field(None, ge=1, description="trials at once; null: as many as the cluster holds")
    metric: Literal["accuracy", "f1", "precision", "recall", "loss"] = Field(
        "accuracy", description="of the meta-validation, at the best number of adaptation steps"
    )
    adapt_steps: int | None = Field(
        None, ge=1, description="largest number of adaptation steps that is scored; null: eval.steps, else inner.steps"
    )
    grace: int | None = Field(None, ge=1, description="meta-steps before a trial may be stopped; null: eval.every")
    reduction: int = Field(3, ge=2, description="asha: one in so many trials goes on")
    perturb_every: int | None = Field(None, ge=1, description="pbt: meta-steps between copies; null: eval.every")
    seed: int = Field(0, ge=0, description="of what is tried; every trial's run has run.seed")
    retries: int = Field(1, ge=0, description="how often a trial that crashed is continued from its checkpoint")
    rivals: list[Rates] | None = Field(
        None, description="learnt rates in trials of their own, against constant ones; null: per_layer; []: none"
    )
    trackers: list[Literal["tensorboard", "wandb", "mlflow"]] = Field(
        ["tensorboard"], description="wandb and mlflow: extras of those names"
    )
    dir: str | None = Field(None, description="directory of the search; null: runs/NAME-tune")


DEEPSPEED_DEFAULTS: dict[str, Any] = {"zero_optimization": {"stage": 1}, "gradient_clipping": 1.0}


_SCALE = "the meta-gradient is handed over whole, as the mean over outer.meta_batch_size episodes; set that instead"
_WIDTH = "meta-parameters and their optimizer are float32; set model.dtype=bfloat16 for the products"
_FORWARD = "DeepSpeed sees no forward pass here"

# Keys of DeepSpeed's that would be ignored, or change the meta-gradient without a word.
REFUSED: dict[str, str] = {
    "optimizer": "belongs in the section outer (outer.optimizer)",
    "scheduler": "belongs in the section outer (outer.schedule)",
    "train_batch_size": _SCALE,
    "train_micro_batch_size_per_gpu": _SCALE,
    "gradient_accumulation_steps": f"groups of tasks are summed whatever their number (inner.task_batch); {_SCALE}",
    "gradient_predivide_factor": _SCALE,
    "prescale_gradients": _SCALE,
    "fp16": _WIDTH,
    "bf16": _WIDTH,
    "amp": _WIDTH,
    "torch_autocast": _WIDTH,
    "communication_data_type": "gradients travel as float32, so that every world size gives the same step",
    "activation_checkpointing": f"{_FORWARD}; set model.activation_checkpointing=true, or inner.memory=walk",
    "pipeline": f"{_FORWARD}; a base that is too large for a rank is sharded by zero_optimization.stage=3",
    "tensor_parallel": f"{_FORWARD}; a base that is too large for a rank is sharded by zero_optimization.stage=3",
    "compression_training": f"{_FORWARD}; remove it",
    "sparse_gradients": "meta-gradients are dense; remove it",
}
REFUSED_ZERO: dict[str, str] = {
    "offload_param": "meta-parameters are gathered on the device once a step; use offload_optimizer, which is exact",
    "zero_quantized_weights": "weights would be rounded, and the step would not be the single process's; remove it",
    "zero_quantized_gradients": "gradients would be rounded, and the step would not be the single process's; remove it",
    "zero_quantized_nontrainable_weights": "the base would be rounded; remove it",
}


class Config(Section):
    """A whole run. Sections follow the flow of data."""

    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    task: TaskConfig = TaskConfig()
    inner: InnerConfig = InnerConfig()
    algorithm: str = Field("maml", description="a name in distmeta.algorithms")
    outer: OuterConfig = OuterConfig()
    deepspeed: dict[str, Any] = Field(DEEPSPEED_DEFAULTS, description="handed to deepspeed.initialize as it is")
    sampling: SamplingConfig = SamplingConfig()
    cluster: ClusterConfig = ClusterConfig()
    eval: EvalConfig = EvalConfig()
    tune: TuneConfig = TuneConfig()
    run: RunConfig = RunConfig()

    @field_validator("deepspeed", mode="before")
    @classmethod
    def _over_defaults(cls, value: object) -> object:
        return merge(DEEPSPEED_DEFAULTS, value) if isinstance(value, dict) else value

    @field_validator("deepspeed")
    @classmethod
    def _stage(cls, value: dict[str, Any]) -> dict[str, Any]:
        zero = value.get("zero_optimization")
        stage = zero.get("stage", 0) if isinstance(zero, dict) else None
        if stage not in (0, 1, 2, 3):
            raise ValueError(f"zero_optimization.stage = {stage!r}: a ZeRO stage is 0, 1, 2 or 3")
        for key in value:
            if key in REFUSED:
                raise ValueError(f"{key}: {REFUSED[key]}")
        assert isinstance(zero, dict)
        for key in zero:
            if key in REFUSED_ZERO and zero[key]:
                raise ValueError(f"zero_optimization.{key}: {REFUSED_ZERO[key]}")
        offload = zero.get("offload_optimizer") or {}
        if offload.get("device", "none") not in ("none", "cpu"):
            raise ValueError(f"zero_optimization.offload_optimizer.device = {offload['device']!r}: cpu or none")
        if offload.get("device") == "cpu" and stage == 0:
            raise ValueError("zero_optimization.offload_optimizer needs zero_optimization.stage 1, 2 or 3")
        return value

    @model_validator(mode="after")
    def _consistent(self) -> Config:
        from distmeta.algorithms import ALGORITHMS

        if self.algorithm not in ALGORITHMS:
            raise ValueError(
                f"algorithm = {self.algorithm!r}: one of {', '.join(ALGORITHMS)}.{nearest(self.algorithm, ALGORITHMS)}"
            )
        if self.outer.until is not None and self.eval.every == 0:
            raise ValueError("outer.until needs meta-validations: set eval.every to the meta-steps between them")
        if self.cluster.episode == "group":
            self._fits_a_group()
        elif self.outer.meta_batch_size < self.cluster.most:
            raise ValueError(
                f"outer.meta_batch_size = {self.outer.meta_batch_size} is less than cluster.workers = "
                f"{self.cluster.shown}: every rank needs an episode; lower cluster.workers"
            )
        if self.algorithm == "reptile" and self.inner.learn_lr != "none":
            raise ValueError(
                "algorithm = reptile learns no inner rates: set inner.learn_lr=none, or use maml or fomaml"
            )
        if self.model.activation_checkpointing and self.algorithm not in ("fomaml", "reptile"):
            raise ValueError(
                f"model.activation_checkpointing does not go with algorithm = {self.algorithm}: a layer that is run "
                "again has no second derivative; inner.memory=walk and inner.part_tokens save memory at every order"
            )
        if self.inner.adapt == "head" and self.model.head == "prototype":
            raise ValueError(
                "inner.adapt = head: a prototype head is computed from the support set, so nothing that is meta-learnt "
                "would adapt; set model.head=linear, or inner.adapt=all or lora"
            )
        if self.task.family == "domain" and self.task.ways is not None:
            raise ValueError("task.ways belongs to task.family=classes; a domain episode has all labels")
        if self.task.mixture != "uniform" and self.data.sources is None:
            raise ValueError("task.mixture needs several data.sources; without them there is nothing to mix")
        if self.task.temperature != 1.0 and self.task.mixture != "temperature":
            raise ValueError("task.temperature belongs to task.mixture=temperature")
        return self

    def _fits_a_group(self) -> None:
        """Raises ValueError where the whole group cannot work on one episode."""
        for fits, key, value, mend in (
            (self.inner.adapt == "all", "inner.adapt", self.inner.adapt,
             "it is for all parameters; a frozen base is in shards by deepspeed.zero_optimization.stage=3 alone"),
            (self.algorithm in ("fomaml", "reptile"), "algorithm", self.algorithm,
             "it is of first order: fomaml or reptile; or set inner.adapt=lora and cluster.episode=rank"),
            (self.deepspeed["zero_optimization"]["stage"] == 3, "deepspeed.zero_optimization.stage",
             self.deepspeed["zero_optimization"]["stage"], "it shards the parameters: stage 3"),
            (self.model.head == "linear", "model.head", self.model.head,
             "each rank sees a part of the support set only: linear"),
            (self.model.dropout == 0, "model.dropout", self.model.dropout,
             "masks would depend on the number of ranks: 0"),
            (self.model.architecture != "lstm" or self.model.pretrained is not None, "model.architecture", "lstm",
             "it runs a layer once for each token, and ranks have texts of other lengths: a transformer"),
            (not self.model.activation_checkpointing, "model.activation_checkpointing", "true",
             "its weights are gathered while a layer runs: lower inner.part_tokens instead"),
        ):  # fmt: skip
            if not fits:
                raise ValueError(f"cluster.episode = group does not go with {key} = {value}: {mend}")

    @property
    def ways(self) -> int | None:
        """Classes in an episode where the configuration alone says (family classes); else None."""
        return (self.task.ways or 5) if self.task.family == "classes" else None


def parse_until(text: str) -> tuple[str, str, float]:
    """`accuracy>=0.9` -> ("accuracy", ">=", 0.9). Raises ValueError."""
    match = re.fullmatch(r"\s*(accuracy|loss|f1|precision|recall)\s*(>=|<=)\s*([0-9.eE+-]+)\s*", text)
    if match is None:
        raise ValueError("a condition such as accuracy>=0.9, or loss<=0.3 (accuracy, loss, precision, recall, f1)")
    return match[1], match[2], float(match[3])


def merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """`over` laid upon `base`, dictionaries within dictionaries merged. Neither is changed."""
    out = dict(base)
    for key, value in over.items():
        out[key] = merge(out[key], value) if isinstance(value, dict) and isinstance(out.get(key), dict) else value
    return out


def recipe_names() -> list[str]:
    return sorted(path.stem for path in RECIPES.glob("*.yaml"))


def recipe_path(source: str) -> Path:
    """The YAML file that `source`, a recipe's name or a file, stands for. Raises InputError."""
    if source in recipe_names():
        return RECIPES / f"{source}.yaml"
    path = Path(source)
    if path.suffix in (".yaml", ".yml"):
        if path.is_file():
            return path
        raise InputError(f"{source}: no such file; give a YAML file, or one of the recipes {', '.join(recipe_names())}")
    raise InputError(
        f"{source}: no recipe of that name, and not a .yaml file; recipes: {', '.join(recipe_names())}."
        + nearest(source, recipe_names())
    )


def load_config(source: str | Path | None = None, overrides: list[str] | None = None) -> Config:
    """The configuration of a recipe or YAML file (default: the recipe `default`) with dotted overrides.

    Raises InputError with one line for a file that does not parse, an unknown key or an unusable value.
    """
    path = recipe_path(str(source or "default"))
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not readable YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise InputError(f"{path}: holds a {type(content).__name__}; a configuration is a mapping of sections")
    for override in overrides or []:
        content = merge(content, _parse_override(override))
    return make_config(content, where=str(path) if source else "the command line")


def make_config(content: dict[str, Any], where: str = "configuration") -> Config:
    """A checked configuration from nested dictionaries. Raises InputError."""
    try:
        return Config.model_validate(content)
    except ValidationError as error:
        raise InputError(f"{where}: {_one_line(error)}") from None


def dump_config(config: Config) -> str:
    """The whole configuration as YAML; `make_config(yaml.safe_load(...))` gives it back."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def _parse_override(override: str) -> dict[str, Any]:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise InputError(f"{override}: an override is section.key=value, such as inner.lr=0.05")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        value = text
    for part in reversed(key.split(".")):
        value = {part: value}
    return value  # type: ignore[no-any-return]


def _one_line(error: ValidationError) -> str:
    first, *rest = error.errors()
    key = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        known = _keys_beside(first["loc"])
        line = f"unknown key '{key}'; allowed here: {', '.join(known)}.{nearest(str(first['loc'][-1]), known)}"
    else:
        reason = first["msg"].removeprefix("Value error, ")
        line = f"{key} = {first['input']!r}: {reason}" if key else reason
    return line + (f" (and {len(rest)} more)" if rest else "")


def _keys_beside(location: tuple[int | str, ...]) -> list[str]:
    model: Any = Config
    for part in location[:-1]:
        if part in model.model_fields:  # else the name of a source, whose keys are those of all sources
            model = _section_of(model.model_fields[part].annotation)
    return list(model.model_fields)


def _section_of(annotation: Any) -> Any:
    """The section within a type such as dict[str, Section] | None."""
    if hasattr(annotation, "model_fields"):
        return annotation
    return next((found for a in get_args(annotation) if (found := _section_of(a)) is not None), None)
