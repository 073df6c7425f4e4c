"""The effective settings: options, their values and sources, trust in files, the project.

Promises one precedence for all settings, and that a project's file never loosens a limit that the
user set. Acts on no process. Imports messages, platform and model.
"""
