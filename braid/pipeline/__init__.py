"""The stage contract: declared paths and params, guarded reads and writes, records, resume."""
