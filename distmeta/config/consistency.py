"""What does not go together in a configuration, each refused in one line that says what to set instead.

Raised as ValueError: the configuration that is being validated turns it into an InputError that names the file.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from distmeta.config.algorithms import ALGORITHMS, load_algorithm
from distmeta.config.bases import check_keep_base, check_quantise
from distmeta.config.documents import check_document
from distmeta.config.images import check_images
from distmeta.config.regression import check_regression
from distmeta.config.weighting import check_rows
from distmeta.config.words import MOST_LETTERS, check_labels, check_sizes, check_text
from distmeta.errors import InputError

if TYPE_CHECKING:
    from distmeta.config import Config

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
    "activation_checkpointing": f"{_FORWARD}; set model.activation_checkpointing=true, or inner.memory=layers",
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


def check_deepspeed(value: dict[str, Any]) -> None:
    """Raises ValueError for a key that would be ignored, or would change the meta-gradient without a word."""
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


def check(config: Config) -> None:
    """Raises ValueError for sections that do not go together."""
    check_algorithm(config)
    for key, value in (("until", config.outer.until), ("stop_after", config.outer.stop_after)):
        if value is not None and config.eval.every == 0:
            raise ValueError(f"outer.{key} needs meta-validations: set eval.every to the meta-steps between them")
    if config.outer.until is not None:
        check_metric(config, "outer.until", config.outer.until, parse_until(config.outer.until)[0])
    if config.eval.best != "auto":
        check_metric(config, "eval.best", config.eval.best, parse_best(config.eval.best)[0])
    check_ways("eval.ways", config.eval.ways, config)
    if config.outer.schedule == "plateau" and config.eval.every == 0:
        raise ValueError("outer.schedule = plateau needs meta-validations: set eval.every")
    check_keep_base(config)
    check_quantise(config)
    check_rows(config)
    if config.outer.privacy is not None:
        check_privacy(config)
    if config.cluster.episode == "group":
        check_group(config)
    elif config.outer.meta_batch_size < config.cluster.most:
        raise ValueError(
            f"outer.meta_batch_size = {config.outer.meta_batch_size} is less than cluster.workers = "
            f"{config.cluster.shown}: every rank needs an episode; lower cluster.workers"
        )
    if config.model.distance != "euclidean" and config.model.head == "context":
        raise ValueError(
            f"model.distance = {config.model.distance} belongs to a head that reads features (model.head=prototype or "
            "linear); model.head is context: leave model.distance out"
        )
    if config.inner.adapt == "head" and config.model.head == "prototype":
        raise ValueError(
            "inner.adapt = head: a prototype head is computed from the support set, so nothing that is meta-learnt "
            "would adapt; set model.head=linear, or inner.adapt=all or lora"
        )
    check_images(config)
    check_regression(config)
    check_augment(config)
    check_sizes(config)
    if config.task.family != "classes" and config.task.ways is not None:
        raise ValueError(f"task.ways belongs to task.family=classes; {config.task.family} has no number of ways to set")
    if config.task.family == "text_to_text":
        check_text(config)
    elif config.task.family == "document":
        check_document(config)
    elif config.task.labels != "head":
        check_labels(config)
    elif config.task.prompt != "plain":
        raise ValueError(
            f"task.prompt = {config.task.prompt} belongs to a language model (task.labels=letters or words, "
            "task.family=text_to_text); leave it out"
        )
    if config.task.is_language and config.inner.adapt == "head":
        raise ValueError(
            "inner.adapt = head: a language model has no head but its output layer over the vocabulary; set lora, all, "
            "or a regular expression of parameter names"
        )
    if config.eval.normalise is not None and config.task.labels != "words" and config.task.family != "text_to_text":
        raise ValueError(
            f"eval.normalise = {config.eval.normalise} belongs to task.labels=words, and to the options of "
            "task.family=text_to_text; leave it out"
        )
    if config.task.family != "text_to_text" and config.data.layout != "table":
        raise ValueError(f"data.layout = {config.data.layout} belongs to task.family=text_to_text")
    if config.task.arrive_every and (config.task.family != "domain" or config.data.sources is not None):
        raise ValueError("task.arrive_every is for the tasks of task.family=domain, and one data source; set it to 0")
    if config.data.follow is not None:
        for fits, what in (
            (config.data.path is not None, "data.path, a directory or glob"),
            (config.task.arrive_every > 0, "task.arrive_every above 0: tasks arrive with their files"),
            (config.sampling.actors != "auto", "a number for sampling.actors: `auto` measures with tasks to come"),
        ):
            if not fits:
                raise ValueError(f"data.follow needs {what}")
    if config.task.mixture != "uniform" and config.data.sources is None:
        raise ValueError("task.mixture needs several data.sources; without them there is nothing to mix")
    if config.task.temperature != 1.0 and config.task.mixture not in ("temperature", "curriculum"):
        raise ValueError("task.temperature belongs to task.mixture=temperature or curriculum")
    if config.task.mixture == "curriculum":
        if config.eval.every == 0:
            raise ValueError("task.mixture = curriculum goes by meta-validations: set eval.every")
        # An episode is asked for that many meta-steps ahead, at most, and what it is drawn by must be known by then.
        # The rank with the least share of a meta-batch looks furthest ahead.
        size = config.outer.meta_batch_size
        least = size if config.cluster.episode == "group" else size // config.cluster.most
        ahead = -(-config.sampling.window // least) + 2
        if config.task.lag < ahead:
            raise ValueError(
                f"task.lag = {config.task.lag}: episodes are asked for up to {ahead} meta-steps ahead (sampling.window "
                f"over a rank's share of outer.meta_batch_size); set at least {ahead}, or lower sampling.window"
            )


def check_ways(key: str, ways: int | None, config: Config) -> None:
    """Raises ValueError unless episodes of so many classes can be asked of the run's model; None: of task.ways."""
    if ways is None:
        return
    if config.task.family != "classes":
        raise ValueError(f"{key} = {ways}: task.family = {config.task.family} has no number of ways to set")
    if ways < 2:
        raise ValueError(f"{key} = {ways}: at least 2")
    if config.task.labels == "letters" and ways > MOST_LETTERS:
        raise ValueError(f"{key} = {ways}: there are {MOST_LETTERS} letters to name classes by: lower it")
    if config.task.labels != "head":
        return
    if ways != config.ways and config.model.head != "prototype":
        raise ValueError(
            f"{key} = {ways}: the head of this model has {config.ways} outputs; leave {key} out, or meta-train with "
            "model.head=prototype, or task.labels=letters or words, which take any number"
        )


