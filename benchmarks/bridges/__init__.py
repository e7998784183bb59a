"""hutch as a framework's storage beside the framework's own; each module runs in an environment with its framework."""
