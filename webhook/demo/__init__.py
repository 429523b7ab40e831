"""What `driftgate demo` and the end-to-end tests need around the gate: a real control plane on this machine."""
