"""What does not go together in a configuration, each refused in one line that says what to set instead.

Raised as ValueError: the configuration that is being validated turns it into an InputError that names the file.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from distmeta.config.algorithms import ALGORITHMS, load_algorithm
from distmeta.config.base import Rule, refuse, shown, unfit
from distmeta.config.documents import check_document
from distmeta.config.images import check_images
from distmeta.config.mixing import check_arrivals, check_mixture
from distmeta.config.modules import check_module
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
    check_validations(config)
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
    check_head(config)
    check_images(config)
    check_regression(config)
    check_module(config)
    check_augment(config)
    check_sizes(config)
    check_family(config)
    check_arrivals(config)
    check_mixture(config)


def check_validations(config: Config) -> None:
    """Raises ValueError for what meta-validations are to decide where there are none, or that they do not measure."""
    for key, value in (("until", config.outer.until), ("stop_after", config.outer.stop_after)):
        if value is not None and config.eval.every == 0:
            raise ValueError(f"outer.{key} needs meta-validations: set eval.every to the meta-steps between them")
    if config.outer.until is not None:
        check_metric(config, "outer.until", config.outer.until, parse_until(config.outer.until)[0])
    if config.eval.best != "auto":
        check_metric(config, "eval.best", config.eval.best, parse_best(config.eval.best)[0])
    check_ways("eval.ways", config.eval.ways, config)
    check_refine(config)
    if config.outer.schedule == "plateau" and config.eval.every == 0:
        raise ValueError("outer.schedule = plateau needs meta-validations: set eval.every")


def check_head(config: Config) -> None:
    """Raises ValueError for a head that cannot do what else is asked of it."""
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


def check_family(config: Config) -> None:
    """Raises ValueError for what does not go with the task family, or with how answers are given."""
    task = config.task
    if task.family != "classes" and task.ways is not None:
        raise ValueError(f"task.ways belongs to task.family=classes; {task.family} has no number of ways to set")
    if task.family == "text_to_text":
        check_text(config)
    elif task.family == "document":
        check_document(config)
    elif task.labels != "head":
        check_labels(config)
    elif task.prompt != "plain":
        raise ValueError(
            f"task.prompt = {task.prompt} belongs to a language model (task.labels=letters or words, "
            "task.family=text_to_text); leave it out"
        )
    if task.is_language and config.inner.adapt == "head":
        raise ValueError(
            "inner.adapt = head: a language model has no head but its output layer over the vocabulary; set lora, all, "
            "or a regular expression of parameter names"
        )
    if config.eval.normalise is not None and task.labels != "words" and task.family != "text_to_text":
        raise ValueError(
            f"eval.normalise = {config.eval.normalise} belongs to task.labels=words, and to the options of "
            "task.family=text_to_text; leave it out"
        )
    if task.family != "text_to_text" and config.data.layout != "table":
        raise ValueError(f"data.layout = {config.data.layout} belongs to task.family=text_to_text")


def check_refine(config: Config) -> None:
    """Raises ValueError unless class means, and nothing else, are what eval.refine can move."""
    steps = config.inner.steps if config.eval.steps is None else config.eval.steps
    has_means = config.model.head == "prototype" and config.task.family in ("classes", "domain")
    if config.eval.refine and (steps or not has_means):
        why = f"inner steps are {steps}" if has_means else f"model.head is {config.model.head}"
        raise ValueError(
            f"eval.refine = {config.eval.refine} moves the class means of a prototype head that takes no inner steps, "
            f"and {why}: set algorithm=prototypes, or leave eval.refine out"
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
    if ways != config.ways and config.model.head not in ("prototype", "words"):
        raise ValueError(
            f"{key} = {ways}: the head of this model has {config.ways} outputs; leave {key} out, or meta-train with "
            "model.head=prototype, or task.labels=letters or words, which take any number"
        )


SECRET = 1 << 32  # a smaller run.seed can be tried out


def check_privacy(config: Config) -> None:
    """Raises ValueError where what distmeta.algorithms.privacy counts on does not hold."""
    task = config.task
    refuse(config, "outer.privacy", [
        ("task.family", task.family == "domain",
         "tasks must not share what is hidden, as they do classes, instructions or authors; set domain"),
        ("data.sources", config.data.sources is None, "tasks must be drawn uniformly; name one data source"),
        ("task.arrive_every", not task.arrive_every, "tasks must be drawn uniformly; set 0"),
        ("task.augment.resplit", not task.augment.resplit,
         "an episode would have the task of the one before; set false"),
        ("cluster.episode", config.cluster.episode == "rank",
         "clipping needs the whole of a task's meta-gradient on one rank; set rank"),
        ("inner.task_batch", config.inner.task_batch <= 1,
         "each task's meta-gradient is clipped by itself; set 0 or 1"),
        ("algorithm", config.algorithm != "fine_tune",
         "it has no meta-gradient, and the weights would follow the noise; choose another"),
        ("model.pretrained", config.data.path is None or config.model.pretrained is not None,
         "the vocabulary would be made of the tasks' own words; name a pretrained model"),
        ("run.seed", config.run.seed >= SECRET,
         "it makes the noise, and can be guessed; take one of `python -c 'import secrets; "
         "print(secrets.randbits(62))'`, kept secret"),
    ])  # fmt: skip


def check_augment(config: Config) -> None:
    """Raises ValueError where an augmentation would do nothing, or not what it says."""
    task, augment = config.task, config.task.augment
    anew = augment.permute_labels and (task.family == "classes" or task.permute_labels)
    for setting, mend in unfit(config, [
        ("task.augment.mix", augment.mix == 0 or task.shots > 1,
         "needs other support rows of a class (task.shots above 1)"),
        ("task.augment.permute_labels", not anew,
         "changes nothing where labels are in a new order in every episode (family classes, task.permute_labels)"),
        ("task.augment.permute_labels", not augment.permute_labels or config.model.head not in ("prototype", "words"),
         "changes nothing where the head is made of class means or descriptions (model.head=prototype or words)"),
        ("task.augment.permute_labels", not augment.permute_labels or config.algorithm != "multi_task",
         "leaves nothing to learn for algorithm=multi_task, whose tasks share a head"),
        ("task.augment.resplit", not augment.resplit or task.mixture != "curriculum",
         "pairs episodes, whose weights may differ under task.mixture=curriculum"),
    ]):  # fmt: skip
        raise ValueError(f"{setting} {mend}; leave it out")


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
    built_in = config.algorithm in ALGORITHMS
    for setting, mend in unfit(config, [
        ("outer.rate_lr", outer.rate_lr is None or inner.learn_lr != "none",
         "is for learnt inner rates, and inner.learn_lr is none: set inner.learn_lr, or leave outer.rate_lr out"),
        ("outer.momentum", not changed(outer, "momentum") or outer.optimizer in ("sgd", "rmsprop"),
         f"is of outer.optimizer=sgd and rmsprop, and not of {outer.optimizer}: set one of these, or leave it out"),
        ("inner.momentum", not (changed(inner, "momentum") and built_in) or inner.optimizer == "momentum",
         f"is of inner.optimizer=momentum, and not of {inner.optimizer}: set that, or leave inner.momentum out"),
        ("inner.adam_root", not (inner.adam_root == "constant" and built_in) or inner.optimizer == "adam",
         f"is of inner.optimizer=adam, and not of {inner.optimizer}: set that, or leave inner.adam_root out"),
        ("inner.clip_norm", inner.clip_norm != "constant" or inner.clip is not None,
         "is how inner.clip is differentiated, and inner.clip is null: set inner.clip, or leave inner.clip_norm out"),
        ("inner.snapshots", inner.snapshots == 0 or inner.memory != "unroll",
         "is for steps that are run again, and inner.memory = unroll keeps all: set inner.memory=walk, or leave "
         "inner.snapshots out"),
        ("outer.base", not (learns_only_fast(config.algorithm) and inner.adapt != "all" and config.trains_base),
         f"trains the base, of which inner.adapt={inner.adapt} leaves a part out, and algorithm = {config.algorithm} "
         "learns nothing but what the inner loop adapts: set inner.adapt=all, or outer.base=freeze"),
        *of_other_families(config),
    ]):  # fmt: skip
        raise InputError(f"{setting} {mend}")


def of_other_families(config: Config) -> Iterator[Rule]:
    """The sizes of an episode that another task family has."""
    reads = config.task.family == "document"
    of_document = [("task", key) for key in ("chunks", "chunk_tokens", "context_tokens")] + [("data", "author")]
    of_examples = [("task", key) for key in ("shots", "queries", "least_shots")]
    mend = (
        "is of tasks with examples, and a document has task.chunks of task.chunk_tokens: leave it out"
        if reads
        else f"is of task.family=document, and not of {config.task.family}: leave it out"
    )
    for section, key in of_examples if reads else of_document:
        yield f"{section}.{key}", not changed(getattr(config, section), key), mend


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
        if getattr(getattr(config, section), name) != needed:
            raise ValueError(
                f"{key} = {shown(config, key)}: algorithm = {config.algorithm} is defined by {key}={needed}; set that, "
                f"or leave {key} out, or choose another algorithm"
            )


def check_beside(config: Config, every: int) -> None:
    """Raises ValueError where meta-validations, every `every` meta-steps, cannot be made beside training."""
    if not config.validates_beside:
        return
    refuse(config, f"eval.beside = {config.eval.beside}", [
        ("eval.every", every > 0, "there are no meta-validations; set 0, or eval.every above 0"),
        ("eval.every", config.eval.beside < every,
         f"a meta-validation has to end before the next begins, {every} meta-steps later; set a smaller number"),
        ("cluster.episode", config.cluster.episode == "rank", "one process cannot hold the model; set 0"),
        ("deepspeed.zero_optimization.stage",
         config.deepspeed["zero_optimization"]["stage"] < 3 or not config.freezes_base,
         "one process cannot hold the frozen base; set 0, or a lower stage"),
        ("cluster.workers", not config.cluster.is_elastic,
         "ranks that come would take its place; set a number of workers"),
        ("data.follow", config.data.follow is None, "its data would be older; set 0"),
    ])  # fmt: skip


def check_group(config: Config) -> None:
    """Raises ValueError where the whole group cannot work on one episode."""
    lowers = "its weights are gathered while a layer runs; lower inner.part_tokens instead"
    refuse(config, "cluster.episode = group", [
        ("inner.adapt", config.inner.adapt == "all",
         "a group adapts all parameters; a frozen base is in shards by deepspeed.zero_optimization.stage=3 alone"),
        ("algorithm", config.algorithm in ("fomaml", "reptile"),
         "a group works at first order; set fomaml or reptile, or set inner.adapt=lora and cluster.episode=rank"),
        ("deepspeed.zero_optimization.stage", config.deepspeed["zero_optimization"]["stage"] == 3,
         "a group shards the parameters; set stage 3"),
        ("model.head", config.model.head == "linear", "each rank sees only a part of the support set; set linear"),
        ("model.dropout", config.model.dropout == 0, "masks would depend on the number of ranks; set 0"),
        ("model.architecture", config.model.architecture != "lstm" or config.model.pretrained is not None,
         "it runs a layer once for each token, and ranks have texts of other lengths; choose a transformer"),
        ("model.activation_checkpointing", not config.model.activation_checkpointing, lowers),
        ("inner.memory", config.inner.memory != "layers", lowers),
    ])  # fmt: skip


def check_keep_base(config: Config) -> None:
    """Raises ValueError where outer.keep_base has no meaning."""
    if config.outer.keep_base is None:
        return
    says_words = config.task.family == "text_to_text" or config.task.labels != "head"
    for fits, reason in (
        (config.task.family != "document", "does not go with task.family = document, whose outer loss is of the text "
                                           "itself"),
        (says_words, "is of the words of a language model, and this model has a head of its own; set task.family="
                     "text_to_text, or task.labels=letters or words"),
        (config.model.pretrained is not None, "needs model.pretrained: a model built from its configuration has no "
                                              "base to keep"),
        (config.algorithm != "fine_tune", "does not go with algorithm = fine_tune, which learns nothing in the outer "
                                          "loop"),
        (config.outer.privacy is None, "does not go with outer.privacy: its gradient is of no single task"),
    ):  # fmt: skip
        if not fits:
            raise ValueError(f"outer.keep_base {reason}; or leave outer.keep_base out")


def check_quantise(config: Config) -> None:
    """Raises ValueError where there is no frozen base that could be rounded."""
    if config.model.quantise is None:
        return
    refuse(config, f"model.quantise = {config.model.quantise}", [
        ("model.pretrained", config.model.pretrained is not None, "there is no base; name one"),
        ("inner.adapt", config.inner.adapt == "lora", "rounded weights cannot move; set lora"),
        ("outer.base", config.outer.base != "train", "rounded weights cannot move; set freeze"),
        ("deepspeed.zero_optimization.stage", config.deepspeed["zero_optimization"]["stage"] != 3,
         "shards are of whole weights; set 0, 1 or 2"),
    ])  # fmt: skip


METRICS = ("accuracy", "precision", "recall", "f1", "loss")
TEXT_METRICS = ("exact_match", "token_f1", "rouge_l", "loss")
DOCUMENT_METRICS = ("loss", "perplexity", "bits_per_byte", "token_accuracy")
_METRIC = "|".join(dict.fromkeys((*METRICS, *TEXT_METRICS, *DOCUMENT_METRICS, "return")))
_KNOWN = (
    f"{', '.join(METRICS)}; with task.family=text_to_text {', '.join(TEXT_METRICS)}; with document "
    f"{', '.join(DOCUMENT_METRICS)}"
)


def check_metric(config: Config, key: str, value: str, metric: str) -> None:
    """Raises ValueError for a metric that meta-validations of the task family do not have."""
    of_family = {"text_to_text": TEXT_METRICS, "document": DOCUMENT_METRICS, "regression": ("loss",)}
    known = of_family.get(config.task.family, METRICS) if config.task.family != "policy" else ("return", "loss")
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
