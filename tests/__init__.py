"""The tests: unit (one module each), integration (real files and processes), e2e (a real service over HTTP), gpu."""
