"""What happens and what happened: live view, history, statistics, plots, reports, metrics.

Promises: reads only, except where a user asks to prune, to end or to move something; survives
whatever a history or a sample file contains; needs no optional library before it is used.
Imports: lifecycle (status), queue (reading), config, history, messages, platform, model. No run
imports this room, so a run's start does not pay for it.
"""
