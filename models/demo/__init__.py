"""The demos: synthetic phantoms, and the training of the two small CLIPs that are shipped. Only draws and trains."""
