"""The update server: keeps releases, knows devices, assigns one to the other, believes only what is signed.

devices/ enrolment/ releases/ rollouts/ audit/   what is decided, and the ports that each of them needs
store/ blobs/                                    the ports on a database, and on a folder
device_api/ operator_api/ web/                   the edges: devices, operators' programs, operators' eyes
app                                              wires all of it; nothing else does
setup, run, settings                             make a server's folder, serve it, what can be set
"""
