"""System layer, built offline: disk layout, boot scripts, kernel fragments, first-boot units."""
