"""Language-model pretraining: text to a cleaned, tokenised corpus, and that to weights. distmeta.pretrain drives it."""