SECRET = 1 << 32  # a smaller run.seed can be tried out


def check_privacy(config: Config) -> None:
    """Raises ValueError where what distmeta.algorithms.privacy counts on does not hold."""
    task = config.task
    for fits, key, value, mend in (
        (task.family == "domain", "task.family", task.family,
         "tasks must not share what is hidden, as they do classes, instructions or authors; set domain"),
        (config.data.sources is None, "data.sources", "several", "tasks must be drawn uniformly; name one data source"),
        (not task.arrive_every, "task.arrive_every", task.arrive_every, "tasks must be drawn uniformly; set 0"),
        (not task.augment.resplit, "task.augment.resplit", "true",
         "an episode would have the task of the one before; set false"),
        (config.cluster.episode == "rank", "cluster.episode", "group",
         "clipping needs the whole of a task's meta-gradient on one rank; set rank"),
        (config.inner.task_batch <= 1, "inner.task_batch", config.inner.task_batch,
         "each task's meta-gradient is clipped by itself; set 0 or 1"),
        (config.algorithm != "fine_tune", "algorithm", "fine_tune",
         "it has no meta-gradient, and the weights would follow the noise; choose another"),
        (config.data.path is None or config.model.pretrained is not None, "model.pretrained", "null",
         "the vocabulary would be made of the tasks' own words; name a pretrained model"),
        (config.run.seed >= SECRET, "run.seed", config.run.seed,
         "it makes the noise, and can be guessed; take one of `python -c 'import secrets; "
         "print(secrets.randbits(62))'`, kept secret"),
    ):  # fmt: skip
        if not fits:
            raise ValueError(f"outer.privacy does not work with {key} = {value}: {mend}")


def check_augment(config: Config) -> None:
    """Raises ValueError where an augmentation would do nothing, or not what it says."""
    task, augment = config.task, config.task.augment
    for applies, key, value, mend in (
        (task.shots == 1 and augment.mix > 0, "mix", augment.mix,
         "needs other support rows of a class (task.shots above 1)"),
        (augment.permute_labels and (task.family == "classes" or task.permute_labels), "permute_labels", "true",
         "changes nothing where labels are in a new order in every episode (family classes, task.permute_labels)"),
        (augment.permute_labels and config.model.head == "prototype", "permute_labels", "true",
         "changes nothing where the head is made of class means (model.head=prototype)"),
        (augment.permute_labels and config.algorithm == "multi_task", "permute_labels", "true",
         "leaves nothing to learn for algorithm=multi_task, whose tasks share a head"),
        (augment.resplit and task.mixture == "curriculum", "resplit", "true",
         "pairs episodes, whose weights may differ under task.mixture=curriculum"),
    ):  # fmt: skip
        if applies:
            raise ValueError(f"task.augment.{key} = {value} {mend}; leave it out")


