"""From rewards to training points: advantages, points, copies of the policy, terms of losses, optimisers."""
