"""Shared functions of the workshop on instruction finetuning.

Each module is small and can be read alone; imports point one way:

prompts, tokenizer, model, hardware, files, answer_key   know nothing of each other
data         -> prompts, tokenizer       entries, checks, splits, examples of token ids
download     -> files                    the model file, fetched once and checked
checkpoints  -> model, tokenizer         reading and writing weights
lora         -> model                    low-rank adapters
batching     -> data                     padded and packed batches
generation   -> model, batching          responses
training     -> model, batching          the loss and the loop
evaluation   -> data, generation         scores with intervals
plots, cli   on top
"""
