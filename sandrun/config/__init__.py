"""What the user asked for: options, their values and sources, trust in files, the project.

Promises one precedence for all settings, and that a file of a project never loosens a limit that
the user set. Never acts on a process. Imports messages, platform and model.
"""
