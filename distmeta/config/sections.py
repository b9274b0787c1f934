"""The sections of a configuration: typed, frozen, strict, and the only place where defaults live."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from distmeta.config import consistency, documents, images, modules, regression
from distmeta.config.algorithms import ALGORITHMS, IMPORT_PATH, with_settings
from distmeta.config.base import Section
from distmeta.config.cluster import ClusterConfig
from distmeta.config.data import DataConfig
from distmeta.config.eval import EvalConfig
from distmeta.config.inner import Beta, InnerConfig
from distmeta.config.parts import DataWeightsConfig, KeepBaseConfig, PrivacyConfig
from distmeta.config.rates import RANDOM, with_distance, with_rates
from distmeta.config.task import TaskConfig
from distmeta.config.trees import merge
from distmeta.config.verbs import PretrainConfig, ServeConfig, Trackers, TuneConfig
from distmeta.errors import nearest


class ModelConfig(Section):
    """What adapts."""

    pretrained: str | None = Field(
        None, description="Hugging Face directory or hub id; null: built from model.architecture"
    )
    architecture: str = Field(
        "bert",
        description="transformers model type, lstm, of images conv4 or of vectors mlp; for model.pretrained=null",
    )
    module: str | None = Field(
        None,
        description="package.module:function of your own that gives a torch.nn.Module of images or vectors, called "
        "with model.config; null: model.architecture",
    )
    image: tuple[Literal[1, 3], int, int] | None = Field(
        None, description="channels, height and width that images are brought to, where data.text names a column of "
        "images or data.path a directory of PNG or JPEG files with a folder for each class; null: rows are texts"
    )  # fmt: skip
    dimensions: tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)]] | None = Field(
        None, description="family regression: how many numbers an input (data.input) and a target (data.target) have; "
        "family policy: an observation and an action, or how many actions there are; null: 1 and 1, or of point "
        "navigation 2 and 2"
    )  # fmt: skip
    config: dict[str, Any] = Field(
        {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 128},
        description="transformers configuration of model.architecture, in its own keys",
    )
    tokenizer: Literal["word", "wordpiece", "character", "bpe"] = Field(
        "word", description="level of the trained tokenizer; for model.pretrained=null"
    )
    vocab_size: int = Field(8000, ge=16, description="largest vocabulary of the trained tokenizer")
    max_tokens: int = Field(64, ge=4, description="most tokens of a text, special tokens included; the rest is cut")
    answer_tokens: int = Field(
        16,
        ge=2,
        description="most tokens of an answer (family text_to_text; part of max_tokens), of a label "
        "(task.labels=words) or of a description (model.head=words), the end token included",
    )
    head: Literal["linear", "prototype", "context", "words"] = Field(
        "linear",
        description="linear: a meta-learnt layer (text_to_text: the model's own output layer); prototype: the means "
        "of the support set; context: the model reads the support set; words (model.image, a CLIP): the descriptions "
        "of an episode's classes in words (data.descriptions)",
    )
    distance: Literal["euclidean", "cosine"] = Field(
        "euclidean",
        description="how features are compared: euclidean: as they are; cosine: scaled to one length, as in sentence "
        "encoders. If you do not set it: cosine for a pretrained decoder that classifies and for a pretrained "
        "encoder whose weights all adapt under a linear head, else euclidean",
    )
    context: Literal["direct", "channel"] = Field(
        "direct",
        description="head context: score by p(label | text) (direct) or by p(text | label) (channel)",
    )
    pooling: Literal["auto", "first", "last", "mean"] = Field(
        "auto", description="token states read by the head; auto: mean for encoders, last for decoders"
    )
    dtype: Literal["float32", "bfloat16"] = Field(
        "float32", description="bfloat16: matrix products and frozen weights; meta-parameters stay float32"
    )
    quantise: Literal["int8"] | None = Field(
        None, description="int8: the frozen matrices of a pretrained base under LoRA are held as one byte a number and "
        "a scale a row, and made float32 (model.dtype) for each product; null: as they are"
    )  # fmt: skip
    dropout: float = Field(0.0, ge=0, lt=1, description="rate of every dropout layer, while training")
    activation_checkpointing: bool = Field(
        False, description="layers keep only their inputs and run again in the backward pass, at every order"
    )
    lora_rank: int = Field(8, ge=1, description="rank of a LoRA matrix pair")
    lora_alpha: float = Field(16.0, gt=0, description="LoRA output is scaled by alpha / rank")
    lora_targets: str = Field(
        "auto", description="regular expression of linear modules; auto: query and value; all-linear: every one"
    )

    @property
    def is_array(self) -> bool:
        """Whether rows are images or vectors, and no texts."""
        return self.image is not None or self.dimensions is not None

    @field_validator("lora_targets")
    @classmethod
    def _is_expression(cls, value: str) -> str:
        try:
            re.compile(value)
        except re.error as error:
            raise ValueError(f"not a regular expression: {error}") from None
        return value


class OuterConfig(Section):
    """The outer loop: the update of the meta-parameters."""

    lr: float = Field(
        RANDOM[0], gt=0, description="outer learning rate; null: 1e-3; with model.pretrained 3e-5 if the base's own "
        "weights are learnt (not only LoRA or the head), 5e-4 for an encoder under a linear head"
    )  # fmt: skip
    rate_lr: float | None = Field(
        None,
        gt=0,
        description="learning rate of the logarithms of the learnt inner rates (inner.learn_lr); null: outer.lr",
    )
    optimizer: Literal["adamw", "adam", "adamax", "radam", "rmsprop", "sgd", "cpu_adam", "cpu_lion"] = Field(
        "adamw",
        description="outer optimizer: one of torch's, or DeepSpeed's cpu_adam (AdamW) or cpu_lion, which keep their "
        "state in the host's memory and are compiled at their first use",
    )
    weight_decay: float = Field(0.0, ge=0, description="decoupled weight decay of the outer optimizer")
    betas: tuple[Beta, Beta] = Field(
        (0.9, 0.999), description="decay rates of the outer optimizer; sgd and rmsprop have none"
    )
    eps: float = Field(1e-8, gt=0, description="epsilon of the outer optimizer; sgd and cpu_lion have none")
    momentum: float = Field(0.0, ge=0, lt=1, description="momentum of outer optimizers sgd and rmsprop")
    schedule: Literal["auto", "constant", "cosine", "linear", "plateau"] = Field(
        "auto",
        description="course of the outer rate; plateau: lowered when the meta-validation loss no longer falls; auto: "
        "cosine, but constant in a run from random weights with fewer than 300 outer.steps and in a run during which "
        "tasks arrive",
    )
    patience: int = Field(
        2, ge=0, description="plateau only: meta-validations without a lower loss before the rate falls"
    )
    factor: float = Field(0.5, gt=0, lt=1, description="plateau only: factor by which the rate is lowered")
    warmup_steps: int | None = Field(
        None, ge=0, description="meta-steps in which the rate rises to outer.lr; null: 0, under outer.schedule=auto a "
        "20th of outer.steps, at most 100"
    )  # fmt: skip
    meta_batch_size: int = Field(8, ge=1, description="number of episodes in a meta-step, over all ranks")
    steps: int = Field(300, ge=1, description="number of meta-steps")
    until: str | None = Field(
        None, description="stop once a meta-validation metric is reached, such as accuracy>=0.9 (needs eval.every)"
    )
    stop_after: int | None = Field(
        None,
        ge=1,
        description="end after so many meta-validations in a row without a new best (eval.best); null: never",
    )
    max_skipped: float = Field(
        0.01,
        ge=0,
        le=1,
        description="largest share of the episodes so far (at least 3) that may be skipped because their loss or "
        "gradient is not finite; more end the run; 0: none may be skipped",
    )
    privacy: PrivacyConfig | None = Field(
        None, description="noise that hides each meta-train task (differential privacy); null: none"
    )
    data_weights: DataWeightsConfig | None = Field(
        None, description="learn how much each source, task or example of the support sets counts, by the meta-gradient"
    )  # fmt: skip
    worst_subgroup: bool = Field(
        False, description="learn most from the subgroups (data.subgroup) whose query rows have the highest loss after "
        "adaptation, by group DRO; false: from all rows alike"
    )  # fmt: skip
    keep_base: KeepBaseConfig | None = Field(
        None, description="a pretrained language model is held to what it said before: to the outer loss is added the "
        "Kullback-Leibler divergence of its next tokens, before adaptation, from those of the base; null: nothing is"
    )  # fmt: skip
    base: Literal["auto", "train", "freeze"] = Field(
        "auto",
        description="whether the parameters that the inner loop does not adapt are learnt (train) or stay (freeze); "
        "auto: train if the model is built from model.config, else freeze",
    )

    @field_validator("until", mode="before")
    @classmethod
    def _accuracy_by_default(cls, value: object) -> object:
        return f"accuracy>={value}" if isinstance(value, int | float) and not isinstance(value, bool) else value

    @field_validator("until")
    @classmethod
    def _parses(cls, value: str | None) -> str | None:
        if value is not None:
            consistency.parse_until(value)
        return value


class SamplingConfig(Section):
    actors: Annotated[int, Field(ge=0)] | Literal["auto"] = Field(
        2,
        description="number of sampler actors; 0: the learners make their episodes themselves; auto: one per node at "
        "first, then as many as keep the learners from waiting",
    )
    window: int = Field(32, ge=1, description="most episodes that a learner rank has asked for and not yet used")
    timeout_s: float = Field(120, gt=0, description="longest wait for one group of episodes")


class RunConfig(Section):
    name: str = Field(
        "default", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="name of the run, and of its directory in runs/"
    )  # fmt: skip
    seed: int = Field(0, ge=0, lt=2**64, description="seed of initial weights, episodes, dropout and noise")
    dir: str | None = Field(None, description="run directory; null: runs/NAME")
    max_hours: float | None = Field(
        None, gt=0, description="`train` and `pretrain` save and end before this many hours have passed; null: no limit"
    )
    checkpoint_every: int = Field(50, ge=1, description="number of meta-steps between checkpoints")
    keep: int = Field(2, ge=1, description="number of newest checkpoints that are kept")
    timeout_s: float = Field(600, gt=0, description="longest wait for another rank")
    trackers: Trackers = Field(
        [],
        description="experiment trackers that follow `train` and `pretrain`; tensorboard writes to the run directory; "
        "wandb and mlflow need the extra of that name",
    )


DEEPSPEED_DEFAULTS: dict[str, Any] = {"zero_optimization": {"stage": 1}, "gradient_clipping": 1.0}


class Config(Section):
    """A whole run. Sections follow the flow of data."""

    model: ModelConfig = ModelConfig()
    pretrain: PretrainConfig = PretrainConfig()
    data: DataConfig = DataConfig()
    task: TaskConfig = TaskConfig()
    inner: InnerConfig = InnerConfig()
    algorithm: str = Field("maml", description="a name in distmeta.algorithms, or a module's import path")
    outer: OuterConfig = OuterConfig()
    deepspeed: dict[str, Any] = Field(
        DEEPSPEED_DEFAULTS, description="DeepSpeed's configuration, passed to deepspeed.initialize unchanged"
    )
    sampling: SamplingConfig = SamplingConfig()
    cluster: ClusterConfig = ClusterConfig()
    eval: EvalConfig = EvalConfig()
    tune: TuneConfig = TuneConfig()
    serve: ServeConfig = ServeConfig()
    run: RunConfig = RunConfig()

    @field_validator("deepspeed", mode="before")
    @classmethod
    def _over_defaults(cls, value: object) -> object:
        return merge(DEEPSPEED_DEFAULTS, value) if isinstance(value, dict) else value

    @field_validator("deepspeed")
    @classmethod
    def _fits(cls, value: dict[str, Any]) -> dict[str, Any]:
        consistency.check_deepspeed(value)
        return value

    @model_validator(mode="before")
    @classmethod
    def _of_algorithm(cls, values: Any) -> Any:
        """What the algorithm is made of, where the configuration leaves it open."""
        name = values.get("algorithm", "maml") if isinstance(values, dict) else None
        if not isinstance(name, str):
            return values
        if name not in ALGORITHMS and not IMPORT_PATH.fullmatch(name):
            raise ValueError(
                f"algorithm = {name!r}: one of {', '.join(ALGORITHMS)}, or a module's import path such as "
                f"mypackage.mymodule.{nearest(name, ALGORITHMS)}"
            )
        whole = with_settings(values, ALGORITHMS[name], over=False) if name in ALGORITHMS else values
        for follow in (modules.with_module, images.with_image, regression.with_dimensions, documents.with_sizes):
            whole = follow(whole)
        return with_rates(with_distance(whole))

    @model_validator(mode="after")
    def _consistent(self) -> Config:
        consistency.check(self)
        return self

    @property
    def ways(self) -> int | None:
        """Classes in an episode where the configuration alone says (family classes); else None."""
        return (self.task.ways or 5) if self.task.family == "classes" else None

    @property
    def trains_base(self) -> bool:
        """Whether the outer loop learns what the inner loop does not adapt."""
        return self.outer.base == "train" or (self.outer.base == "auto" and self.model.pretrained is None)

    @property
    def freezes_base(self) -> bool:
        """Whether any weight of the base is neither adapted nor learnt."""
        return self.inner.adapt != "all" and not self.trains_base

    @property
    def noise_seed(self) -> int | None:
        """The key of what rollouts draw in an inner step; None where a loss draws nothing, or only dropout."""
        return self.run.seed if self.task.family == "policy" else None

    @property
    def validates_beside(self) -> bool:
        """Whether a process beside the ranks makes the meta-validations."""
        return self.eval.beside > 0

    @property
    def runs_layers_again(self) -> bool:
        """Whether each layer keeps its inputs alone, and is run again on the way back."""
        return self.model.activation_checkpointing or self.inner.memory == "layers"

    @property
    def most_shots(self) -> int:
        """Support examples of each class that an episode may have, in training or evaluation."""
        return max(self.task.shots, self.eval.shots or 0)

    def of_evaluation(self) -> Config:
        """This configuration, with `task` as meta-validations and evaluations draw episodes."""
        named = {key: getattr(self.eval, key) for key in ("ways", "shots", "queries")}
        changed = {key: value for key, value in named.items() if value is not None}
        changed |= {"least_ways": None, "least_shots": None}
        return self.model_copy(update={"task": self.task.model_copy(update=changed)})
