"""How well a feature space separates classes: silhouette, retrieval, probes, figures."""
