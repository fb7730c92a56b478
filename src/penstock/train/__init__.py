"""The recipe of the bundled model `penstock-tiny`: corpus, tokenizer, training run, evaluation."""
