"""The commands of the program, one module each with a `run(words) -> exit code`, imported when it is called."""

COMMANDS = {
    "demo": "train the built-in model and write a report (start here)",
    "train": "post-train a model with reinforcement learning",
    "agent": "train, measure and use language agents that plan over several turns",
    "sample": "sample images from a model or a run",
    "eval": "measure models and runs: scores with 95 % intervals",
    "report": "write a run's report.html",
    "watch": "follow all runs of a folder on a local web page",
    "compare": "draw the curves of several runs in the same charts",
    "export": "write a run's weights for diffusers, with a model card",
    "algorithms": "list the algorithms, or show one: paper, cost, presets",
    "list": "list rewards, prompts, suites, recipes, models or presets",
    "memory": "estimate GPU memory and batch size (no GPU needed)",
    "verify": "test each algorithm against exact results",
    "bench": "measure the speed of flowward itself",
    "serve-reward": "serve a reward over HTTP, for runs on any machine",
    "pretrain": "train the built-in base model from scratch",
}
