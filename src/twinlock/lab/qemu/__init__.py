"""Virtual devices with real firmware, loaders, kernels and root file systems, under QEMU."""
