"""One page of a run: figures, curves, pictures, experiment cards and the DAG."""
