"""The verbs of the command line. Imports nothing: `litpeft --help` is answered at once."""

TRAINER_VERBS = {
    "fit": "train a model and record its cost and quality",
    "validate": "evaluate a finished run on its validation rows",
    "test": "evaluate a finished run on its test rows and add the result to its record",
    "predict": "write the predictions of finished runs to files",
}
COMMANDS = {  # verb -> help text; the module in litpeft/commands has the name of the verb
    "compare": "compare runs: a table of costs and quality, and which differences are significant",
    "configs": "list, print or copy the configurations that come with litpeft",
    "data": "show what a run would train on: rows, what is left out, and examples with the tokens that have loss",
    "sweep": "run every trial of an experiment with every seed, each in a separate process",
    "evaluate": "run benchmarks on finished runs: TruthfulQA, arithmetic, BLiMP, MMLU, any lm-eval task",
    "estimate": "estimate the GPU or host memory that a run will need, without loading weights",
    "report": "write an HTML page or Markdown with tables and charts of runs",
    "find_lr": "find learning rates that train an adapter, by a learning-rate range test",
    "chat": "talk to the model of a finished run in the terminal, also beside another run or its base",
    "generate": "answer prompts with a finished run on the screen; a classifier answers with its label",
    "export": "write a finished run as a PEFT adapter or as a merged transformers model",
    "combine": "combine the LoRA adapters of several runs into one: linear, cat, svd, ties, dare_ties",
    "demo": "fine-tune a small real model on real text, downloaded with pip",
}
# commands with the options of fit and a few of their own: verb -> name of its parser
PLANNING = {"estimate": "estimate", "find_lr": "find_lr", "data": "show_data"}
