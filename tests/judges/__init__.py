"""Small CLIPs to judge heatmaps by: trained on the phantoms as users train theirs, without ever seeing a mask."""
