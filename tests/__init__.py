"""A package, so that a `tests` folder of an installed library does not hide this one from child processes."""
