"""One script per DAG stage; dvc.yaml says what each reads and writes."""

import os

# OpenMP threads that wait by spinning slow down a machine whose cores are wanted by others, two
# threads on two shared cores several times over. Read when torch is first imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
