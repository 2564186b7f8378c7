"""Device models that ship with vdcm, one folder each; they share only vdcm's public names."""
