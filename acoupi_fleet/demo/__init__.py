"""demo: a fleet of virtual sensors on this machine. Touches one folder of its own, processes of its own, and loopback.

Each sensor is an SSH server and a stand-in for its user's systemd; everything else is the product, used through its
public command line. No code outside this folder knows of it.
"""
