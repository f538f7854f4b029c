"""Shared functions of the workshop on instruction finetuning.

Each module is small and can be read alone; imports point one way:

prompts, tokenizer, model, hardware, files, answer_key   know nothing of each other
data             -> prompts, tokenizer       entries, checks, splits, examples of token ids
download         -> files                    the model file, fetched once and checked
templates        -> prompts                  the prompt formats for other programs
gguf_files       -> model, tokenizer         reading and writing GGUF
checkpoints      -> gguf_files, templates    models as folders, and all of them by name
lora             -> model                    low-rank updates
adapters         -> lora, checkpoints        adapters in PEFT's form, the finetuned model
batching         -> data                     padded and packed batches
generation       -> model, batching          responses
chat             -> generation               responses while they are made
training         -> model, batching          the loss and the loop
evaluation       -> answer_key               scores, intervals, tests
reports          -> evaluation, data         the table of scores of a file of responses
multiple_choice  -> training, batching       answers by likelihood
judge            -> prompts, files           another model's opinion, over the network
rating           -> evaluation, files        people's opinion, in a notebook
chat_box         -> chat, rating             a box to talk to the model, in a notebook
export           -> reports, adapters        a run and its card (`cards`) for other programs
plots, finetune, cli   on top
checks           -> all of them              the exercises' checks, a file for each notebook
drawings         -> plots                    drawings as SVG
doctor, editions, repository                 for instructors and forks
"""
