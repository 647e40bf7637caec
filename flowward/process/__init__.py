"""The generative process: times, solvers, noise schedules, and how samples are drawn from a velocity."""
