"""From a prompt to tokens and from logits to text: tokenizer, chat template, sampling, stop strings, generation."""
