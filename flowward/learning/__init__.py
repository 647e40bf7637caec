"""From rewards to training points: advantages, training points, policy copies, loss terms, optimisers."""
