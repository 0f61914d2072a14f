"""What only stage scripts use: context, guard, params, records, experiment cards."""
