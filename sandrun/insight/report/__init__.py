"""A page about past runs: one HTML file with drawings, without scripts and without network.

- `collect` reads the history once: the newest runs for the page, and totals over all.
- `page` puts the sections together and keeps the page small.
- `summary`, `timeline`, `curves`, `trends`, `tables` each make a part of it as text.
- `markup` escapes and draws; nothing else writes a text of a user's into the page.
- `output` writes the file.
"""
