"""A simulated device: the agent's own code over simulated storage, time, network and power.

Nothing here waits or touches a disk, so a whole update takes milliseconds, and a seed decides everything:
`world.World(seed)` replays a run. Start at `world`.
"""
