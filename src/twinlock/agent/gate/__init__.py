"""What a trial has to prove, one proof a file; `twinlock.agent.health` puts them together."""
