"""The handlers: one file per function. The only place that knows events and HTTP."""
