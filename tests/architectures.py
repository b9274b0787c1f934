"""Small configurations of architectures, whose windows are shorter than the rows of a test; tables of positions fit."""

SIZES = {
    "hidden_size": 32, "d_model": 32, "n_embd": 32, "embedding_size": 32, "word_embed_proj_dim": 32,
    "num_hidden_layers": 2, "num_layers": 2, "n_layer": 2, "encoder_layers": 2, "decoder_layers": 2,
    "num_decoder_layers": 2, "num_attention_heads": 2, "num_heads": 2, "n_head": 2, "encoder_attention_heads": 2,
    "decoder_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16, "d_kv": 16, "intermediate_size": 48,
    "ffn_dim": 48, "d_ff": 48, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "n_inner": 48,
    "max_position_embeddings": 66, "n_positions": 64, "rotary_dim": 8,
    "unpadded_vocab_size": 60,
}  # fmt: skip
DEBERTA = {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_biased_input": False}
WINDOW = {"sliding_window": 4}
QWEN = {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 0}
ENCODERS: dict[str, dict] = {
    "bert": {}, "roberta": {}, "mpnet": {}, "deberta-v2": DEBERTA, "electra": {}, "modernbert": {"local_attention": 8},
    "data2vec-text": {}, "xlnet": {},
}  # fmt: skip
DECODERS: dict[str, dict] = {
    "llama": {}, "mistral": WINDOW, "qwen2": QWEN, "qwen3": QWEN, "gemma2": WINDOW, "gemma3_text": WINDOW,
    "phi3": {**WINDOW, "bos_token_id": 1, "eos_token_id": 2}, "gpt2": {}, "gpt_neox": {}, "opt": {}, "bloom": {},
}  # fmt: skip
BOTH: dict[str, dict] = {"t5": {}, "bart": {}}
KINDS = {**ENCODERS, **DECODERS, **BOTH}


EVEN = {"num_key_value_heads": 2, "head_dim": None, "d_kv": None}
OTHER = (  # where a family does not take SIZES; the last: a depth at which layers of every kind are there
    {}, {"num_key_value_heads": 2}, {"head_dim": None, "d_kv": None}, EVEN, {**EVEN, "num_hidden_layers": 8},
)  # fmt: skip


def small_config(kind: str, other: dict | None = None) -> dict:
    """Settings in the architecture's own names, for model.config. other: than SIZES; None: as the family has it."""
    from transformers import AutoConfig

    default = AutoConfig.for_model(kind)
    names, there = default.attribute_map, default.to_dict()
    given = {**SIZES, **(other or {})}
    sizes = {key: value for key, value in given.items() if names.get(key, key) in there and value is not None}
    own = {names.get(key, key): value for key, value in sizes.items()}
    special = ("pad_token_id", "bos_token_id", "eos_token_id", "sep_token_id", "cls_token_id", "decoder_start_token_id")
    windows = {key: 8 for key in ("sliding_window", "local_attention", "attention_window") if there.get(key)}
    if kind in KINDS:
        windows = KINDS[kind]
    return {**own, **{key: 2 for key in special[1:] if key in there}, **windows}


def text_kinds() -> list[str]:
    """Model types of transformers for text alone, by its own mappings."""
    from transformers.models.auto import modeling_auto as auto

    text, more = set(), set()
    for name in ("CAUSAL_LM", "SEQ_TO_SEQ_CAUSAL_LM", "MASKED_LM", "TEXT_ENCODING"):
        text |= set(getattr(auto, f"MODEL_FOR_{name}_MAPPING_NAMES"))
    for name in ("IMAGE_TEXT_TO_TEXT", "MULTIMODAL_LM", "SPEECH_SEQ_2_SEQ"):
        more |= set(getattr(auto, f"MODEL_FOR_{name}_MAPPING_NAMES"))
    return sorted(text - more)


def has_words(kind: str) -> bool:
    from transformers.models.auto import modeling_auto as auto

    return kind in {**auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, **auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES}
