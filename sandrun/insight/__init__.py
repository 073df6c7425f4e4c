"""What happens and what happened: live view, history, statistics, plots, reports, metrics.

Promises: only reads, except where a user wants to prune, end or move something; accepts any content
of a history or a sample file; needs an optional library only where that is used.
Imports: lifecycle (status), queue (reading), config, history, messages, platform, model. A run
imports this room only after it has freed the run lock, and only to report its end
(`sandrun.cli.run_end`), so it delays neither its own start nor the next run.
"""
