"""Language agents that plan over several turns, and AgentFlow, which trains their planner (arXiv:2510.05592)."""
