"""Images that are drawn outside of the process that trains: drawers, versions of weights, and Ray actors."""
