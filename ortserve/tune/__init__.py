"""The tuning tool: which way of running one model is best on this machine, measured. Beside the service, never in it or in a bento."""
