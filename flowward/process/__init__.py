"""The generative process: times, solvers, noise schedules, and rollouts that turn a velocity model into samples."""
