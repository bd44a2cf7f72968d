"""Devices as the server knows them: identity, status, what they last said of themselves."""
