"""appliance.yaml and sites.yaml to the model."""
