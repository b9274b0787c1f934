"""Directories that load without distmeta: Hugging Face or PEFT, with a model card."""
