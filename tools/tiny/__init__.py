"""Data, chat format, training forms and optimizer of weir-tiny (see models/weir-tiny/README.md)."""