def check_algorithm(config: Config) -> None:
    """Raises ValueError where the algorithm would be another one, or would not work."""
    if config.algorithm in ALGORITHMS:
        check_settings(config, ALGORITHMS[config.algorithm].settings)
    if config.inner.steps == 0 and config.algorithm not in ("prototypes", "in_context"):
        raise ValueError("inner.steps = 0 adapts nothing: at least 1; prototypes and in_context need no inner loop")
    says_words = config.task.labels != "head" or config.task.family == "text_to_text"
    if config.model.head == "context" and config.algorithm != "in_context" and not says_words:
        raise ValueError(
            "model.head = context belongs to algorithm=in_context, which has no inner loop; with task.labels=letters "
            "or words, and task.family=text_to_text, it goes with every algorithm that adapts"
        )
    if config.algorithm == "imaml" and config.inner.proximal == 0:
        raise ValueError("algorithm = imaml needs the pull to the initial weights: inner.proximal above 0")
    if config.algorithm == "online" and not config.task.arrive_every:
        raise ValueError("algorithm = online needs task.arrive_every above 0, the episodes between two tasks")
    if config.algorithm == "fine_tune" and config.outer.weight_decay > 0:
        raise ValueError("algorithm = fine_tune leaves the initial weights as they are: set outer.weight_decay=0")
    if config.algorithm == "maml_pp" and config.inner.schedule != "constant":
        raise ValueError("algorithm = maml_pp learns a rate for each inner step: set inner.schedule=constant")
    if config.inner.learn_lr == "per_parameter" and config.inner.schedule != "constant":
        raise ValueError(
            "inner.schedule does not work with inner.learn_lr=per_parameter: set one of scalar, per_step, per_layer, "
            "per_layer_step, or inner.schedule=constant"
        )


def check_used(config: Config) -> None:
    """Raises InputError for what a new run would leave without effect; one that exists is read as it is."""
    inner, outer = config.inner, config.outer
    if config.task.labels != "head" and config.model.pretrained is None:
        raise InputError(
            f"task.labels = {config.task.labels} needs a pretrained decoder, which knows {config.task.labels}: set "
            "model.pretrained to its directory or hub id"
        )
    for unused, key, value, mend in (
        (outer.rate_lr is not None and inner.learn_lr == "none", "outer.rate_lr", outer.rate_lr,
         "is for learnt inner rates, and inner.learn_lr is none: set inner.learn_lr, or leave outer.rate_lr out"),
        (changed(outer, "momentum") and outer.optimizer not in ("sgd", "rmsprop"),
         "outer.momentum", outer.momentum,
         f"is of outer.optimizer=sgd and rmsprop, and not of {outer.optimizer}: set one of these, or leave it out"),
        (changed(inner, "momentum") and inner.optimizer != "momentum" and config.algorithm in ALGORITHMS,
         "inner.momentum", inner.momentum,
         f"is of inner.optimizer=momentum, and not of {inner.optimizer}: set that, or leave inner.momentum out"),
        (inner.adam_root == "constant" and inner.optimizer != "adam" and config.algorithm in ALGORITHMS,
         "inner.adam_root", "constant",
         f"is of inner.optimizer=adam, and not of {inner.optimizer}: set that, or leave inner.adam_root out"),
        (inner.clip_norm == "constant" and inner.clip is None, "inner.clip_norm", "constant",
         "is how inner.clip is differentiated, and inner.clip is null: set inner.clip, or leave inner.clip_norm out"),
        (inner.snapshots > 0 and inner.memory == "unroll", "inner.snapshots", inner.snapshots,
         "is for steps that are run again, and inner.memory = unroll keeps all: set inner.memory=walk, or leave "
         "inner.snapshots out"),
        (learns_only_fast(config.algorithm) and inner.adapt != "all" and config.trains_base, "outer.base", outer.base,
         f"trains the base, of which inner.adapt={inner.adapt} leaves a part out, and algorithm = {config.algorithm} "
         "learns nothing but what the inner loop adapts: set inner.adapt=all, or outer.base=freeze"),
        *of_other_families(config),
    ):  # fmt: skip
        if unused:
            raise InputError(f"{key} = {value} {mend}")


def of_other_families(config: Config) -> Iterator[tuple[bool, str, object, str]]:
    """The sizes of an episode that another task family has, as `check_used` has them."""
    reads = config.task.family == "document"
    of_document = [("task", key) for key in ("chunks", "chunk_tokens", "context_tokens")] + [("data", "author")]
    of_examples = [("task", key) for key in ("shots", "queries", "least_shots")]
    mend = (
        "is of tasks with examples, and a document has task.chunks of task.chunk_tokens: leave it out"
        if reads
        else f"is of task.family=document, and not of {config.task.family}: leave it out"
    )
    for section, key in of_examples if reads else of_document:
        values = getattr(config, section)
        yield changed(values, key), f"{section}.{key}", getattr(values, key), mend


