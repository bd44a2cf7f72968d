"""The fault rig, a product feature: virtual devices, and faults of power, network, clock and disk."""
