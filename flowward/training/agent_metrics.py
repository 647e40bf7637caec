"""The part of the glossary about agents: data for the report page and docs/metrics.md."""

from __future__ import annotations

from .explanation import SHARES, Metric

AGENTS = {
    "turns": Metric(
        "Turns per episode", "mean number of turns of an episode", "near the least that the questions need"
    ),
    "one_turn": Metric(
        "Episodes with one turn",
        "share of episodes that ended after their first turn",
        "below 98%, unless the questions need no planning",
        SHARES,
    ),
    "end/NAME": Metric(
        "How episodes end",
        "share of episodes with this end: stopped (by the verifier), turns or time (a limit), failed (by a server)",
        "mostly stopped; failed near 0",
        SHARES,
    ),
    "tool/NAME": Metric(
        "One tool",
        "share of turns that used this tool; none: the plan named no tool that there is",
        "none below 50%",
        SHARES,
    ),
    "trouble/NAME": Metric(
        "Turns with a problem",
        "share of turns with this problem: empty or unreadable plan, unknown tool, wrong arguments, error of the tool",
        "below 10%",
        SHARES,
    ),
    "cut": Metric(
        "Cut answers",
        "share of the planner's answers that were cut at the limit of tokens (--max-tokens)",
        "below 10%",
        SHARES,
    ),
    "undecided": Metric(
        "Undecided verifier",
        "share of turns in which the verifier said neither stop nor continue, which counts as continue",
        "below 10%",
        SHARES,
    ),
    "shortened": Metric(
        "Shortened memory",
        "share of turns whose prompt shows a result shortened, because the memory was too long",
        "below 10%",
        SHARES,
    ),
    "dropped": Metric(
        "Results left out",
        "share of turns whose prompt leaves out a result, because the memory was too long",
        "below 10%",
        SHARES,
    ),
    "answer_tokens": Metric(
        "Length of the planner's answers",
        "mean tokens of the planner's answer in one turn",
        "below 2 times its first value",
        "tokens",
    ),
    "prompt_tokens": Metric(
        "Length of the planner's prompts",
        "mean tokens of the planner's prompt in one turn",
        "well below the model's context; grows with the number of turns",
        "tokens",
    ),
    "server_gap_mean": Metric(
        "Gap of the server",
        "mean absolute difference of log-probabilities, server against training, per token (only with --server)",
        "below 0.05",
        "nats",
    ),
    "server_gap_max": Metric(
        "Largest gap of the server", "largest such difference of this iteration (only with --server)", "any", "nats"
    ),
    "server_gap_ratio": Metric(
        "Ratio to the server",
        "mean probability of a token in training over that on the server (only with --server)",
        "within 0.1 of 1",
    ),
    "kl": Metric(
        "KL from the start",
        "mean estimated KL divergence from the planner before training (only with beta above 0)",
        "rises slowly; if it jumps above 0.5, raise --algorithm.beta",
        "nats per token",
    ),
    "seconds.MODULE": Metric(
        "Time of a module",
        "waiting for this module in the rollout: tools, executor, verifier, generator or analyst",
        "less than seconds.rollout",
        "s",
    ),
    "seconds.recompute": Metric(
        "Time of recomputing",
        "computing the log-probabilities of a server's answers again (only with --server)",
        "less than seconds.train",
        "s",
    ),
    "speed.episodes_per_second": Metric(
        "Episodes per second", "training episodes of this iteration per second, without the evaluation", "steady", "1/s"
    ),
    "speed.tokens_per_second": Metric(
        "Tokens per second",
        "tokens that the planner wrote in this iteration per second, without the evaluation",
        "steady",
        "1/s",
    ),
    "evaluation.behaviour.HOW.turns": Metric(
        "Turns per episode", "mean number of turns of these episodes", "near the least that the questions need"
    ),
    "evaluation.behaviour.HOW.ends": Metric(
        "How episodes end", "share of each end, as in end/NAME", "mostly stopped", SHARES
    ),
    "evaluation.behaviour.HOW.tools": Metric(
        "Tools by turn",
        "share of each tool by turn number; n is the number of episodes that have this turn",
        "each tool where it helps",
        SHARES,
    ),
    "evaluation.behaviour.HOW.used": Metric(
        "Tools used", "share of episodes that use each tool at least once", "each tool where it helps", SHARES
    ),
    "evaluation.behaviour.HOW.troubles": Metric(
        "Turns with a problem", "share of turns with each problem, as in trouble/NAME", "below 10%", SHARES
    ),
    **{
        f"evaluation.behaviour.HOW.{name}": Metric(title, f"the same as {name}, for these episodes", healthy, unit)
        for name, title, healthy, unit in (
            ("cut", "Cut answers", "below 10%", SHARES),
            ("undecided", "Undecided verifier", "below 10%", SHARES),
            ("shortened", "Shortened memory", "below 10%", SHARES),
            ("dropped", "Results left out", "below 10%", SHARES),
            ("answer_tokens", "Length of the planner's answers", "below 2 times its first value", "tokens"),
        )
    },
}
