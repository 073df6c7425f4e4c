"""`sandrun top`: the queues on a full screen (Textual).

Promises: shows what `sandrun.insight.live` reads; acts only on the run whose id was selected when
the key was pressed; leaves the terminal as it was. Uses the terminal's own colours only, so that it
can be read on a dark and on a light one, and no colour at all where the user wants none. Imports
insight, lifecycle, queue, model; Textual only in `app`, `board` and `dialogs`.
"""