def changed(section: Any, key: str) -> bool:
    return bool(getattr(section, key) != type(section).model_fields[key].default)


def learns_only_fast(algorithm: str) -> bool:
    """Whether it learns nothing but what the inner loop adapts, as its module says."""
    if algorithm in ALGORITHMS:
        return ALGORITHMS[algorithm].learns_only_fast
    return bool(getattr(load_algorithm(algorithm), "LEARNS_ONLY_FAST", False))


def check_settings(config: Config, settings: Mapping[str, Any]) -> None:
    """Raises ValueError where the configuration says something else than the algorithm is made of."""
    for key, needed in settings.items():
        section, name = key.split(".")
        value = getattr(getattr(config, section), name)
        if value != needed:
            raise ValueError(
                f"{key} = {value}: algorithm = {config.algorithm} is defined by {key}={needed}; set that, or leave "
                f"{key} out, or choose another algorithm"
            )


def check_group(config: Config) -> None:
    """Raises ValueError where the whole group cannot work on one episode."""
    for fits, key, value, mend in (
        (config.inner.adapt == "all", "inner.adapt", config.inner.adapt,
         "a group adapts all parameters; a frozen base is in shards by deepspeed.zero_optimization.stage=3 alone"),
        (config.algorithm in ("fomaml", "reptile"), "algorithm", config.algorithm,
         "a group works at first order; set fomaml or reptile, or set inner.adapt=lora and cluster.episode=rank"),
        (config.deepspeed["zero_optimization"]["stage"] == 3, "deepspeed.zero_optimization.stage",
         config.deepspeed["zero_optimization"]["stage"], "a group shards the parameters; set stage 3"),
        (config.model.head == "linear", "model.head", config.model.head,
         "each rank sees only a part of the support set; set linear"),
        (config.model.dropout == 0, "model.dropout", config.model.dropout,
         "masks would depend on the number of ranks; set 0"),
        (config.model.architecture != "lstm" or config.model.pretrained is not None, "model.architecture", "lstm",
         "it runs a layer once for each token, and ranks have texts of other lengths; choose a transformer"),
        (not config.model.activation_checkpointing, "model.activation_checkpointing", "true",
         "its weights are gathered while a layer runs; lower inner.part_tokens instead"),
        (config.inner.memory != "layers", "inner.memory", "layers",
         "its weights are gathered while a layer runs; lower inner.part_tokens instead"),
    ):  # fmt: skip
        if not fits:
            raise ValueError(f"cluster.episode = group does not work with {key} = {value}: {mend}")


METRICS = ("accuracy", "precision", "recall", "f1", "loss")
TEXT_METRICS = ("exact_match", "token_f1", "rouge_l", "loss")
DOCUMENT_METRICS = ("loss", "perplexity", "bits_per_byte", "token_accuracy")
_METRIC = "|".join(dict.fromkeys(METRICS + TEXT_METRICS + DOCUMENT_METRICS))
_KNOWN = (
    f"{', '.join(METRICS)}; with task.family=text_to_text {', '.join(TEXT_METRICS)}; with document "
    f"{', '.join(DOCUMENT_METRICS)}"
)


def check_metric(config: Config, key: str, value: str, metric: str) -> None:
    """Raises ValueError for a metric that meta-validations of the task family do not have."""
    of_family = {"text_to_text": TEXT_METRICS, "document": DOCUMENT_METRICS, "regression": ("loss",)}
    known = of_family.get(config.task.family, METRICS)
    if metric not in known:
        raise ValueError(
            f"{key} = {value}: task.family = {config.task.family} is not measured by {metric}; set one of "
            f"{', '.join(known)}"
        )


def parse_until(text: str) -> tuple[str, str, float]:
    """`accuracy>=0.9` -> ("accuracy", ">=", 0.9). Raises ValueError."""
    match = re.fullmatch(rf"\s*({_METRIC})\s*(>=|<=)\s*([0-9.eE+-]+)\s*", text)
    if match is None:
        raise ValueError(f"a condition such as accuracy>=0.9, or loss<=0.3 ({_KNOWN})")
    return match[1], match[2], float(match[3])


def parse_best(text: str) -> tuple[str, str]:
    """`accuracy:max` -> ("accuracy", "max"). Raises ValueError."""
    match = re.fullmatch(rf"\s*({_METRIC})\s*:\s*(max|min)\s*", text)
    if match is None:
        raise ValueError(f"auto, or METRIC:max or METRIC:min such as accuracy:max or loss:min ({_KNOWN})")
    return match[1], match[2]
