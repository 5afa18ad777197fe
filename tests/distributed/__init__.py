"""Train steps in several real processes, through the run engine: gloo on processors, DeepSpeed as it is."""
