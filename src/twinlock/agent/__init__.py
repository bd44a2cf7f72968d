"""The device side: one oneshot that polls, decides, installs into the inactive slot, and settles trials.

`machine` decides, `run` performs its effects through `ports`; `check` is the short-lived process that talks
to the server about trust. Nothing here is imported that the command at hand does not need.
"""
