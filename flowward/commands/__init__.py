"""The commands of the program, one module each with a `run(words) -> exit code`, imported when it is called."""

COMMANDS = {
    "train": "post-train a model; --algorithm NAME, --config FILE or --resume RUN choose what to start from",
    "sample": "draw images for prompts, from a model or a run",
    "eval": "measure models and runs: scores per category with 95 % intervals",
    "export": "write a run's weights for diffusers, with a model card",
    "report": "write a run's report.html",
    "pretrain": "train the built-in base model from nothing",
    "algorithms": "list the algorithms, or show one",
    "memory": "tell what a model takes on a GPU, without one, and which batches a card holds",
    "verify": "hold algorithms to their laws, against exact optima",
    "bench": "measure flowward itself",
    "serve-reward": "serve a reward over HTTP, for runs here or elsewhere",
}
