"""One file per verb: `add_arguments(parser)` and `run(args) -> exit code`. Heavy imports wait until a verb runs."""
