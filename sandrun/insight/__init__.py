"""What happens and what happened: live view, history, statistics, plots, reports, metrics.

Promises: reads only, except where a user asks to prune, to end or to move something; survives
whatever a history or a sample file contains; needs no optional library before it is used.
Imports: lifecycle (status), queue (reading), config, history, messages, platform, model. A run
imports this room only after it has freed the run lock, and only to report its end
(`sandrun.cli.run_end`), so neither its start nor the next run pays for it.
"""
