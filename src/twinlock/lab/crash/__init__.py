"""Every crash state of an update: the agent's own code over a kernel that forgets what was not flushed.

`kernel` records what the agent asks of its storage, `choices` says what of it a loss of power may leave,
`machine` boots and recovers from what is left, by the rules of the `loaders`. Start at `visit`.
"""
