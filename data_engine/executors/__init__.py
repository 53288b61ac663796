"""Where the steps run: processes of this machine, or a Ray cluster."""
