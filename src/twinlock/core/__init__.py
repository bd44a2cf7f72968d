"""What both ends must agree on: manifest, payload format, boot record, protocol, trust, limits, errors.

Nothing here reaches for a network, a clock or a device. The one module that touches the file system is
`durable`, which every tier needs in the same form (see docs/adr).
"""
