"""The appliance catalog: static pages and feeds, made from manifests alone."""
