"""hutch beside each framework's own storage; each module runs in an environment with its framework."""
